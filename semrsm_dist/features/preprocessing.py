"""Preprocessing in two steps: what each image needs as it is read, and what a whole batch can have at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.transforms import ResizeKeepRatio
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

from semrsm_dist.data.decode import PILLOW_MAX_BYTES
from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.features.models import Transform

Prepared: TypeAlias = Tensor
"""An image of the network's size: its pixels, (H, W, 3) uint8, or the network's input, (3, H, W) float32."""

DRAFT_FACTOR = 2
"""Least size of a draft, as a multiple of the size that it is resized to: a decoder scales more roughly."""


SQUASH = "use preprocessing: squash, which suits images of any shape"


class Preprocessing:
    """A transform of which the conversion to floats and their normalisation wait for the batch, if it ends with these.

    Pixels take a quarter of the memory of the network's input on their way from the reader, and a GPU does the rest in
    no time. The numbers are those of the transform, to the last bit: these steps treat each number by itself.
    """

    def __init__(self, transform: Transform) -> None:
        self._transform = transform
        self._resize: Callable[[Image.Image], Image.Image] | None = None
        steps = list(transform.transforms) if isinstance(transform, Compose) else [transform]
        self._first = steps[0]
        if len(steps) > 1 and isinstance(steps[-2], ToTensor) and isinstance(steps[-1], Normalize):
            self._resize = Compose(steps[:-2])
            self._convert = Compose(steps[-2:])
            self._mean, self._std = (
                torch.as_tensor(each, dtype=torch.float32).view(-1, 1, 1)
                for each in (steps[-1].mean, steps[-1].std)
            )

    def least_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the least width and height of a draft of an image of `size`, for `decode_with_mode`.

        Raises ConfigError if the transform does not begin with a resize.
        """
        resized = self._resized(size)
        if resized is None:
            raise ConfigError(
                f"model.jpeg_draft: true: the preprocessing begins with {self._first!r} and not with a resize, so the "
                "size that it needs is unknown; nothing was extracted: use model.jpeg_draft: false in a new run "
                "directory"
            )
        return max(1, DRAFT_FACTOR * resized[0]), max(1, DRAFT_FACTOR * resized[1])

    def _resized(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """Return to which width and height an image of `size` is resized; None if the transform does not say."""
        step: Any = self._first
        if not isinstance(step, Resize | ResizeKeepRatio) or getattr(step, "max_size", None) is not None:
            return None
        height, width = np.broadcast_to(step.size, 2).tolist()
        ratios = [Fraction(size[0], width), Fraction(size[1], height)]
        if isinstance(step, ResizeKeepRatio):
            ratio = max(ratios) if step.longest == 1 else min(ratios)
            return round(size[0] / ratio), round(size[1] / ratio)
        if np.size(step.size) == 1:
            ratios = [min(ratios)] * 2
        return int(size[0] / ratios[0]), int(size[1] / ratios[1])

    def prepare(self, image: Image.Image, name: str = "") -> Prepared:
        """Return an image at the network's size; may be called from any thread.

        Raises InputError if it is empty, or so narrow that it would be resized to nothing, or to more than memory
        holds.
        """
        if (fault := self.find_fault(image.size)) is not None:
            raise InputError(f"image {name!r} {fault}; it has no features: leave it out, or {SQUASH}")
        image = image if image.mode == "RGB" else image.convert("RGB")
        if self._resize is None:
            return self._transform(image)
        resized = self._resize(image)
        if isinstance(resized, Image.Image) and resized.mode == "RGB":
            return torch.from_numpy(np.array(resized))
        converted: Tensor = self._convert(resized)
        return converted

    def find_fault(self, size: tuple[int, int]) -> str | None:
        """Return why an image of this width and height cannot be resized; None if it can."""
        resized = self._resized(size) if all(size) else (0, 0)
        if resized is None or 0 < 3 * resized[0] * resized[1] <= PILLOW_MAX_BYTES:
            return None
        return (
            f"has {size[0]} x {size[1]} pixels, which the preprocessing would make {resized[0]} x {resized[1]}: at "
            f"least 1 x 1 and at most {PILLOW_MAX_BYTES // 3} pixels are possible"
        )

    def finish(self, batch: Tensor) -> Tensor:
        """Return the network's input (B, 3, H, W) for a batch of prepared images, on the device of the batch."""
        if self._resize is None or batch.dtype != torch.uint8:
            return batch
        pixels = batch.permute(0, 3, 1, 2)
        # A GPU prefers channels last, but the last bits of a CPU's features depend on the order.
        if not batch.is_cuda:
            pixels = pixels.contiguous()
        mean, std = (each.to(batch.device, non_blocking=True) for each in (self._mean, self._std))
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)


def find_unsuitable(
    sizes: Iterable[tuple[int, int]], data_config: Mapping[str, Any]
) -> dict[tuple[int, int], str]:
    """Return why images of some widths and heights cannot be resized as `LoadedModel.data_config` says."""
    preprocessing = Preprocessing(create_transform(**data_config, is_training=False))
    faults = {size: preprocessing.find_fault(size) for size in sizes}
    return {size: f"it {fault}; {SQUASH}" for size, fault in faults.items() if fault is not None}


def from_arrays(arrays: Iterable[NDArray[Any]]) -> list[Prepared]:
    """Return prepared images that came from another process as arrays."""
    return [torch.from_numpy(array) for array in arrays]

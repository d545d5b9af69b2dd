"""Preprocessing in two steps: what each image needs as it is read, and what a whole batch can have at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose, Normalize, ToTensor

from semrsm_dist.features.models import Transform

Prepared: TypeAlias = Tensor
"""An image of the network's size: its pixels, (H, W, 3) uint8, or the network's input, (3, H, W) float32."""


class Preprocessing:
    """A transform of which the conversion to floats and their normalisation wait for the batch, if it ends with these.

    Pixels take a quarter of the memory of the network's input on their way from the reader, and a GPU does the rest in
    no time. The numbers are those of the transform, to the last bit: these steps treat each number by itself.

    Parameters
    ----------
    transform
        The whole preprocessing.
    """

    def __init__(self, transform: Transform) -> None:
        self._transform = transform
        self._resize: Callable[[Image.Image], Image.Image] | None = None
        steps = list(transform.transforms) if isinstance(transform, Compose) else []
        if len(steps) > 1 and isinstance(steps[-2], ToTensor) and isinstance(steps[-1], Normalize):
            self._resize = Compose(steps[:-2])
            self._convert = Compose(steps[-2:])
            self._mean, self._std = (
                torch.as_tensor(each, dtype=torch.float32).view(-1, 1, 1)
                for each in (steps[-1].mean, steps[-1].std)
            )

    def prepare(self, image: Image.Image) -> Prepared:
        """Return an image at the network's size; may be called from any thread."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        if self._resize is None:
            return self._transform(image)
        resized = self._resize(image)
        if isinstance(resized, Image.Image) and resized.mode == "RGB":
            return torch.from_numpy(np.array(resized))
        converted: Tensor = self._convert(resized)
        return converted

    def finish(self, batch: Tensor) -> Tensor:
        """Return the network's input (B, 3, H, W) for a batch of prepared images, on the device of the batch."""
        if self._resize is None or batch.dtype != torch.uint8:
            return batch
        pixels = batch.permute(0, 3, 1, 2)
        if (
            not batch.is_cuda
        ):  # a GPU prefers channels last, but the last bits of a CPU's features depend on the order
            pixels = pixels.contiguous()
        mean, std = (each.to(batch.device, non_blocking=True) for each in (self._mean, self._std))
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)


def from_arrays(arrays: Iterable[NDArray[Any]]) -> list[Prepared]:
    """Return prepared images that came from another process as arrays."""
    return [torch.from_numpy(array) for array in arrays]

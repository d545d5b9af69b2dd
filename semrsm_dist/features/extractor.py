"""From images to representations: preprocessing, batches, precision and checks."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from semrsm_dist.errors import ConfigError, InputError, WorkError
from semrsm_dist.features.layers import LayerReader, resolve_layers
from semrsm_dist.features.models import LoadedModel, load_model
from semrsm_dist.features.probing import LayerInfo
from semrsm_dist.features.spec import ModelSpec, resolve_precision

_logger = logging.getLogger(__name__)

Prepared: TypeAlias = Tensor
"""An image as the network takes it: (3, H, W), float32."""


class NonFiniteFeaturesError(InputError):
    """The network returned NaN or infinity for some images.

    Attributes
    ----------
    layer
        The first layer in which they appear.
    indices
        Positions of these images among those given to the extractor.
    """

    def __init__(self, layer: str, indices: Sequence[int], precision: str) -> None:
        self.layer = layer
        self.indices = tuple(indices)
        self.precision = precision
        shown = ", ".join(map(str, self.indices[:8])) + (", ..." if len(self.indices) > 8 else "")
        remedy = (
            "look at these images and at the model's weights"
            if precision == "float32"
            else f"{precision} may be too narrow for this model: set precision: float32"
        )
        place = "position" if len(self.indices) == 1 else "positions"
        super().__init__(
            f"layer {layer!r} is NaN or infinite for {len(self.indices)} of the given images, at {place} {shown}, so "
            f"no similarity is defined for them; {remedy}"
        )

    def __reduce__(self) -> tuple[type[NonFiniteFeaturesError], tuple[str, tuple[int, ...], str]]:
        return type(self), (self.layer, self.indices, self.precision)  # so that it crosses process borders


class Extractor:
    """A model with the layers to read, on its device.

    On a GPU the network runs under autocast in the given precision; products stay in full float32, never
    TF32, with float32. On a CPU it runs in one thread: with a worker on every core
    that is fastest, and the rounding does not depend on the machine's number of cores.

    Parameters
    ----------
    model
        The model, loaded or to be loaded.
    layers
        Names and globs of layers, see `resolve_layers`.
    precision
        "float32", "float16", "bfloat16", or "auto".
    device
        "cpu", "cuda", "cuda:1" and so on, or "auto": a GPU if there is one.
    batch_size
        Images per forward pass. Halved, and kept so, when the GPU's memory does not suffice.

    Attributes
    ----------
    model
        The loaded model, with its description for the run's record.
    layers
        The layers that are read, in network order.
    batch_size
        Images per forward pass at present.

    Raises
    ------
    ConfigError, InputError
        As `load_model` and `resolve_layers`; or the device does not exist.
    """

    def __init__(
        self,
        model: ModelSpec | LoadedModel,
        layers: Sequence[str],
        *,
        precision: str = "auto",
        device: str = "auto",
        batch_size: int = 32,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
        self.device = _resolve_device(device)
        self.precision = resolve_precision(precision, gpu=self.device.type == "cuda")
        self.batch_size = batch_size
        self.layers: list[LayerInfo]
        with reproducible(self.precision):
            self.model = load_model(model) if isinstance(model, ModelSpec) else model
            self.layers, self._read = self._find(layers)
        self.model.module.to(self.device)

    def _find(self, names: Sequence[str]) -> tuple[list[LayerInfo], Callable[[Tensor], dict[str, Tensor]]]:
        """Return the layers of these names, and what reads them from a batch (B, 3, H, W) as (B, S, C)."""
        layers = resolve_layers(self.model, names)
        return layers, LayerReader(self.model, layers)

    def transform(self, image: Image.Image) -> Prepared:
        """Return the (3, H, W) input of the network for an image; may be called from any thread.

        Apply it as soon as an image is read: a tensor is small and of one size, a photograph is neither.
        """
        tensor: Tensor = self.model.transform(image if image.mode == "RGB" else image.convert("RGB"))
        return tensor

    def __call__(self, images: Sequence[Image.Image | Prepared]) -> dict[str, NDArray[np.float32]]:
        """Return layer -> (B, S, C) in float32, one row per image in the order given.

        Parameters
        ----------
        images
            Images, or what `transform` has made of them.

        Raises
        ------
        NonFiniteFeaturesError
            Some image gives NaN or infinity.
        WorkError
            The GPU's memory does not suffice for a single image.
        """
        found = {
            layer.name: np.empty((len(images), layer.n_tokens, layer.n_channels), np.float32)
            for layer in self.layers
        }
        done = 0
        with reproducible(self.precision):
            while done < len(images):
                chosen = images[done : done + self.batch_size]
                batch = torch.stack([i if isinstance(i, Tensor) else self.transform(i) for i in chosen])
                part = self._forward_or_halve(batch)
                for name, z in part.items():
                    found[name][done : done + len(batch)] = z
                done += len(batch) if part else 0
        for name, z in found.items():
            bad = [index for index, image in enumerate(z) if not np.isfinite(image).all()]
            if bad:
                raise NonFiniteFeaturesError(name, bad, self.precision)
        return found

    def _forward_or_halve(self, batch: Tensor) -> dict[str, NDArray[np.float32]]:
        """Return the layers of a batch; or none after halving the batch size for lack of GPU memory."""
        autocast = torch.autocast(
            self.device.type, getattr(torch, self.precision), enabled=self.precision != "float32"
        )
        try:
            with torch.inference_mode(), autocast:
                features = self._read(batch.to(self.device))
            return {name: z.float().cpu().numpy() for name, z in features.items()}
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                height, width = self.model.input_size
                raise WorkError(
                    f"the GPU has not enough free memory for one image of {height} x {width} through "
                    f"{self.model.spec.name!r} in {self.precision}; choose a smaller input_size, precision: "
                    "float16, or a GPU with more memory or fewer other users"
                ) from error
        # Outside the handler, whose traceback still holds the tensors of the failed pass.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.batch_size = len(batch) // 2
        _logger.warning("GPU memory exhausted: continuing with batches of %d images", self.batch_size)
        return {}


def _resolve_device(device: str) -> torch.device:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ConfigError(f"unknown device {device!r}; choose auto, cpu or cuda, or one GPU such as cuda:1")
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return torch.device("cuda" if seen else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= seen:
        raise ConfigError(
            f"{device} was to run the model, but torch sees {seen or 'no'} GPU{'s' * (seen > 1)} here (torch "
            f"{torch.__version__}); nothing was extracted, since a CPU would silently take its place: install a torch "
            "and a driver that fit the GPU, or set CUDA_VISIBLE_DEVICES to the empty string and begin a new run on "
            "the CPU"
        )
    return chosen


@contextmanager
def reproducible(precision: str) -> Iterator[None]:
    """Within the block, let torch give the same numbers every time; afterwards its settings are as before.

    One CPU thread, the same algorithm of cuDNN for the same shapes, and no TF32 where `precision` is float32. Threads
    that are started within the block inherit the number of threads.
    """
    settings = {"benchmark": False, "deterministic": True, "allow_tf32": precision != "float32"}
    cudnn, threads = torch.backends.cudnn, torch.get_num_threads()
    before = {name: getattr(cudnn, name) for name in settings}
    try:
        torch.set_num_threads(1)
        for name, value in settings.items():
            setattr(cudnn, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(cudnn, name, value)
        torch.set_num_threads(threads)

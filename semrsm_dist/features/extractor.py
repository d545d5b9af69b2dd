"""From images to representations: preprocessing, batches, precision and checks."""

from __future__ import annotations

import logging
import re
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from semrsm_dist.errors import (
    ConfigError,
    InputError,
    UnusableGpuError,
    WorkerLostError,
    WorkError,
    counted,
    shorten,
)
from semrsm_dist.features.compiling import compile_network, explain_failure
from semrsm_dist.features.gpu_faults import is_out_of_memory, noticing_faults
from semrsm_dist.features.layers import LayerReader, resolve_layers
from semrsm_dist.features.models import LoadedModel, load_model
from semrsm_dist.features.preprocessing import Prepared, Preprocessing
from semrsm_dist.features.probing import LayerInfo
from semrsm_dist.features.reproducible import reproducible
from semrsm_dist.features.spec import ModelSpec, resolve_precision

_logger = logging.getLogger(__name__)
_COMPILING = threading.Lock()
ALIKE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""Most that features of an image differ between batches, or once compiled, relative to their norm: by rounding."""


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
        remedy = (
            "look at these images and at the model's weights"
            if precision == "float32"
            else f"{precision} may be too narrow for this model: set precision: float32"
        )
        place = "position" if len(self.indices) == 1 else "positions"
        super().__init__(
            f"layer {layer!r} is NaN or infinite for {len(self.indices)} of the given images, at {place} "
            f"{shorten(self.indices, 8)}, so no similarity is defined for them; {remedy}"
        )

    def __reduce__(self) -> tuple[type[NonFiniteFeaturesError], tuple[str, tuple[int, ...], str]]:
        return type(self), (self.layer, self.indices, self.precision)  # so that it crosses process borders


@dataclass(frozen=True)
class _Part:
    """The features of one batch: layer -> (B, S, C) and, for each layer, which images are finite (L, B).

    On a GPU they are there when `done` has happened.
    """

    features: dict[str, Tensor]
    finite: Tensor
    done: torch.cuda.Event | None = None


@dataclass(frozen=True)
class ComingFeatures:
    """Features that a GPU may still be at work on; see `Extractor.begin`."""

    layers: Sequence[LayerInfo]
    precision: str
    device: torch.device
    parts: Sequence[_Part]

    def result(self) -> dict[str, NDArray[np.float32]]:
        """Wait for the features and return layer -> (B, S, C), one row per image in the order given.

        Raises
        ------
        NonFiniteFeaturesError
            Some image gives NaN or infinity.
        WorkerLostError
            The GPU has failed.
        """
        self.wait()
        for place, layer in enumerate(self.layers):
            finite = [flag for part in self.parts for flag in part.finite[place].tolist()]
            if not all(finite):
                bad = [index for index, is_finite in enumerate(finite) if not is_finite]
                raise NonFiniteFeaturesError(layer.name, bad, self.precision)
        return {layer.name: self._join(layer) for layer in self.layers}

    def wait(self) -> None:
        """Wait for the features; raise WorkerLostError if the GPU fails."""
        with noticing_faults(self.device):
            for part in self.parts:
                if part.done is not None:
                    part.done.synchronize()

    def _join(self, layer: LayerInfo) -> NDArray[np.float32]:
        arrays = [part.features[layer.name].numpy() for part in self.parts]
        if len(arrays) == 1:
            return arrays[0]
        empty = np.empty((0, layer.n_tokens, layer.n_channels), np.float32)
        return np.concatenate([empty, *arrays])


class Extractor:
    """A model with the layers to read, on its device.

    On a GPU the network runs under autocast in the given precision, with channels last in memory; what is computed in
    float32 is computed in full float32, never TF32. On a CPU it runs in one thread: with a worker on every core that is
    fastest, and the rounding does not depend on the machine's number of cores.

    Parameters
    ----------
    model
        The model, loaded or to be loaded. One that is loaded keeps its order in memory.
    layers
        Names and globs of layers, see `resolve_layers`.
    precision
        "float32", "float16", "bfloat16", or "auto".
    device
        "cpu", "cuda", "cuda:1" and so on, or "auto": a GPU if there is one.
    batch_size
        Images per forward pass. Halved, and kept so, when the GPU's memory does not suffice.
    compiled
        Whether the network is compiled by `torch.compile`. Smaller batches are then filled up, so that all have one
        size: it is compiled once, and an image's features do not depend on how many images its batch has.

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
        As `load_model` and `resolve_layers`.
    UnusableGpuError
        torch cannot use the GPU.
    WorkerLostError
        The GPU has failed.
    """

    def __init__(
        self,
        model: ModelSpec | LoadedModel,
        layers: Sequence[str],
        *,
        precision: str = "auto",
        device: str = "auto",
        batch_size: int = 32,
        compiled: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
        self.device = _resolve_device(device)
        self.precision = resolve_precision(precision, gpu=self.device.type == "cuda")
        self.batch_size = batch_size
        self.layers: list[LayerInfo]
        with reproducible():
            self.model = load_model(model) if isinstance(model, ModelSpec) else model
            self.layers, self._read = self._find(layers)
        self._streams: tuple[torch.cuda.Stream, torch.cuda.Stream] | None = None
        with noticing_faults(self.device):
            self.model.module.to(self.device)
            if self.device.type == "cuda":
                stream: Any = torch.cuda.Stream  # which has no types
                self._streams = stream(self.device), stream(self.device)
                if isinstance(model, ModelSpec):
                    self.model.module.to(memory_format=torch.channels_last)
        self._is_compiled, self._plain = compiled, self._read
        if compiled:
            self._read = compile_network(self._plain, self.device)

    def warm_up(self) -> None:
        """Let the model work on an image of noise, so that what it cannot do is found before it is given work.

        Raises
        ------
        ConfigError
            The network could not be compiled, or returns other features since.
        WorkerLostError
            The GPU has failed, or not enough free memory.
        """
        height, width = self.model.input_size
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        image = self.transform(Image.fromarray(pixels))
        try:
            with _COMPILING if self._is_compiled else nullcontext():
                found = self.begin([image])
            found.wait()
        except WorkError as error:
            raise WorkerLostError(str(error)) from error
        except Exception as error:
            if not self._is_compiled:
                raise
            raise explain_failure(error, self.model.spec.name) from error
        if self._is_compiled:
            self._require_same(image, found)

    def _require_same(self, image: Prepared, found: ComingFeatures) -> None:
        """Raise ConfigError unless the compiled network finds about what the network finds."""
        compiled, self._read = self._read, self._plain
        try:
            expected = self.begin([image])
            expected.wait()
        finally:
            self._read = compiled
        for name, z in expected.parts[0].features.items():
            size = float(torch.linalg.vector_norm(z))
            difference = float(torch.linalg.vector_norm(z - found.parts[0].features[name]))
            if np.isfinite(size) and not difference <= ALIKE[self.precision] * size:
                raise ConfigError(
                    f"model.compile: true: compiled, {self.model.spec.name!r} returns other features of layer {name!r} "
                    f"than not compiled (difference {difference / size:.1g} of their norm, for {self.precision}); "
                    "nothing was extracted: use model.compile: false in a new run directory"
                )

    def _find(self, names: Sequence[str]) -> tuple[list[LayerInfo], Callable[[Tensor], dict[str, Tensor]]]:
        """Return the layers of these names, and what reads them from a batch (B, 3, H, W) as (B, S, C)."""
        layers = resolve_layers(self.model, names)
        return layers, LayerReader(self.model, layers)

    @property
    def preprocessing(self) -> Preprocessing:
        """What is done to images before the network; it can be sent to other processes."""
        return Preprocessing(self.model.transform)

    def transform(self, image: Image.Image, name: str = "") -> Prepared:
        """Return an image as `begin` takes it; may be called from any thread. Errors, with its name, as in `prepare`.

        Apply it as soon as an image is read: what it returns is small and of one size, a photograph is neither.
        """
        return self.preprocessing.prepare(image, name)

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
        WorkerLostError
            The GPU has failed.
        """
        return self.begin(images).result()

    def begin(self, images: Sequence[Image.Image | Prepared]) -> ComingFeatures:
        """Let the model work on images, as when the extractor is called; a GPU is still at it when this returns.

        Raises
        ------
        WorkError
            The GPU's memory does not suffice for a single image.
        WorkerLostError
            The GPU has failed.
        """
        parts, done = list[_Part](), 0
        with reproducible(), noticing_faults(self.device):
            while done < len(images):
                chosen = images[done : done + self.batch_size]
                batch = torch.stack([i if isinstance(i, Tensor) else self.transform(i) for i in chosen])
                part = self._forward_or_halve(batch)
                if part is not None:
                    parts.append(part)
                    done += len(batch)
        return ComingFeatures(self.layers, self.precision, self.device, parts)

    def _forward_or_halve(self, batch: Tensor) -> _Part | None:
        """Return the layers of a batch; or None after halving the batch size for lack of GPU memory."""
        try:
            return (
                self._forward(batch) if self._streams is None else self._forward_on_gpu(batch, *self._streams)
            )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
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
        _logger.warning(
            "GPU memory exhausted: continuing with batches of %s", counted(self.batch_size, "image")
        )
        return None

    def _forward(self, batch: Tensor) -> _Part:
        """Return the layers of a batch on its device, which is the model's."""
        autocast = torch.autocast(
            self.device.type, getattr(torch, self.precision), enabled=self.precision != "float32"
        )
        n_images = len(batch)
        # The compiler cannot make views of parameters in inference mode.
        with torch.no_grad() if self._is_compiled else torch.inference_mode():
            pixels = self.preprocessing.finish(self._fill(batch))
            with autocast:
                found = self._read(pixels)
            features = {
                layer.name: found[layer.name][:n_images].float().contiguous() for layer in self.layers
            }
            finite = [torch.isfinite(z).flatten(1).all(1) for z in features.values()]
            return _Part(features, torch.stack(finite))

    def _fill(self, batch: Tensor) -> Tensor:
        """Return a batch of the size that the network is compiled for, by its last image once more."""
        missing = self.batch_size - len(batch)
        if not self._is_compiled or missing <= 0:
            return batch
        return torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])])

    def _forward_on_gpu(
        self, batch: Tensor, sending: torch.cuda.Stream, fetching: torch.cuda.Stream
    ) -> _Part:
        """Do the same by the GPU, copying in streams beside the one that computes; return before it has ended."""
        with torch.cuda.device(self.device):
            computing = torch.cuda.current_stream()
            with torch.cuda.stream(sending):
                sent = batch.pin_memory().to(self.device, non_blocking=True)
            computing.wait_stream(sending)
            sent.record_stream(computing)
            part = self._forward(sent)
            fetching.wait_stream(computing)
            with torch.cuda.stream(fetching):
                features = {name: _fetch(z, fetching) for name, z in part.features.items()}
                finite = _fetch(part.finite, fetching)
                event: Any = torch.cuda.Event  # as above
                # A thread that waits for it sleeps, and leaves its CPU to readers.
                done = event(blocking=True)
                return _Part(features, finite, fetching.record_event(done))


def _fetch(tensor: Tensor, stream: torch.cuda.Stream) -> Tensor:
    """Begin to copy a tensor from the GPU in a stream, into memory that a GPU can write to by itself."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copy.copy_(tensor, non_blocking=True)
    tensor.record_stream(stream)
    return copy


def _resolve_device(device: str) -> torch.device:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ConfigError(f"unknown device {device!r}; choose auto, cpu or cuda, or one GPU such as cuda:1")
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return torch.device("cuda" if seen else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= seen:
        raise UnusableGpuError(
            f"{device} was to run the model, but torch sees {seen or 'no'} GPU{'s' * (seen > 1)} on "
            f"{socket.gethostname()} (torch {torch.__version__}); nothing was extracted there, since a CPU would "
            "silently take its place: look at nvidia-smi on that machine, install a torch "
            "and a driver that fit the GPU, or set CUDA_VISIBLE_DEVICES to the empty string and begin a new run on "
            "the CPU"
        )
    return chosen

"""Features in memory: what a model computes from images, without a configuration or a run directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BeforeValidator, Field
from torch import nn

from semrsm_dist.errors import ConfigError
from semrsm_dist.features.extractor import ALIKE, Extractor, NonFiniteFeaturesError
from semrsm_dist.features.models import LoadedModel, Transform, adopt_module
from semrsm_dist.features.pictures import Picture, as_pictures, read_picture
from semrsm_dist.features.preprocessing import Prepared
from semrsm_dist.features.probing import device_of
from semrsm_dist.features.reproducible import reproducible
from semrsm_dist.features.spec import ModelSpec
from semrsm_dist.fields import AutoPair, Count, Section, Seed
from semrsm_dist.machine import count_readers


def _name_or_module(value: object) -> object:
    if not isinstance(value, (str, nn.Module)):
        raise ValueError("expected the name of a model or a torch.nn.Module")  # noqa: TRY004 - for pydantic
    return value


class Extraction(Section, arbitrary_types_allowed=True):
    """The arguments of `extract` but the images, checked as the keys of a configuration are."""

    model: Annotated[Any, BeforeValidator(_name_or_module)]
    layers: Annotated[
        tuple[str, ...],
        BeforeValidator(lambda given: (given,) if isinstance(given, str) else given),
        Field(min_length=1),
    ]
    weights: Annotated[str, BeforeValidator(lambda given: str(given) if isinstance(given, Path) else given)]
    input_size: AutoPair
    preprocessing: Literal["crop", "squash", "pad"] | None
    transform: Callable[[Image.Image], Any] | None
    precision: Literal["auto", "float32", "float16", "bfloat16"]
    device: str | None
    batch_size: Count
    seed: Seed


@dataclass(frozen=True, eq=False)
class Features(Mapping[str, NDArray[np.float32]]):
    """Representations of images, layer by layer.

    Attributes
    ----------
    layers : dict
        Name of the layer -> (N, S, C) float32 array, in the network's order.
    model : dict
        What the features depend on: name, hash of the weights, preprocessing, precision.
    """

    layers: Mapping[str, NDArray[np.float32]]
    model: Mapping[str, Any]

    __eq__ = object.__eq__  # a mapping would compare its arrays, which have no single answer
    __hash__ = object.__hash__

    def __getitem__(self, layer: str) -> NDArray[np.float32]:
        """Return the (N, S, C) representations of a layer."""
        return self.layers[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {z.shape}" for name, z in self.layers.items())
        return f"Features({self.model['name']}, {shapes})"


def extract(  # noqa: PLR0913 - the public function's options, by keyword
    model: str | nn.Module,
    images: Sequence[Picture] | NDArray[np.uint8],
    layers: str | Sequence[str],
    *,
    weights: str = "pretrained",
    input_size: int | tuple[int, int] | None = None,
    preprocessing: str | None = None,
    transform: Transform | None = None,
    precision: str = "auto",
    device: str | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Features:
    """Compute the representations of images in layers of a model.

    The numbers are those of a run on the same images with the same model, precision and batch size, unless it compiles
    the model (`model.compile`) or decodes drafts (`model.jpeg_draft`). As in a worker of a run, the model works in one
    thread on a CPU; for many images on many cores, use `run`.

    Parameters
    ----------
    model : str or torch.nn.Module
        timm's name, with its tag where pretrained weights are used: ``resnet18.tv_in1k``; or ``test_resnet`` and
        ``test_vit``, whose weights ``digits`` ship with this package. Or a module, used as it is, in evaluation mode.
    images : sequence of paths, PIL images or (H, W, 3) uint8 arrays, or array (N, H, W, 3) of uint8
        The images; they may differ in size, as each is resized to the model's input.
    layers : str or sequence of str
        Names or globs, as ``semrsm layers MODEL`` lists them.
    weights : str
        ``pretrained``, ``random``, ``digits``, ``package`` or the path of a file. Not used with a module.
    input_size : int or (int, int), optional
        Height and width in pixels; by default the model's own.
    preprocessing : str, optional
        ``crop`` for an image's centre, ``squash`` for all of it with another aspect ratio, ``pad`` for all of it with
        borders of the mean colour; by default the model's own, mostly ``crop``.
    transform : callable, optional
        Preprocessing of a module: RGB PIL image -> (3, H, W) float32 tensor of one size. Only timm's modules do
        without, as they say how images are prepared. Called from several threads.
    precision : str
        ``float32``, ``float16``, ``bfloat16``, or ``auto``: float16 on a GPU, float32 on a CPU.
    device : str, optional
        ``cpu``, ``cuda``, ``cuda:1`` and so on. By default a GPU if there is one; a module stays where it is.
    batch_size : int
        Images per forward pass. The last bits of the features may depend on it.
    seed : int
        Seed of ``random`` weights.

    Returns
    -------
    Features
        A mapping from layers to (N, S, C) float32 arrays.

    Raises
    ------
    ConfigError
        An argument of a wrong type; an unknown model, layer, precision or device; a module without `transform` that is
        not of timm, or whose features of an image depend on the others or on chance.
    InputError
        No images, an image that cannot be read, an array of another shape or type, features that are NaN or infinite.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    >>> extract("test_resnet", images, "layer4", weights="digits")["layer4"].shape
    (2, 9, 96)

    A module of your own, with its preprocessing:

    >>> import torch
    >>> module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, kernel_size=16, stride=16), torch.nn.ReLU())
    >>> def transform(image):
    ...     return torch.from_numpy(np.array(image.resize((64, 64)), np.float32)).permute(2, 0, 1) / 255
    >>> extract(module, images, "1", transform=transform)["1"].shape
    (2, 16, 8)
    """
    given = Extraction(
        model=model,
        layers=layers,
        weights=weights,
        input_size=input_size,
        preprocessing=preprocessing,
        transform=transform,
        precision=precision,
        device=device,
        batch_size=batch_size,
        seed=seed,
    )
    pictures = as_pictures(images)
    is_module = isinstance(given.model, nn.Module)
    with _evaluating(given.model) if is_module else nullcontext():
        extractor = Extractor(
            _find_source(given),
            given.layers,
            precision=given.precision,
            device=given.device or (str(device_of(given.model)) if is_module else "auto"),
            batch_size=given.batch_size,
        )
        found = _extract_all(extractor, pictures)
        if is_module:
            _require_own_features(extractor, pictures[0], found)
        facts = extractor.model.describe()
    return Features(
        found,
        {
            **{key: facts[key] for key in ("name", "weights", "weights_sha256")},
            "preprocessing": facts["data_config"] if transform is None else repr(transform),
            "precision": extractor.precision,
        },
    )


def _find_source(given: Extraction) -> ModelSpec | LoadedModel:
    if isinstance(given.model, nn.Module):
        return adopt_module(given.model, given.input_size, given.transform, given.preprocessing)
    if given.transform is not None:
        raise ConfigError(
            f"transform: model {given.model!r} brings its own preprocessing; leave transform out"
        )
    return ModelSpec(
        given.model, given.weights, given.input_size, given.seed, preprocessing=given.preprocessing
    )


def _extract_all(extractor: Extractor, pictures: Sequence[Picture]) -> dict[str, NDArray[np.float32]]:
    """Return all layers of all images; the images of the next batch are read while the model works."""
    found = {
        layer.name: np.empty((len(pictures), layer.n_tokens, layer.n_channels), np.float32)
        for layer in extractor.layers
    }

    def prepare(index: int) -> Prepared:
        return _prepare(extractor, pictures[index], index)

    size = extractor.batch_size
    n_readers = count_readers(on_gpu=extractor.device.type == "cuda")
    with reproducible(), ThreadPoolExecutor(n_readers) as readers:
        coming = readers.map(prepare, range(size)[: len(pictures)])
        for start in range(0, len(pictures), size):
            batch = list(coming)
            coming = readers.map(prepare, range(len(pictures))[start + size : start + 2 * size])
            try:
                features = extractor(batch)
            except NonFiniteFeaturesError as error:
                places = [start + index for index in error.indices]
                raise NonFiniteFeaturesError(error.layer, places, error.precision) from None
            for name, z in features.items():
                found[name][start : start + len(batch)] = z
    return found


def _prepare(extractor: Extractor, picture: Picture, index: int) -> Prepared:
    """Return an image as the extractor takes it; `index` is what errors call one without a path."""
    name = str(picture) if isinstance(picture, (str, Path)) else f"images[{index}]"
    prepared = extractor.transform(read_picture(picture, name), name)
    height, width = extractor.model.input_size
    if tuple(prepared.shape) not in {(3, height, width), (height, width, 3)}:
        raise ConfigError(
            f"transform: it made {tuple(prepared.shape)} of {name}, and {(3, height, width)} of another image; images "
            "of any size must become tensors of one size: let it resize or crop"
        )
    return prepared


def _require_own_features(
    extractor: Extractor, picture: Picture, found: Mapping[str, NDArray[np.float32]]
) -> None:
    """Raise ConfigError unless a module finds about the same in the first image when it is alone."""
    for name, alone in extractor([_prepare(extractor, picture, 0)]).items():
        size = float(np.linalg.norm(alone))
        difference = float(np.linalg.norm(alone[0] - found[name][0]))
        if difference > ALIKE[extractor.precision] * size:
            raise ConfigError(
                f"model: layer {name!r} differs for an image alone and among others (difference "
                f"{difference / max(size, 1e-30):.1g} of its norm), so its features also depend on other images or on "
                "chance; let the module normalise by statistics that it keeps, and draw no random numbers"
            )


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode within the block, and leave it on its device and in its mode."""
    training, device = [part for part in module.modules() if part.training], device_of(module)
    module.eval()
    try:
        yield
    finally:
        module.to(device)
        for part in training:
            part.training = True

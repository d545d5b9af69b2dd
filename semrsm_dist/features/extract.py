"""Features in memory: what a model computes from images, without a configuration or a run directory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BeforeValidator, Field
from torch import nn

from semrsm_dist.data.decode import decode, to_rgb
from semrsm_dist.data.opening import read_file
from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.features.extractor import ALIKE, Extractor, NonFiniteFeaturesError
from semrsm_dist.features.models import LoadedModel, Transform, adopt_module
from semrsm_dist.features.preprocessing import Prepared
from semrsm_dist.features.probing import device_of
from semrsm_dist.features.reproducible import reproducible
from semrsm_dist.features.spec import ModelSpec
from semrsm_dist.fields import AutoPair, Count, Section, Seed
from semrsm_dist.machine import count_readers

Picture: TypeAlias = "str | Path | Image.Image | NDArray[np.uint8]"

_LOADING = threading.Lock()
"""Held to read an object of Pillow, which may load its pixels only now, from a file that others share with it."""


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
    pictures = _as_pictures(images)
    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(_evaluating(model))
            device = given.device or str(device_of(model))
            source: ModelSpec | LoadedModel = adopt_module(
                model, given.input_size, given.transform, given.preprocessing
            )
        elif transform is not None:
            raise ConfigError(f"transform: model {model!r} brings its own preprocessing; leave transform out")
        else:
            device = given.device or "auto"
            source = ModelSpec(
                model, given.weights, given.input_size, given.seed, preprocessing=given.preprocessing
            )
        extractor = Extractor(
            source, given.layers, precision=given.precision, device=device, batch_size=given.batch_size
        )
        found = _extract_all(extractor, pictures)
        if isinstance(model, nn.Module):
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
    prepared = extractor.transform(_read(picture, name), name)
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


def _as_pictures(images: Sequence[Picture] | NDArray[np.uint8]) -> Sequence[Picture]:
    if isinstance(images, (str, Path)) and Path(images).is_dir():
        raise InputError(
            f"images: {str(images)!r} is a folder, but a sequence of images is expected: list its files, as "
            "sorted(Path(folder).rglob('*.jpg')) does"
        )
    if isinstance(images, (str, Path, Image.Image)):
        raise InputError(f"images: one {type(images).__name__}, but a sequence is expected: put it in a list")
    if isinstance(images, np.ndarray) and images.ndim != 4:
        remedy = {
            2: "give colour images, or repeat one grey channel",
            3: "of one image, give images[None]"
            if images.shape[-1:] == (3,)
            else "of grey images, give numpy.stack([images] * 3, axis=-1)",
        }.get(images.ndim, "give one image per entry of the first axis")
        raise InputError(f"images: an array of shape {images.shape}, but (N, H, W, 3) is expected: {remedy}")
    if not isinstance(images, Iterable):
        raise InputError(
            f"images: expected paths, PIL images or arrays in a sequence, or an array (N, H, W, 3), found "
            f"{type(images).__name__}"
        )
    pictures = list(images)
    if not pictures:
        raise InputError("images: none were given, so there is nothing to extract; check the list of paths")
    return pictures


def _read(picture: Picture, name: str) -> Image.Image:
    """Return an image as RGB."""
    try:
        if isinstance(picture, Image.Image):
            with _LOADING:
                return to_rgb(picture, name)
        if isinstance(picture, (str, Path)):
            return decode(read_file(Path(picture).expanduser()), name)
    except MemoryError:
        raise
    # Pillow raises whatever comes: for a file that is closed ValueError or, by its release, one of two others.
    except Exception as error:
        cause = getattr(error, "cause", "") or getattr(error, "strerror", "") or str(error)
        if isinstance(error, AttributeError | AssertionError):
            cause = "its file seems to be closed"
        raise InputError(
            f"image {name!r} cannot be read: {cause}. No features were computed: replace it or leave it out"
        ) from error
    if np.ma.is_masked(picture):
        raise InputError(
            f"{name}: some pixels are masked, and what lies below the mask is no part of the image: fill them"
        )
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        found = f"{array.dtype} {array.shape}: {_advise(array)}" if array.ndim else type(picture).__name__
        raise InputError(f"{name}: expected a path, a PIL image or a uint8 array (H, W, 3), found {found}")
    return Image.fromarray(array)


def _advise(array: NDArray[Any]) -> str:
    """Return how to make an RGB image of an array that is none."""
    if array.dtype != np.uint8:
        return "scale values to 0..255 and convert them with astype('uint8')"
    if array.ndim == 2:
        return "repeat the grey channel with numpy.stack([image] * 3, axis=-1)"
    if array.ndim != 3:
        return "give each image as an array of its own"
    if array.shape[2] in (1, 2):
        return "repeat the grey channel with image[..., :1].repeat(3, axis=2)"
    if array.shape[2] == 4:
        return "leave out the fourth channel with image[..., :3]"
    return (
        "put channels last with image.transpose(1, 2, 0)" if array.shape[0] == 3 else "choose three channels"
    )

"""The images that a caller hands to `extract`: paths, PIL images or arrays."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semrsm_dist.data.decode import decode, to_rgb
from semrsm_dist.data.opening import read_file
from semrsm_dist.errors import InputError

Picture: TypeAlias = "str | Path | Image.Image | NDArray[np.uint8]"

_LOADING = threading.Lock()
"""Held to read an object of Pillow, which may load its pixels only now, from a file that others share with it."""


def as_pictures(images: Sequence[Picture] | NDArray[np.uint8]) -> list[Picture]:
    """Return the images that a caller gave, or raise InputError where they are no sequence of some."""
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


def read_picture(picture: Picture, name: str) -> Image.Image:
    """Return an image as RGB; `name` is what errors call it."""
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

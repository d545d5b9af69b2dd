"""Ready-made features: the layout of arrays of representations, and reading them chunk by chunk.

Three shapes are understood, (N, S, C), (N, C, H, W) and (N, H, W, C); the last two become (N, H * W, C) in row-major
order of the positions. Numbers are taken as float16, float32 or float64, and as 8- and 16-bit integers, which
float32 holds exactly; wider integers, booleans, complex numbers and Python objects are refused, because
they could not be kept exactly or are not features. float64 is returned as it is: code that stores it in
fewer bits decides on the rounding. No torch here, and no Zarr: see `semrsm_dist.store.feature_source`.
"""

from __future__ import annotations

import hashlib
import math
import pickle
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from semrsm_dist.data.locations import file_of
from semrsm_dist.data.opening import require_file, require_input
from semrsm_dist.errors import ConfigError, InputError, did_you_mean, reason_of
from semrsm_dist.matching.representations import check_token_counts

_AXES = {
    "nsc": ("images", "positions", "channels"),
    "nchw": ("images", "channels", "height", "width"),
    "nhwc": ("images", "height", "width", "channels"),
}
LAYOUTS = ("auto", *_AXES)
_WIDEST = 8
"""A grid more than this many times as wide as high is taken for a sign of channels in the last axis."""

_DIGEST_BYTES = 2**20
"""What a digest reads at a time.

Three times as much is held: the mapped source, the arranged copy, and the copy before.
The driver must take less memory than a worker.
"""
_EXACT_INTEGERS = {np.dtype(t) for t in (np.int8, np.uint8, np.int16, np.uint16)}
_FLOATS = {np.dtype(t) for t in (np.float16, np.float32, np.float64)}


READ_ERRORS = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    pickle.UnpicklingError,
    safetensors.SafetensorError,
)
"""Errors that reading damaged files of any format raises."""

_CONVERT = {
    ".npz": "numpy.load(path)[name]",
    ".h5": "h5py.File(path)[name][:]",
}
"""What reads an array from files of other formats."""


@dataclass(frozen=True, slots=True)
class ArrayShape:
    """How an array on disk is read as (N, S, C): the order of its axes there, and the type of what is returned."""

    n_images: int
    n_tokens: int
    n_channels: int
    layout: str
    dtype: np.dtype[Any]

    def arrange(self, chunk: NDArray[Any]) -> NDArray[Any]:
        """Return a chunk in its layout on disk as a contiguous (T, S, C) copy of type `dtype`."""
        if self.layout == "nchw":
            chunk = chunk.reshape(len(chunk), self.n_channels, self.n_tokens).transpose(0, 2, 1)
        elif self.layout == "nhwc":
            chunk = chunk.reshape(len(chunk), self.n_tokens, self.n_channels)
        return np.array(chunk, dtype=self.dtype, order="C", copy=True, subok=False)


def interpret(where: str, shape: tuple[int, ...], dtype: np.dtype[Any], layout: str) -> ArrayShape:
    """Determine how an array is read, or refuse it.

    Parameters
    ----------
    where
        Name of the array in messages.
    shape, dtype
        Of the array on disk.
    layout
        "nsc" for (N, S, C), "nchw" for (N, C, H, W), "nhwc" for (N, H, W, C); "auto" takes (N, S, C) or (N, C, H, W)
        by the number of axes, and refuses what looks like (N, H, W, C).

    Raises
    ------
    ConfigError
        The layout is unknown.
    InputError
        The array is not of this layout, is empty, or does not hold real numbers.
    """
    if layout not in LAYOUTS:
        hint = did_you_mean(layout, LAYOUTS) or ";"
        raise ConfigError(f"unknown layout {layout!r}{hint} choose one of {', '.join(LAYOUTS)}")
    found = f"{where}: holds an array of shape {shape} and type {dtype}"
    wanted = [name for name in _AXES if layout in ("auto", name)]
    if len(shape) not in {len(_AXES[name]) for name in wanted}:
        shapes = " or ".join(f"({', '.join(_AXES[name])}) with layout: {name}" for name in wanted)
        one_vector = (
            len(shape) == 2 and "; with one vector per image there is nothing to match: reshape to (N, 1, C)"
        )
        raise InputError(f"{found}, but needed is {shapes}{one_vector or ''}")
    if 0 in shape:
        raise InputError(f"{found}: it is empty, so there is nothing to compare; check how it was written")
    if layout == "auto":
        if len(shape) == 4 and (shape[1] == shape[2] != shape[3] or shape[3] > _WIDEST * shape[2]):
            raise InputError(
                f"{found}, which looks like (images, height, width, channels): set layout: nhwc, or layout: nchw if "
                f"its grid really is {shape[2]} x {shape[3]} with {shape[1]} channels"
            )
        layout = "nchw" if len(shape) == 4 else "nsc"
    *grid, n_channels = (*shape[2:], shape[1]) if layout == "nchw" else shape[1:]
    return ArrayShape(shape[0], math.prod(grid), n_channels, layout, _read_type(found, dtype))


def is_read_as(requested: str, layout: str) -> bool:
    """Return whether `interpret`, with a requested layout, may read an array in this layout."""
    return requested == layout or (requested == "auto" and layout != "nhwc")


def _read_type(found: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    native = dtype if dtype.kind == "T" else dtype.newbyteorder("=")  # text of any length has no byte order
    if native in _FLOATS:
        return native
    if native in _EXACT_INTEGERS:
        return np.dtype(np.float32)
    raise InputError(
        f"{found}, which is not taken for features; store real numbers as float16, float32 or float64, or integers of "
        "8 or 16 bits: for instance with array.astype('float32')"
    )


class FeatureArray(ABC):
    """Representations of N images in a file, read a chunk at a time.

    Parameters
    ----------
    path
        Where the array is.
    shape, dtype
        Of the array on disk.
    layout
        See `interpret`.

    Attributes
    ----------
    n_images, n_tokens, n_channels
        N, S, C.
    dtype
        Type of what `read` returns: float16, float32 or float64.
    layout
        The order of the axes on disk: "nsc", "nchw" or "nhwc".
    images_together
        Images that the format stores as one piece: reading one costs as much as reading all.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], layout: str) -> None:
        self.path = path
        self._shape = interpret(str(path), shape, dtype, layout)
        self.n_images, self.n_tokens = self._shape.n_images, self._shape.n_tokens
        self.n_channels, self.dtype = self._shape.n_channels, self._shape.dtype
        self.layout = self._shape.layout
        self.images_together = 1

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return images start..stop-1 as a contiguous (T, S, C) array of its own; nothing else is loaded.

        Raises InputError if the range is not inside the array, where slicing would silently shorten it; or it cannot be
        read.
        """
        if not 0 <= start <= stop <= self.n_images:
            raise InputError(
                f"{self.path}: images {start} to {stop} were requested, but there are {self.n_images}"
            )
        if start == stop:
            return np.empty((0, self.n_tokens, self.n_channels), self.dtype)
        try:
            chunk = self._read_images(start, stop)
        except InputError:
            raise
        except READ_ERRORS as error:
            raise InputError(
                f"{self.path}: cannot be read ({reason_of(error)}); was it changed during the run?"
            ) from error
        return self._shape.arrange(chunk)

    def digest(self, token_counts: NDArray[np.int64] | None = None) -> str:
        """Return the SHA-256 of shape, type and numbers, the same for equal features in any file format.

        The array is read once, in bounded chunks. What lies beyond an image's tokens, by (N,) token counts, is taken
        for zeros.
        """
        digest = hashlib.sha256(f"{self.n_images} {self.n_tokens} {self.n_channels} {self.dtype}\n".encode())
        step = max(1, _DIGEST_BYTES // (self.n_tokens * self.n_channels * self.dtype.itemsize))
        step = -(-step // self.images_together) * self.images_together
        for start in range(0, self.n_images, step):
            z = self.read(start, min(start + step, self.n_images))
            if token_counts is not None:
                z[np.arange(self.n_tokens) >= token_counts[start : start + step, None]] = 0
            digest.update(z.data)
        return digest.hexdigest()

    def signature(self) -> str:
        """Return something cheap that changes when the file does (sizes and times), for caching the digest."""
        stat = file_of(self.path).stat()
        return f"file {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"

    @abstractmethod
    def _read_images(self, start: int, stop: int) -> NDArray[Any]:
        """Return some images in their layout on disk."""


class NpyFeatures(FeatureArray):
    """Features in a `.npy` file; each chunk is mapped alone, so memory does not grow with the file."""

    def __init__(self, path: Path, layout: str = "auto") -> None:
        mapped = map_npy(path)
        self._disk_shape: tuple[int, ...] = mapped.shape
        self._disk_dtype = mapped.dtype
        self._offset = int(mapped.offset)
        self._fortran = not mapped.flags.c_contiguous
        super().__init__(path, mapped.shape, mapped.dtype, layout)

    def _read_images(self, start: int, stop: int) -> NDArray[Any]:
        require_file(self.path)  # it may be another by now
        if self._fortran:  # an image is spread over the whole file
            whole = np.memmap(
                self.path, self._disk_dtype, "r", self._offset, shape=self._disk_shape, order="F"
            )
            return whole[start:stop]
        shape = (stop - start, *self._disk_shape[1:])
        offset = self._offset + start * math.prod(self._disk_shape[1:]) * self._disk_dtype.itemsize
        return np.memmap(self.path, self._disk_dtype, "r", offset, shape=shape)


def map_npy(path: Path) -> np.memmap[Any, Any]:
    """Return the array of a `.npy` file without reading it, or raise InputError if it is not one."""
    require_input(path)
    if path.suffix in _CONVERT:
        raise InputError(
            f"{path}: features are read from .npy, .safetensors and .pt files and Zarr arrays, not from {path.suffix} "
            f"files; convert it once with numpy.save('features.npy', {_CONVERT[path.suffix]})"
        )
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        reason = "Python objects are not loaded" if "pickle" in str(error) else reason_of(error)
        raise InputError(
            f"{path}: not a .npy file of numbers, or not complete ({reason}); write it with numpy.save"
        ) from error
    if not isinstance(mapped, np.memmap):
        if hasattr(mapped, "close"):
            mapped.close()
        raise InputError(f"{path}: an archive of several arrays; save one array with numpy.save")
    return mapped


def load_token_counts(path: Path | None, n_images: int, n_tokens: int) -> NDArray[np.int64]:
    """Return the (N,) token counts of a `.npy` file, or S for all images if there is none.

    Raises InputError if the file cannot be read, or does not hold N whole numbers from 1 to S.
    """
    if path is None:
        return np.full(n_images, n_tokens, np.int64)
    try:
        return check_token_counts(np.array(map_npy(path)), n_images, n_tokens)
    except InputError as error:
        raise type(error)(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def hash_token_counts(token_counts: NDArray[np.int64]) -> str:
    """Return the SHA-256 of (N,) token counts, in hexadecimal digits."""
    return hashlib.sha256(token_counts.tobytes()).hexdigest()

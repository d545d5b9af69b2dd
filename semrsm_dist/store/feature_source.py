"""Opening ready-made features, whatever their format: `.npy` files and Zarr arrays.

Here and not beside the `.npy` reader because this room is the one that knows Zarr.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.errors
from numpy.typing import NDArray

from semrsm_dist.errors import InputError, did_you_mean
from semrsm_dist.features.arrays import FeatureArray, NpyFeatures, interpret

_logger = logging.getLogger(__name__)

_OPEN_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    RuntimeError,
    ImportError,
    zarr.errors.BaseZarrError,
)
_LARGE_CHUNK_BYTES = 512 * 2**20


def open_array(path: str | Path, layout: str = "auto") -> FeatureArray:
    """Open ready-made features for reading chunk by chunk.

    Parameters
    ----------
    path
        A `.npy` file; or a Zarr array (format 2 or 3), alone or inside a group (`store.zarr/group/array`), as a
        local path or a URI that zarr can open.
    layout
        "nsc" for (N, S, C), "nchw" for (N, C, H, W), "auto" to tell by the number of axes.

    Raises
    ------
    ConfigError
        The layout is unknown.
    InputError
        Nothing is there, or not an array of features; the message says what was found.
    """
    text = os.fspath(path)
    if "://" in text:
        return ZarrFeatures(text, layout)
    local = Path(text).expanduser()
    if local.is_file() or local.suffix in (".npy", ".npz"):
        return NpyFeatures(local, layout)
    return ZarrFeatures(local, layout)


class ZarrFeatures(FeatureArray):
    """Features in a Zarr array. A chunk costs the chunks that it touches, each decoded as a whole.

    Parameters
    ----------
    path
        Of the array, or of the array inside a group.
    layout
        See `open_array`.

    Raises
    ------
    InputError
        There is no array, or it does not hold features.
    """

    def __init__(self, path: str | Path, layout: str = "auto") -> None:
        self._array = _open_zarr(path)
        dtype = np.dtype(self._array.dtype)
        super().__init__(path, interpret(str(path), self._array.shape, dtype, layout))
        _warn_of_large_chunks(str(path), self._array.chunks, dtype.itemsize)

    @property
    def images_together(self) -> int:
        """Images of a chunk."""
        return int(self._array.chunks[0])

    def signature(self) -> str:
        """Return a hash of names, sizes and times of the array's files; of its metadata if it is remote."""
        if isinstance(self.path, str):
            return f"zarr {hashlib.sha256(repr(self._array.metadata).encode()).hexdigest()}"
        digest = hashlib.sha256()
        for file in sorted(self.path.rglob("*")):
            if file.is_file():
                stat = file.stat()
                times = f"{stat.st_mtime_ns} {stat.st_ctime_ns}"
                digest.update(f"{file.relative_to(self.path)} {stat.st_size} {times}\n".encode())
        return f"zarr {digest.hexdigest()}"

    def _read_images(self, start: int, stop: int) -> NDArray[Any]:
        try:
            return np.asarray(self._array[start:stop])
        except _OPEN_ERRORS as error:
            raise InputError(
                f"{self.path}: images {start} to {stop} cannot be decoded ({error}); the array is damaged there: "
                "write it again"
            ) from error


@functools.cache  # an array is opened for every chunk; once is enough to be told
def _warn_of_large_chunks(path: str, chunks: tuple[int, ...], itemsize: int) -> None:
    chunk_bytes = math.prod(chunks) * itemsize
    if chunk_bytes > _LARGE_CHUNK_BYTES:
        _logger.warning(
            "%s: its chunks %s hold %.1f GB each, and reading any image decodes a whole chunk; "
            "write it again with a few hundred images a chunk",
            path,
            chunks,
            chunk_bytes / 1e9,
        )


def _open_zarr(path: str | Path) -> zarr.Array[Any]:
    if isinstance(path, Path) and not path.exists():
        raise InputError(f"{path}: nothing is there{_nearby(path)}")
    try:
        node = zarr.open(store=path, mode="r")
    except _OPEN_ERRORS as error:
        raise InputError(
            f"{path}: neither a .npy file nor a Zarr array ({error}); give the path of an array of (N, S, C) or "
            "(N, C, H, W)"
        ) from error
    if isinstance(node, zarr.Group):
        arrays = ", ".join(f"{name} {array.shape}" for name, array in node.arrays()) or "none"
        raise InputError(
            f"{path}: a Zarr group, not an array; add the name of an array in it (there are: {arrays})"
        )
    return node


def _nearby(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(path.name, siblings)

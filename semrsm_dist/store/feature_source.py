"""Opening ready-made features, whatever their format: `.npy` files, files of tensors, and Zarr arrays.

It is in this room, not beside the `.npy` reader, since only this room imports Zarr.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.errors
from numpy.typing import NDArray
from zarr.storage import ZipStore

from semrsm_dist.data.locations import file_of
from semrsm_dist.errors import InputError, MissingInputError, did_you_mean
from semrsm_dist.features.arrays import FeatureArray, NpyFeatures
from semrsm_dist.features.tensors import SafetensorsFeatures, TensorFeatures, TorchFeatures
from semrsm_dist.store.paths import FolderStore

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
_TENSORS: dict[str, type[TensorFeatures]] = {
    ".safetensors": SafetensorsFeatures,
    ".pt": TorchFeatures,
    ".pth": TorchFeatures,
}
_LARGE_CHUNK_BYTES = 512 * 2**20


def open_array(path: str | Path, layout: str = "auto", layer: str | None = None) -> FeatureArray:
    """Open ready-made features for reading chunk by chunk.

    Parameters
    ----------
    path
        A `.npy` file; a tensor of a `.safetensors`, `.pt` or `.pth` file (`features.pt/name`); a Zarr array (format 2
        or 3), alone or inside a group (`store.zarr/group/array`), as a local path; a `.zip` file of Zarr with an array
        at its root; or a folder of thingsvision, with `features.npy` or `features.pt`.
    layout
        "nsc", "nchw", "nhwc" or "auto", see `semrsm_dist.features.arrays.interpret`.
    layer
        The tensor to take from a file of several, if the path names none.

    Raises
    ------
    ConfigError
        The layout is unknown.
    InputError
        There is nothing, or no array of features; the message says what was found.
    """
    local = Path(path).expanduser()
    local = next((file for file in (local / "features.npy", local / "features.pt") if file.is_file()), local)
    if (kind := _TENSORS.get(file_of(local).suffix)) and not local.is_dir():
        return kind(local, layout, layer)
    if local.suffix in (".npy", ".npz") or (local.is_file() and local.suffix != ".zip"):
        return NpyFeatures(local, layout)
    return ZarrFeatures(local, layout)


class ZarrFeatures(FeatureArray):
    """Features in a Zarr array, of which every chunk must be there: Zarr reads missing ones as its fill value.

    Reading images costs the chunks that they touch, each decoded as a whole. Raises InputError if there is no array, it
    does not hold features, or, on reading, a chunk is missing.
    """

    def __init__(self, path: Path, layout: str = "auto") -> None:
        self._root = path
        self._array = _open_zarr(path)
        dtype = np.dtype(self._array.dtype)
        super().__init__(path, self._array.shape, dtype, layout)
        self.images_together = int(self._array.chunks[0])
        _warn_of_large_chunks(str(path), self._array.chunks, dtype.itemsize)

    def signature(self) -> str:
        """Return a hash of names, sizes and times of the array's files."""
        digest = hashlib.sha256()
        for file in (self._root, *sorted(self._root.rglob("*"))):
            if file.is_file():
                stat = file.stat()
                times = f"{stat.st_mtime_ns} {stat.st_ctime_ns}"
                digest.update(f"{file.relative_to(self._root)} {stat.st_size} {times}\n".encode())
        return f"zarr {digest.hexdigest()}"

    def _read_images(self, start: int, stop: int) -> NDArray[Any]:
        try:
            block = np.asarray(self._array[start:stop])
            missing = self._find_missing(block, start)
        except _OPEN_ERRORS as error:
            raise InputError(
                f"{self.path}: images {start} to {stop} cannot be decoded ({error}); the array is damaged there: "
                "write it again"
            ) from error
        if missing is not None:
            raise InputError(
                f"{self.path}: chunk {missing} is missing; Zarr reads it as {self._array.fill_value}, and similarities "
                "would be wrong, so nothing was taken: write the array again, with write_empty_chunks=True if this "
                "chunk holds nothing else"
            )
        return block

    def _find_missing(self, block: NDArray[Any], start: int) -> tuple[int, ...] | None:
        """Return the position of a chunk that is missing from images that were read, from `start` on.

        Whatever keeps the chunks, single files, shards, an archive or a remote store: the numbers of a missing chunk
        follow the array's fill value. Only chunks of a single value are read again with another one.
        """
        limits = ((start, start + len(block)), *((0, length) for length in self._array.shape[1:]))
        cuts = [
            [
                (i, max(i * size, first), min((i + 1) * size, last))
                for i in range(first // size, -(-last // size))
            ]
            for (first, last), size in zip(limits, self._array.chunks, strict=True)
        ]
        for spans in itertools.product(*cuts):
            region = tuple(slice(first, last) for _, first, last in spans)
            part = block[(slice(region[0].start - start, region[0].stop - start), *region[1:])]
            is_constant = (part == part.flat[0]).all() or np.isnan(part).all()
            if is_constant and not np.array_equal(part, self._refilled[region], equal_nan=True):
                return tuple(index for index, _, _ in spans)
        return None

    @functools.cached_property
    def _refilled(self) -> zarr.Array[Any]:
        """The array with another fill value."""
        fill = np.dtype(self._array.dtype).type(0 if self._array.fill_value else 1)
        metadata = dataclasses.replace(self._array.metadata, fill_value=fill)
        return zarr.Array(zarr.AsyncArray(metadata, self._array.store_path))


@functools.cache  # an array is opened for every chunk; one warning is enough
def _warn_of_large_chunks(path: str, chunks: tuple[int, ...], itemsize: int) -> None:
    chunk_bytes = math.prod(chunks) * itemsize
    if chunk_bytes > _LARGE_CHUNK_BYTES:
        _logger.warning(
            "%s: its chunks %s hold %.1f GB each, and reading any image decodes a whole chunk; "
            "write it again with a few hundred images per chunk",
            path,
            chunks,
            chunk_bytes / 1e9,
        )


def _open_zarr(path: Path) -> zarr.Array[Any]:
    if not path.exists():
        raise MissingInputError(f"{path}: nothing is there{_nearby(path)}")
    is_zip = path.suffix == ".zip" and path.is_file()
    try:
        node = zarr.open(store=ZipStore(path) if is_zip else FolderStore(path), mode="r")
    except _OPEN_ERRORS as error:
        raise InputError(
            f"{path}: neither a .npy file, a file of tensors nor a Zarr array ({error}); give the path of an array of "
            "(N, S, C), (N, C, H, W) or (N, H, W, C)"
        ) from error
    if isinstance(node, zarr.Group) and is_zip:
        raise InputError(
            f"{path}: a zip file of a Zarr group, of which no array is taken; unpack it, and give the path of an array"
        )
    if isinstance(node, zarr.Group):
        arrays = ", ".join(f"{name} {array.shape}" for name, array in node.arrays()) or "none"
        raise InputError(
            f"{path}: a Zarr group, not an array; add the name of an array in it (there are: {arrays})"
        )
    return node


def _nearby(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(path.name, siblings)

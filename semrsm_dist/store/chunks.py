"""Zarr arrays in which a chunk is written once, whole, by one writer.

A chunk that is present and decodable is finished work. Writes go to a temporary name and are renamed (Zarr's
local store does that), so a killed writer leaves no half chunk under a chunk's name; checksums turn a
flipped bit into an error on reading.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.errors
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from semrsm_dist.errors import StorageError

zarr.config.set({"async.concurrency": 2, "threading.max_workers": 2})

DECODING_ERRORS = (ValueError, RuntimeError, OSError, TypeError, EOFError)
"""What the codecs raise for damaged bytes."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a full or read-only file system raises in this block into an error that names `path`.

    Raises
    ------
    StorageError
        For any OSError that is not one already.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}); what was computed so far is kept: make room or "
            "make it writable, then start the same command"
        ) from error


def create_group(root: Path, name: str) -> zarr.Group:
    """Open a group below a root, making it and all groups above it, so that the root opens as a whole.

    Raises
    ------
    StorageError
        If it cannot be made.
    """
    with writing(root / name):
        for folder in (root, *(root / parent for parent in reversed(Path(name).parents[:-1]))):
            zarr.open_group(folder, mode="a", use_consolidated=False)
        return zarr.open_group(root / name, mode="a", use_consolidated=False)


def create_array(
    group: Path,
    name: str,
    *,
    shape: Sequence[int],
    chunks: Sequence[int],
    dtype: str,
    dimension_names: Sequence[str],
    attributes: dict[str, Any] | None = None,
) -> zarr.Array[Any]:
    """Create an array, or open it where it exists with the same shape, chunks and type.

    Parameters
    ----------
    group
        Directory of the Zarr group.
    name
        Path of the array inside the group.
    shape, chunks, dtype, dimension_names
        As in Zarr. Missing chunks of floating-point arrays read as NaN.
    attributes
        JSON attributes of a new array.

    Raises
    ------
    StorageError
        If it cannot be created, or one of another shape is there.
    """
    existing = _open_if_there(group, name)
    if existing is not None:
        found = (existing.shape, existing.chunks, str(existing.dtype))
        wanted = (tuple(shape), tuple(chunks), dtype)
        if found != wanted:
            raise StorageError(
                f"{group / name}: an array of shape, chunks and type {found} is there, {wanted} is needed; nothing "
                "was overwritten: start a new run directory"
            )
        return existing
    with writing(group / name):
        array = zarr.open_group(group, mode="a").create_array(
            name,
            shape=tuple(shape),
            chunks=tuple(chunks),
            dtype=dtype,
            fill_value=np.nan,
            compressors=[ZstdCodec(level=3), Crc32cCodec()],
            dimension_names=tuple(dimension_names),
            attributes=attributes,
        )
    return array.with_config({"write_empty_chunks": True})


def open_array(group: Path, name: str) -> zarr.Array[Any]:
    """Open an array for reading and for writing whole chunks.

    Raises
    ------
    StorageError
        If it is not there.
    """
    array = _open_if_there(group, name)
    if array is None:
        raise StorageError(
            f"{group / name}: no such array; the run is incomplete or damaged: start the same command"
        )
    return array


def write_chunk(array: zarr.Array[Any], index: Sequence[int], values: NDArray[Any]) -> None:
    """Write one whole chunk.

    Parameters
    ----------
    array
        An array of `create_array`.
    index
        Position of the chunk in the chunk grid.
    values
        The chunk's content, of the chunk's shape and of the array's type.

    Raises
    ------
    ValueError
        If shape or type do not fit: Zarr would broadcast or cast without a word.
    OSError
        As the file system raises it.
    """
    region = chunk_region(array, index)
    expected = tuple(part.stop - part.start for part in region)
    if values.shape != expected or values.dtype != array.dtype:
        raise ValueError(
            f"chunk {tuple(index)} of {array.path} takes {array.dtype} of shape {expected}, "
            f"not {values.dtype} of shape {values.shape}"
        )
    array[region] = values


def read_chunk(array: zarr.Array[Any], index: Sequence[int]) -> NDArray[Any]:
    """Read one whole chunk.

    Raises
    ------
    StorageError
        If its bytes are damaged, naming the file.
    """
    return read_region(array, chunk_region(array, index))


def read_region(array: zarr.Array[Any], region: tuple[slice, ...]) -> NDArray[Any]:
    """Read a region of an array.

    Raises
    ------
    StorageError
        If a chunk in it is damaged.
    """
    try:
        return np.asarray(array[region])
    except DECODING_ERRORS as error:
        spans = ", ".join(f"{part.start}:{part.stop}" for part in region)
        raise StorageError(
            f"{_location(array)}[{spans}]: the stored bytes are damaged ({error}); results that need them "
            "cannot be computed: delete the damaged chunk file under this array's folder and start the same command, "
            "which computes it again"
        ) from error


def chunk_region(array: zarr.Array[Any], index: Sequence[int]) -> tuple[slice, ...]:
    """Return the part of an array that a chunk covers, cut at the array's end."""
    return tuple(
        slice(position * size, min((position + 1) * size, length))
        for position, size, length in zip(index, array.chunks, array.shape, strict=True)
    )


def list_chunks(group: Path, name: str) -> set[tuple[int, ...]]:
    """Return the chunk-grid positions of all chunks that are present, from one walk over the array's folder."""
    root = group / name / "c"
    present = set()
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        if all(part.isdigit() for part in parts) and path.is_file():
            present.add(tuple(int(part) for part in parts))
    return present


def is_decodable(array: zarr.Array[Any], index: Sequence[int]) -> bool:
    """Tell whether a chunk that is present can be read."""
    try:
        read_chunk(array, index)
    except StorageError:
        return False
    return True


def delete_chunk(group: Path, name: str, index: Sequence[int]) -> None:
    """Remove a damaged chunk, so that it counts as missing."""
    group.joinpath(name, "c", *(str(part) for part in index)).unlink()


def _open_if_there(group: Path, name: str) -> zarr.Array[Any] | None:
    try:
        array = zarr.open_array(group / name, mode="r+")
    except (FileNotFoundError, zarr.errors.NodeNotFoundError, zarr.errors.ContainsGroupError):
        return None
    except PermissionError:
        array = zarr.open_array(group / name, mode="r")
    return array.with_config({"write_empty_chunks": True})


def _location(array: zarr.Array[Any]) -> str:
    return str(array.store_path).removeprefix("file://")

"""Chunks of Zarr arrays, each written once, whole, by one writer.

A chunk that is there, can be decoded and is labelled as the one that belongs there
(`semrsm_dist.store.chunk_labels`) is finished work. Writes go to a temporary name and are renamed (Zarr's local store
does that), so a killed writer leaves no half chunk under a chunk's name; checksums turn a flipped bit into an error on
reading.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from semrsm_dist.errors import StorageError, UnreadableFileError, first_line
from semrsm_dist.store import paths
from semrsm_dist.store.chunk_labels import read_label
from semrsm_dist.store.paths import RunPath

DECODING_ERRORS = (ValueError, RuntimeError, TypeError, EOFError)
"""Errors that the codecs raise for damaged bytes."""

THREADS = 4
"""Threads in which many chunks are read to find damaged ones; each holds one."""

MISSING, FOREIGN = "is missing", "is not the one that belongs here"
"""Faults of a chunk, or how they begin; of any other, its bytes are damaged."""


def limit_threads() -> AbstractContextManager[object]:
    """Keep Zarr to two threads from now on, and, as a context, until its end.

    Zarr reads and decodes with many threads in every process, and there is a worker on every CPU already. The setting
    is the process's: several threads read and write at once, so it cannot be put around a single read or write.
    """
    setting: AbstractContextManager[object] = zarr.config.set(
        {"async.concurrency": 2, "threading.max_workers": 2}
    )
    return setting


class DamagedChunkError(StorageError):
    """A chunk is missing, cannot be decoded, or is not the one that belongs there: `fault` says which."""

    def __init__(self, file: RunPath, fault: str) -> None:
        self.file, self.fault = file, fault
        super().__init__(
            f"{file}: this chunk {fault}; results that need it cannot be computed: start the run's command (semrsm run "
            "...), which computes it again, or semrsm verify --repair, which also finds damage that left a file's size "
            "and time as they were"
        )

    def __reduce__(self) -> tuple[type[DamagedChunkError], tuple[RunPath, str]]:
        return DamagedChunkError, (self.file, self.fault)


def write_chunk(array: zarr.Array[Any], index: Sequence[int], values: NDArray[Any]) -> None:
    """Write one whole chunk. A folder in the place of its file, or a file in that of its folder, is moved aside.

    Raises
    ------
    ValueError
        If shape or type do not fit, or there is no such chunk: Zarr would silently broadcast or cast.
    OSError
        As the file system raises it.
    """
    region = chunk_region(array, index)
    expected = tuple(part.stop - part.start for part in region)
    if values.shape != expected or values.dtype != array.dtype:
        raise ValueError(
            f"chunk {tuple(index)} of {paths.path_of(array)} takes {array.dtype} of shape {expected}, "
            f"not {values.dtype} of shape {values.shape}"
        )
    try:
        array[region] = values
    except (IsADirectoryError, NotADirectoryError, FileExistsError):
        folder = paths.path_of(array)
        parts = ("c", *map(str, index))
        places = (folder.joinpath(*parts[: depth + 1]) for depth in range(len(parts)))
        for place, is_chunk in zip(places, [*(False for _ in index), True], strict=True):
            paths.make_way(place, for_folder=not is_chunk)
        array[region] = values


def read_chunk(array: zarr.Array[Any], index: Sequence[int]) -> NDArray[Any]:
    """Read one whole chunk; raises what `read_region` raises."""
    return read_region(array, chunk_region(array, index))


def read_region(array: zarr.Array[Any], region: tuple[slice, ...]) -> NDArray[Any]:
    """Read a region of an array.

    Raises
    ------
    DamagedChunkError
        If a chunk in it is missing, cannot be decoded, or is another one.
    UnreadableFileError
        If the file system cannot read it, or this process lacks what decoding it takes.
    """
    spans = (
        range(part.start // size, -(-min(part.stop, length) // size))
        for part, size, length in zip(region, array.chunks, array.shape, strict=True)
    )
    touched = list(itertools.product(*spans))
    folder = paths.path_of(array)
    try:
        for index in touched:
            file = _chunk_path(folder, index)
            if not paths.is_file(file):  # it would read as fill values, like a result
                raise DamagedChunkError(file, MISSING)
        return np.asarray(array[region])
    except DECODING_ERRORS as error:
        for index in touched[1:] and touched:  # of several chunks, it is the first that cannot be read alone
            read_chunk(array, index)
        file = _chunk_path(folder, touched[0])
        if isinstance(error, RuntimeError) and _is_intact(file):
            raise UnreadableFileError(
                f"{file}: cannot be decoded ({first_line(error)}), although its bytes are intact; nothing was changed: "
                "use fewer workers (--workers) or raise the limits of memory and threads, then repeat the command; if "
                "that is no help, remove this file, which is then computed again"
            ) from error
        raise DamagedChunkError(file, f"holds damaged bytes ({_describe_damage(error)})") from error
    except StorageError:
        raise
    except OSError as error:
        raise UnreadableFileError(
            f"{error.filename or folder}: cannot be read ({error.strerror or error}); results that need it cannot be "
            "computed: check the disk and the permissions, then repeat the command"
        ) from error


def chunk_region(array: zarr.Array[Any], index: Sequence[int]) -> tuple[slice, ...]:
    """Return the part of an array that a chunk covers, cut at the array's end.

    Raises ValueError if the array has no such chunk.
    """
    grid = tuple(-(-length // size) for length, size in zip(array.shape, array.chunks, strict=True))
    if len(index) != len(grid) or not all(0 <= position < n for position, n in zip(index, grid, strict=True)):
        raise ValueError(f"{array.store_path} has {grid} chunks, but no chunk {tuple(index)}")
    return tuple(
        slice(position * size, min((position + 1) * size, length))
        for position, size, length in zip(index, array.chunks, array.shape, strict=True)
    )


def list_chunks(group: RunPath, name: str) -> set[tuple[int, ...]]:
    """Return the chunk-grid positions of all chunks that are present, from one walk over the array's folder."""
    present = set()
    for file in paths.list_files(group / name / "c"):
        parts = file.split("/")
        if all(part.isdecimal() for part in parts):
            present.add(tuple(int(part) for part in parts))
    return present


def find_fault(array: zarr.Array[Any], index: Sequence[int]) -> str | None:
    """Return what is wrong with a chunk: it is missing, damaged or another one; None if nothing is.

    Raises UnreadableFileError if the file system cannot read it, which says nothing about the chunk.
    """
    try:
        read_chunk(array, index)
    except DamagedChunkError as error:
        return error.fault
    return None


def find_damaged(array: zarr.Array[Any], indices: Iterable[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """Return those of some chunks that are missing, damaged or others, as `find_fault` does, read in a few threads."""
    grid = array.cdata_shape
    known = [
        index
        for index in indices
        if len(index) == len(grid) and all(place < n for place, n in zip(index, grid, strict=True))
    ]
    with ThreadPoolExecutor(THREADS) as pool:
        faults = pool.map(partial(find_fault, array), known)
        return {index for index, fault in zip(known, faults, strict=True) if fault}


def delete_chunk(group: RunPath, name: str, index: Sequence[int]) -> None:
    """Remove a damaged chunk, so that it counts as missing; raises StorageError if it cannot be removed."""
    file = _chunk_path(group / name, index)
    with paths.writing(file):
        paths.remove_file(file)


def _is_intact(file: RunPath) -> bool:
    """Return whether a chunk's bytes are those that were written, so that something else keeps it from being decoded.

    For lack of threads or memory, Zarr and its codecs raise the same type of error as for damaged bytes.
    """
    try:
        return read_label(paths.read_file(file)) is not None
    except OSError:
        return True  # as far as anybody knows


def _describe_damage(error: Exception) -> str:
    """Return why a codec could not decode a chunk; that of checksums quotes bytes, which tell people nothing."""
    return "its checksum is wrong" if "checksum" in str(error) else first_line(error)


def _chunk_path(array: RunPath, index: Sequence[int]) -> RunPath:
    return array.joinpath("c", *map(str, index))

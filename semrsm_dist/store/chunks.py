"""Zarr arrays in which a chunk is written once, whole, by one writer.

A chunk that is there, can be decoded and is labelled as the one that belongs there (`semrsm_dist.store.labels`) is
finished work. Writes go to a temporary name and are renamed (Zarr's local store does that), so a killed writer leaves
no half chunk under a chunk's name; checksums turn a flipped bit into an error on reading.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import zarr
import zarr.errors
from numpy.typing import DTypeLike, NDArray
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore, StorePath

from semrsm_dist.data.opening import NOT_THERE, NotAFileError
from semrsm_dist.errors import StorageError, UnreadableFileError, first_line, reason_of
from semrsm_dist.store import paths
from semrsm_dist.store.labels import ORIGIN, LabellingStore, read_label
from semrsm_dist.store.paths import RunPath

DECODING_ERRORS = (ValueError, RuntimeError, TypeError, EOFError)
"""Errors that the codecs raise for damaged bytes."""

COMPRESSORS = (ZstdCodec(level=3), Crc32cCodec())
"""With a checksum: a flipped bit is an error when the chunk is read."""

_ENVELOPE = (ZstdCodec(level=-100), Crc32cCodec())
"""Hardly compresses, in hardly any time: it is there for the label, for which the format of Blosc has no room."""

SHUFFLED = (BloscCodec(cname="zstd", clevel=3, shuffle=BloscShuffle.shuffle), *_ENVELOPE)
"""As above, for similar numbers: sign and exponent of all first, then the rest."""

FAST = (BloscCodec(cname="lz4", clevel=3, shuffle=BloscShuffle.bitshuffle), *_ENVELOPE)
"""As above, in a tenth of the time, for 4 % more bytes: for what workers write all the time."""

THREADS = 4
"""Threads in which many chunks are read to find damaged ones; each holds one."""

LOOKED_AT = 8
"""Chunks that are read to tell a damaged description from that of another array."""

log = logging.getLogger(__name__)

METADATA_ERRORS = (ValueError, TypeError, KeyError, AttributeError)
"""Errors that Zarr raises for a `zarr.json` that is truncated or invalid."""


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


MISSING, FOREIGN = "is missing", "is not the one that belongs here"
"""Faults of a chunk, or how they begin; of any other, its bytes are damaged."""


class DamagedDescriptionError(StorageError):
    """A `zarr.json` is not what should be in its place."""


def create_group(root: RunPath, name: str) -> zarr.Group:
    """Open a group below a root, making it and all groups above it, so that the root opens as a whole.

    A damaged description is written anew, without attributes.

    Raises
    ------
    StorageError
        If it cannot be made.
    """
    with paths.writing(root / name):
        parts = name.split("/")
        for folder in (root, *(root.joinpath(*parts[: depth + 1]) for depth in range(len(parts)))):
            group = _make_group(folder)
        return group


def _make_group(folder: RunPath) -> zarr.Group:
    file, problem = folder / "zarr.json", "not the description of a group"
    paths.make_way(folder, for_folder=True)
    paths.make_way(file)
    try:
        if not paths.is_file(file) or _is_group(read_description(folder)):
            with reading_metadata(folder):
                return zarr.open_group(paths.zarr_store(folder), mode="a", use_consolidated=False)
    except (DamagedDescriptionError, zarr.errors.ContainsArrayError) as error:
        problem = str(error.__cause__ or error)
    log.warning("%s: damaged (%s); it is written anew", file, problem)
    paths.remove_file(file)
    return zarr.open_group(paths.zarr_store(folder), mode="a", use_consolidated=False)


def _is_group(description: Mapping[str, Any]) -> bool:
    """Return whether a description is that of a group; Zarr passes over names that it does not know."""
    kept = {name: description[name] for name in description.keys() - {"attributes", "consolidated_metadata"}}
    return kept == {"zarr_format": 3, "node_type": "group"}


def read_attributes(group: RunPath) -> dict[str, Any]:
    """Return the attributes of a group; none if it is not there or its description is damaged."""
    attributes: dict[str, Any] = read_description(group).get("attributes", {})
    return attributes


def read_description(node: RunPath) -> dict[str, Any]:
    """Return the description of an array or a group as it is written; empty if it is missing or damaged.

    Raises
    ------
    UnreadableFileError
        If the file system cannot read it.
    """
    file = node / "zarr.json"
    try:
        description = json.loads(paths.read_file(file))
    except (*NOT_THERE, ValueError, RecursionError):
        return {}
    except OSError as error:
        raise UnreadableFileError(
            f"{file}: cannot be read ({error.strerror or error}); nothing was changed: check the disk and the "
            "permissions, then repeat the command"
        ) from error
    is_object = isinstance(description, dict) and isinstance(description.get("attributes"), dict)
    return description if is_object else {}


def create_array(
    group: RunPath,
    name: str,
    *,
    dimensions: Mapping[str, tuple[int, int]],
    dtype: DTypeLike,
    origin: str,
    attributes: dict[str, Any] | None = None,
    compressors: Sequence[Any] = COMPRESSORS,
) -> zarr.Array[Any]:
    """Create an array, or open it where it exists with the same description.

    A damaged description is written anew; the chunks are kept.

    Parameters
    ----------
    dimensions
        The length of each dimension, and that of a chunk, by its name.
    origin
        What the chunks' labels name; see `semrsm_dist.store.labels.origin`.

    Raises
    ------
    StorageError
        If it cannot be created, or one of another shape is there.
    """
    shape, chunk_shape = (tuple(each) for each in zip(*dimensions.values(), strict=True))
    store = MemoryStore()
    wanted = zarr.create_array(
        store,
        shape=shape,
        chunks=chunk_shape,
        dtype=dtype,
        fill_value=np.nan if np.dtype(dtype).kind == "f" else 0,
        compressors=compressors,
        dimension_names=tuple(dimensions),
        attributes={**(attributes or {}), ORIGIN: origin},
    )
    path, file = group / name, group / name / "zarr.json"
    with paths.writing(path):
        paths.make_way(path, for_folder=True)
        paths.make_way(file)
        if not _is_described(path, wanted):
            paths.make_folder(path)
            paths.write_atomically(file, store._store_dict["zarr.json"].to_bytes())
    return open_array(group, name)


def _is_described(path: RunPath, wanted: zarr.Array[Any]) -> bool:
    """Return whether an array is described as it should be; not if there is no description, or it is damaged.

    Raises
    ------
    StorageError
        If it is another array's.
    """
    try:
        existing = _open_if_there(path)
    except DamagedDescriptionError as error:
        log.warning("%s: damaged (%s); it is written anew", path / "zarr.json", error.__cause__)
        return False
    if existing is None or existing.metadata.to_dict() == wanted.metadata.to_dict():
        return existing is not None
    as_wanted = _labelling(zarr.Array(zarr.AsyncArray(_metadata(wanted), existing.store_path)), path)
    some = sorted(list_chunks(path.parent, path.name) & set(np.ndindex(as_wanted.cdata_shape)))[:LOOKED_AT]
    if any(find_fault(as_wanted, index) is None for index in some):
        log.warning(
            "%s: not the description of the chunks that are here; it is written anew", path / "zarr.json"
        )
        return False
    found, needed = (
        (array.shape, array.chunks, str(array.dtype), array.attrs.get(ORIGIN)) for array in (existing, wanted)
    )
    raise StorageError(
        f"{path}: an array of shape, chunks, type and origin {found} is there, {needed} is needed; nothing was "
        "overwritten: start a new run directory"
    )


class OpenArrays:
    """The arrays of a group by name, each opened once: that takes as long as reading a chunk."""

    def __init__(self, group: RunPath) -> None:
        self.group = group
        self._opened: dict[str, zarr.Array[Any]] = {}

    def __getitem__(self, name: str) -> zarr.Array[Any]:
        """Return an array; raises what `open_array` raises."""
        if name not in self._opened:
            self._opened[name] = open_array(self.group, name)
        return self._opened[name]


def open_array(group: RunPath, name: str) -> zarr.Array[Any]:
    """Open an array for reading and for writing whole chunks.

    Raises
    ------
    UnreadableFileError
        If the file system cannot read its description.
    StorageError
        If it is not there, or its description is damaged.
    """
    array = _open_if_there(group / name)
    if array is None:
        raise StorageError(
            f"{group / name}: {_describe_absence(group / name)}; the run is incomplete or damaged: start the run's "
            "command (semrsm run ...)"
        )
    return _labelling(array, group / name)


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
        If the file system cannot read it.
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

    Raises
    ------
    ValueError
        If the array has no such chunk.
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

    Raises
    ------
    UnreadableFileError
        If the file system cannot read it, which says nothing about the chunk.
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
    """Remove a damaged chunk, so that it counts as missing.

    Raises
    ------
    StorageError
        If it cannot be removed.
    """
    file = _chunk_path(group / name, index)
    with paths.writing(file):
        paths.remove_file(file)


def _open_if_there(path: RunPath) -> zarr.Array[Any] | None:
    try:
        if not paths.is_file(path / "zarr.json"):  # Zarr would look for older formats, too
            return None
        with reading_metadata(path):
            try:
                array = zarr.open_array(paths.zarr_store(path), mode="r+")
            except PermissionError:
                array = zarr.open_array(paths.zarr_store(path), mode="r")
    except (FileNotFoundError, zarr.errors.ContainsGroupError):
        return None
    except StorageError:
        raise
    except OSError as error:
        raise UnreadableFileError(
            f"{error.filename or path}: cannot be opened ({error.strerror or error}); nothing was changed: check the "
            "disk and the permissions, then repeat the command"
        ) from error
    return array


def _describe_absence(path: RunPath) -> str:
    """Return what is in the place of an array that cannot be opened as one."""
    try:
        paths.read_file(path / "zarr.json")
    except (IsADirectoryError, NotAFileError) as error:
        return f"no such array (zarr.json: {reason_of(error)})"
    except NOT_THERE:
        pass
    return "no such array"


def _describe_damage(error: Exception) -> str:
    """Return why a codec could not decode a chunk; that of checksums quotes bytes, which tell people nothing."""
    return "its checksum is wrong" if "checksum" in str(error) else first_line(error)


def _labelling(array: zarr.Array[Any], path: RunPath) -> zarr.Array[Any]:
    """Return an array whose chunks are labelled, also those that equal the fill value.

    Raises
    ------
    StorageError
        If the array belongs to another place.
    """
    origin = array.attrs.get(ORIGIN)
    if not isinstance(origin, str) or not str(path).endswith(f"/{origin.partition('/')[2]}"):
        raise DamagedDescriptionError(
            f"{path / 'zarr.json'}: the description of another array (its origin is {origin!r:.300}); nothing was "
            "read: start the run's command (semrsm run ...), which writes it anew and keeps the chunks that belong here"
        )

    def refuse(key: str, chunk: bytes) -> None:
        raise DamagedChunkError(path / key, _describe_label(origin, chunk))

    place = StorePath(LabellingStore(array.store, origin, refuse), array.path)
    # Zarr has `Array.with_config` for this only since 3.1.6.
    return zarr.Array(zarr.AsyncArray(_metadata(array), place, {"write_empty_chunks": True}))


def _metadata(array: zarr.Array[Any]) -> Any:
    return array.metadata  # of either format, which `AsyncArray` takes one by one


def _describe_label(origin: str, chunk: bytes) -> str:
    """Return what is wrong with the bytes of a chunk of an array of this origin, as the label does not fit."""
    address = read_label(chunk)
    if address is None:
        return "holds damaged bytes (its label is damaged or missing)"
    run, _, place = address.partition("/")
    of_run = "" if run == origin.partition("/")[0] else f" of another run ({run})"
    return f"{FOREIGN}, but {place}{of_run}"


@contextlib.contextmanager
def reading_metadata(node: RunPath) -> Iterator[None]:
    """Turn Zarr's errors for a damaged description of an array or a group into one that names it.

    Raises
    ------
    DamagedDescriptionError
        If `zarr.json` of the node is truncated or invalid.
    """
    file = node / "zarr.json"
    try:
        yield
    except (FileNotFoundError, zarr.errors.ContainsGroupError):
        raise
    except METADATA_ERRORS as error:
        raise DamagedDescriptionError(
            f"{file}: not the description of what should be here ({error}); nothing was overwritten: start the "
            "run's command (semrsm run ...), which writes it anew and keeps the chunks"
        ) from error


def _chunk_path(array: RunPath, index: Sequence[int]) -> RunPath:
    return array.joinpath("c", *map(str, index))

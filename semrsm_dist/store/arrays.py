"""Zarr arrays of which every chunk is labelled: made, or opened where they are.

See `semrsm_dist.store.chunks` for what is read and written of them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr
import zarr.errors
from numpy.typing import DTypeLike
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore, StorePath

from semrsm_dist.data.opening import NOT_THERE, NotAFileError
from semrsm_dist.errors import StorageError, reason_of, unreadable
from semrsm_dist.store import paths
from semrsm_dist.store.chunk_labels import ORIGIN, LabellingStore, read_label
from semrsm_dist.store.chunks import FOREIGN, DamagedChunkError, find_fault, list_chunks
from semrsm_dist.store.groups import DamagedDescriptionError, reading_metadata
from semrsm_dist.store.paths import RunPath

COMPRESSORS = (ZstdCodec(level=3), Crc32cCodec())
"""With a checksum: a flipped bit is an error when the chunk is read."""

_ENVELOPE = (ZstdCodec(level=-100), Crc32cCodec())
"""Hardly compresses, in hardly any time: it is there for the label, for which the format of Blosc has no room."""

SHUFFLED = (BloscCodec(cname="zstd", clevel=3, shuffle=BloscShuffle.shuffle), *_ENVELOPE)
"""As above, for similar numbers: sign and exponent of all first, then the rest."""

FAST = (BloscCodec(cname="lz4", clevel=3, shuffle=BloscShuffle.bitshuffle), *_ENVELOPE)
"""As above, in a tenth of the time, for 4 % more bytes: for what workers write all the time."""

LOOKED_AT = 8
"""Chunks that are read to tell a damaged description from that of another array."""

log = logging.getLogger(__name__)


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

    A damaged description is written anew; the chunks are kept. Raises StorageError if it cannot be created, or one of
    another shape is there.

    Parameters
    ----------
    dimensions
        The length of each dimension, and that of a chunk, by its name.
    origin
        What the chunks' labels name; see `semrsm_dist.store.chunk_labels.origin`.
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

    Raises StorageError if it is another array's.
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
        raise unreadable(error.filename or path, error, "cannot be opened") from error
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


def _labelling(array: zarr.Array[Any], path: RunPath) -> zarr.Array[Any]:
    """Return an array whose chunks are labelled, also those that equal the fill value.

    Raises StorageError if the array belongs to another place.
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

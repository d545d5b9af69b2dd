"""Single values of a large column of a Parquet file, read forward from where the last one was found."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from semrsm_dist.data.locations import is_uri, look_up, open_file
from semrsm_dist.errors import StorageError, first_line

UNPACKED_BYTES, UNPACKED_FACTOR = 256 * 2**20, 100
"""A file of which a row group is larger than both, in bytes and times the file, is not read: images hardly grow."""

WINDOW_BYTES = 32 * 2**20
"""Bytes that a cursor keeps of what it has passed, for threads that are a little behind."""

MOST_CURSORS = 8
"""Open cursors in a process, each at another place."""

BYTES = "bytes"
"""Field of a struct that holds the content of an image, as the library `datasets` names it."""

Place = tuple[str, str, int]
"""A file, a column of it, which holds bytes or structs with them, and a row group."""

Version = tuple[int, int | None]
"""Size and modification time of a file: what was read of another version is not used."""


@contextmanager
def open_parquet(location: str) -> Iterator[pq.ParquetFile]:
    """Open a file for reading piece by piece; no column is read ahead.

    Raises
    ------
    ValueError
        If it is damaged, or no Parquet file, or would grow out of all proportion when it is unpacked.
    OSError, StorageError
        As `semrsm_dist.data.locations.read_bytes`.
    """
    with damage_errors(location), open_file(location) as stream:
        file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=2**20, page_checksum_verification=True)
        _require_bounded(file.metadata, stream.size(), location)
        yield file


def _require_bounded(metadata: pq.FileMetaData, n_bytes: int, location: str) -> None:
    """Raise ValueError if a few bytes would become very many; a page is unpacked as a whole, for one value, too.

    Of row groups alone: asking pyarrow for a column of a damaged file can end the process.
    """
    unpacked = max((metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups)), default=0)
    if unpacked > max(UNPACKED_BYTES, UNPACKED_FACTOR * n_bytes):
        raise ValueError(
            f"{location} would grow from {n_bytes} to {unpacked} bytes, as no images do, and was not unpacked"
        )


@contextmanager
def damage_errors(location: str) -> Iterator[None]:
    """Raise ValueError for what Arrow says of a damaged file; in the block, errors are as in `storage_errors`."""
    try:
        yield
    except StorageError as error:
        cause = error.__cause__
        if is_uri(location) or getattr(cause, "errno", None) is not None:
            raise
        raise ValueError(f"{location} is damaged: {first_line(cause or error)}") from error


def iterate(
    location: str, columns: Sequence[str], group: int, *, rows: int = 4096
) -> Iterator[pa.RecordBatch]:
    """Yield some columns of a row group, a few rows at a time.

    Raises
    ------
    ValueError
        If there is no such row group.
    OSError, StorageError, ValueError
        As `open_parquet`.
    """
    with open_parquet(location) as file:
        if not 0 <= group < file.num_row_groups:
            raise ValueError(f"{location} has {file.num_row_groups} row groups, not one more")
        yield from file.iter_batches(rows, [group], list(columns), use_threads=False)


def read_value(place: Place, row: int) -> bytes | None:
    """Return the bytes in a row of a row group, or None if there are none.

    Values that are read in about the order of their rows cost one pass over the row group, whatever its size. A value
    further back begins another pass.

    Raises
    ------
    ValueError
        If there is no such row, or the file is damaged.
    OSError, StorageError
        As `open_parquet`.
    """
    info = look_up(place[0])
    if info.type == fs.FileType.NotFound:
        raise FileNotFoundError(place[0])
    cursor = _choose(place, (info.size, info.mtime_ns), row)
    with cursor.lock:
        try:
            return cursor.read(row)
        except BaseException:
            with _lock:
                if cursor in _cursors:
                    _cursors.remove(cursor)
            raise


class _Cursor:
    """Reads the values of a row group one after the other, and keeps the last ones."""

    def __init__(self, place: Place, version: Version) -> None:
        self.place, self.version = place, version
        self.lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        location, column, group = self.place
        self._batches = iterate(location, [column], group, rows=1)
        self._kept: deque[bytes | None] = deque()
        self._kept_bytes = 0
        self.first = self.stop = 0  # rows that are kept

    def read(self, row: int) -> bytes | None:
        if row < self.first:
            self._start()
        while row >= self.stop:
            self._advance(row)
        return self._kept[row - self.first]

    def _advance(self, row: int) -> None:
        batch = next(self._batches, None)
        if batch is None:
            location, _, group = self.place
            raise ValueError(f"{location} has no row {row} in row group {group}")
        values = batch.column(0)
        if pa.types.is_struct(values.type):
            values = pc.struct_field(values, BYTES)
        self._kept.append(values[0].as_py())
        self._kept_bytes += len(self._kept[-1] or b"")
        self.stop += 1
        while len(self._kept) > 1 and self._kept_bytes > WINDOW_BYTES:
            self._kept_bytes -= len(self._kept.popleft() or b"")
            self.first += 1


_cursors: list[_Cursor] = []  # of the whole process, the last used one last
_lock = threading.Lock()


def _choose(place: Place, version: Version, row: int) -> _Cursor:
    """Return the cursor that is the least behind a row, or a new one if none is."""
    with _lock:
        behind = [
            cursor
            for cursor in _cursors
            if (cursor.place, cursor.version) == (place, version) and cursor.first <= row
        ]
        cursor = max(behind, key=lambda cursor: min(cursor.stop, row), default=None) or _Cursor(
            place, version
        )
        if cursor in _cursors:
            _cursors.remove(cursor)
        _cursors.append(cursor)
        del _cursors[:-MOST_CURSORS]
        return cursor

"""The inventory of a run: size and time of each chunk's file when its last session ended.

Listing files costs little, so a session reads again only what has changed since: chunks that were cut short,
overwritten or replaced, in whatever way. Damage that leaves size and time as they were, as a bad disk does, is found
only by reading everything, as `semrsm verify` does.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet

from semrsm_dist.errors import StorageError
from semrsm_dist.store import arrays, chunks, paths
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.paths import RunPath

INVENTORY = "inventory.parquet"


class Stamp(NamedTuple):
    """What tells whether a file has changed: its bytes, and when it was written, in seconds since the epoch."""

    n_bytes: int
    written: float


@dataclass(frozen=True)
class Inventory:
    """The chunks of a run at some time."""

    directory: RunDirectory
    files: Mapping[str, Stamp] = field(default_factory=dict)
    """Stamps by path in the run directory."""

    @classmethod
    def take(cls, directory: RunDirectory, *roots: RunPath) -> Inventory:
        """Return the inventory of what lies below some groups now."""
        return cls(directory, dict(sorted(file for root in roots for file in _list_chunks(directory, root))))

    @classmethod
    def read(cls, directory: RunDirectory) -> Inventory:
        """Return the inventory that the last session left; an empty one if it cannot be read: all is read again."""
        try:
            content = io.BytesIO(paths.read_file(directory.path / INVENTORY))
            columns = pyarrow.parquet.read_table(content).to_pydict()
            stamps = map(Stamp, columns["n_bytes"], columns["written"])
            return cls(directory, dict(zip(columns["file"], stamps, strict=True)))
        except (OSError, StorageError, ValueError, KeyError, pa.ArrowException):
            return cls(directory)

    def write(self) -> None:
        """Replace the inventory in the run, unless it says just that; raises StorageError if it cannot be written."""
        if self.files == Inventory.read(self.directory).files:
            return
        stamps = self.files.values()
        table = pa.table(
            {
                "file": list(self.files),
                "n_bytes": pa.array([stamp.n_bytes for stamp in stamps], pa.int64()),
                "written": pa.array([stamp.written for stamp in stamps], pa.float64()),
            }
        )
        content = io.BytesIO()
        pyarrow.parquet.write_table(table, content, compression="zstd")
        paths.write_atomically(self.directory.path / INVENTORY, content.getvalue())

    def find_changed(self, folder: RunPath) -> dict[tuple[RunPath, str], set[tuple[int, ...]]]:
        """Return the chunks below a folder of the run that are new, not as they were, or closed, by group and array."""
        changed = defaultdict(set)
        for file, stamp in _list_chunks(self.directory, folder):
            if self.files.get(file) != stamp or not paths.may_read(self.directory.path / file):
                node, _, key = file.rpartition("/c/")
                group, _, name = node.rpartition("/")
                changed[self.directory.path / group, name].add(tuple(map(int, key.split("/"))))
        return changed

    def find_damaged(self, folder: RunPath) -> dict[tuple[RunPath, str], set[tuple[int, ...]]]:
        """Return those of the chunks that `find_changed` returns which cannot be used: they are read.

        Arrays whose description is at fault are left out; stages see to these.
        """
        damaged = {}
        for (group, name), indices in self.find_changed(folder).items():
            try:
                array = arrays.open_array(group, name)
            except StorageError:
                continue
            if faulty := chunks.find_damaged(array, indices):
                damaged[group, name] = faulty
        return damaged


def read_generation(directory: RunDirectory) -> str:
    """Return what is another one after each session that has written chunks, such as a repair."""
    found = paths.look_up_file(directory.path / INVENTORY)
    return "" if found is None else f"{found.n_bytes}-{found.written}"


def _list_chunks(directory: RunDirectory, folder: RunPath) -> Iterator[tuple[str, Stamp]]:
    """Yield the files of all chunks below a folder, as paths in the run directory."""
    place = str(folder).removeprefix(f"{directory.path}/")
    for file in paths.look_up_files(folder):
        name = f"{place}/{file.name}"
        _, mark, key = name.rpartition("/c/")
        if mark and key.replace("/", "").isdecimal():
            yield name, Stamp(file.n_bytes, file.written)

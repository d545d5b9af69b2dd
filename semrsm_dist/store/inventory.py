"""The inventory of a finished run: how large the file of each chunk was when its last session ended.

Listing files with their sizes costs little, so a session that has nothing to compute still notices chunks that were cut
short, emptied or replaced by others. Damage that leaves the size as it was is found only by reading all chunks, as
`semrsm verify` does.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet

from semrsm_dist.errors import StorageError
from semrsm_dist.store import chunks, paths
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.paths import RunPath

INVENTORY = "inventory.parquet"


def write_inventory(directory: RunDirectory) -> None:
    """Replace the inventory by what lies there now, unless it says just that.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    found = dict(sorted(_list_chunks(directory)))
    if found == _read(directory):
        return
    table = pa.table({"file": list(found), "n_bytes": pa.array(found.values(), pa.int64())})
    content = io.BytesIO()
    pyarrow.parquet.write_table(table, content, compression="zstd")
    paths.write_atomically(directory.path / INVENTORY, content.getvalue())


def find_damaged(directory: RunDirectory) -> dict[tuple[RunPath, str], list[tuple[int, ...]]]:
    """Return the chunks whose files have not the size of the inventory and which cannot be used, by group and array.

    Chunks that are missing are not among them. Without an inventory nothing is found.
    """
    known = _read(directory)
    damaged: dict[tuple[RunPath, str], list[tuple[int, ...]]] = {}
    for file, n_bytes in _list_chunks(directory) if known else ():
        if known.get(file, n_bytes) == n_bytes:
            continue
        node, _, key = file.rpartition("/c/")
        folder, _, name = node.rpartition("/")
        group, index = directory.path / folder, tuple(map(int, key.split("/")))
        try:
            array = chunks.open_array(group, name)
        except StorageError:  # its description is at fault, which the stages see to
            continue
        if chunks.find_fault(array, index) is not None:
            damaged.setdefault((group, name), []).append(index)
    return damaged


def _list_chunks(directory: RunDirectory) -> Iterator[tuple[str, int]]:
    """Yield the files of all chunks that a finished run needs, as paths in the run directory, and their sizes."""
    for root in (directory.features, directory.tiles, directory.neighbours, directory.matrices):
        for file in paths.look_up_files(root):
            _, mark, key = file.name.rpartition("/c/")
            if mark and key.replace("/", "").isdecimal():
                yield f"{root.name}/{file.name}", file.n_bytes


def _read(directory: RunDirectory) -> dict[str, int]:
    """Return the inventory; nothing if there is none that can be read, as a session that ends writes it again."""
    try:
        table = pyarrow.parquet.read_table(io.BytesIO((directory.path / INVENTORY).read_bytes()))
        names, sizes = (table.column(name).to_pylist() for name in ("file", "n_bytes"))
    except (OSError, StorageError, pa.ArrowException, KeyError):
        return {}
    return dict(zip(names, sizes, strict=True))

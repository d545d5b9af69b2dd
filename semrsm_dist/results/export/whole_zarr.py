"""Matrices written out as plain Zarr, for any reader of Zarr."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

from semrsm_dist.results.export.selection import Selection, group_by
from semrsm_dist.results.matrices import DerivedMatrix, LayerMatrices
from semrsm_dist.store.matrices import MatrixStore
from semrsm_dist.store.paths import remove_folder, writing
from semrsm_dist.store.tiles import QUANTITIES


def write_zarr(selection: Selection, folder: Path) -> list[Path]:
    """Write groups `rsm.zarr/<layer>` of `matched`, `identity`, `gap`, `<kind>_<kernel>`, in the type of the tiles.

    A group gets its place when it is whole: readers of Zarr would take chunks that are not there yet for NaN.
    """
    record = selection.run.record
    together = group_by(selection.matrices(), attrgetter("layer"))
    folder.mkdir(parents=True, exist_ok=True)
    for layer, derived in together.items():
        with tempfile.TemporaryDirectory(prefix="rsm.zarr.", suffix=".partial", dir=folder) as partial:
            matrices, store = derived[0].matrix.layer, MatrixStore(Path(partial) / "rsm.zarr", layer)
            every = [*map(matrices.matrix, QUANTITIES), *(chosen.matrix for chosen in derived)]
            make_matrices(store, matrices, every, record.id_of(layer))
            with writing(store.group):
                for chunk in matrices.chunks.tiles():
                    write_chunks(store, matrices, every, chunk)
            store.finish(matrices.store.coordinates(), {"layer": layer}, record.id_of(layer))
            placed = folder / "rsm.zarr" / layer
            with writing(placed):
                if placed.is_dir():  # as a whole: half of it would read as NaN, too
                    placed.rename(Path(partial, "before"))
                MatrixStore(placed.parent, layer).begin()  # makes the group above, too
                remove_folder(placed)
                Path(partial, "rsm.zarr", layer).rename(placed)
    return [folder / "rsm.zarr" / layer for layer in together]


def make_matrices(
    store: MatrixStore, layer: LayerMatrices, matrices: Sequence[DerivedMatrix], run: str
) -> None:
    """Make empty matrices, labelled with the id `run`, to be written by chunks in the type of the layer's tiles."""
    attributes = {matrix.name: matrix.attributes for matrix in matrices}
    shape = (layer.layout.n_rows, layer.layout.n_columns)
    store.make(attributes, shape, layer.chunks.tile_size, str(layer.store.dtype), run)


def write_chunks(
    store: MatrixStore, layer: LayerMatrices, matrices: Sequence[DerivedMatrix], chunk: tuple[int, int]
) -> None:
    """Write a chunk of some matrices of a layer, its tiles read once, and in a symmetric one its mirror image."""
    row, column = chunk
    layout = layer.chunks
    key = layout.rows(row), layout.columns(column)
    read = dict(zip(QUANTITIES, layer.read(QUANTITIES, key), strict=True))
    for matrix in matrices:
        values = matrix.derive(read[matrix.quantity], key)
        store.write(matrix.name, chunk, values)
        if layout.symmetric and row != column:
            store.write(matrix.name, (column, row), values.T)

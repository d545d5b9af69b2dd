"""The neighbour graph of a run: as a list of edges, a sparse matrix, or a table with neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from semrsm_dist.data.entries import format_labels
from semrsm_dist.errors import ConfigError
from semrsm_dist.results.export.selection import Selection, write_ids
from semrsm_dist.results.export.tables import write_table
from semrsm_dist.results.neighbours import LayerNeighbours, Neighbours
from semrsm_dist.results.reader import RunReader
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.neighbours import NOBODY
from semrsm_dist.store.npy import replacing

ROWS = 16_384
"""Images whose neighbours are in memory at once."""

_STRINGS = pa.list_(pa.string())
_EDGES = pa.schema(
    {
        "source": pa.string(),
        "target": pa.string(),
        "rank": pa.int32(),
        "similarity": pa.float64(),
        "gap": pa.float64(),
        "source_labels": _STRINGS,
        "target_labels": _STRINGS,
    }
)
_NEIGHBOURS = pa.struct({"ids": pa.list_(pa.int64()), "distances": pa.list_(pa.float64())})


def write_edges(selection: Selection, folder: Path) -> list[Path]:
    """Write `<layer>.<kernel>.edges.parquet`, edges from each image to its neighbours.

    Columns: `source`, `target` (ids of images), `rank` (from 1), `similarity`, `gap` (how much larger that of the best
    permutation can be), `source_labels`, `target_labels`.
    """
    written = []
    for name, found in selection.neighbours().items():
        written.append(folder / f"{name}.edges.parquet")
        write_table(written[-1], _EDGES, _edges(selection.run, found))
    return written


def write_csr(selection: Selection, folder: Path) -> list[Path]:
    """Write `<layer>.<kernel>.csr.npz`, a sparse matrix with the similarities of an image's neighbours in its row.

    `scipy.sparse.load_npz` reads it; a neighbour with similarity 0 is stored like all others. Ids are beside it.
    """
    written = []
    for name, found in selection.neighbours().items():
        indices, similarity, _, _ = found.read(slice(None))
        there = indices != NOBODY
        starts = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
        shape = found.squared_norms[0].size, found.squared_norms[1].size
        matrix = sparse.csr_array((similarity[there], indices[there], starts), shape=shape)
        matrix.sort_indices()
        written.append(folder / f"{name}.csr.npz")
        with replacing(written[-1]) as partial, partial.open("wb") as file:
            sparse.save_npz(file, matrix)
    return written + write_ids(selection.run, folder)


def write_atlas(selection: Selection, folder: Path) -> list[Path]:
    """Write `<layer>.<kernel>.atlas.parquet`, a table that Embedding Atlas opens, with a row for each image.

    Columns: `image`, the id; `uri`, where it was read; `labels` and `group`; `side`, images or queries; `x` and `y`,
    the two principal components of the averages of its tokens; and `neighbors`, a struct of `ids`, rows of the table,
    and `distances`, 1 minus the similarity.
    """
    run = selection.run
    if "linear" in (selection.kernels or ()):
        raise ConfigError("kernel linear: inner products are no distances: choose the kernel cosine or rbf")
    written = []
    for name, found in selection.neighbours().items():
        places = _project(run, found.store.layer)
        tables = [_atlas_rows(run, side, found, places[side]) for side in run.record.sides]
        written.append(folder / f"{name}.atlas.parquet")
        write_table(written[-1], tables[0].schema, iter(tables))
    return written


def _blocks(found: LayerNeighbours) -> Iterator[tuple[slice, Neighbours]]:
    for start in range(0, found.n_rows, ROWS):
        rows = slice(start, min(start + ROWS, found.n_rows))
        yield rows, found.read(rows)


def _edges(run: RunReader, found: LayerNeighbours) -> Iterator[pa.Table]:
    sources, targets = run.manifest(run.record.row_side), run.manifest("images")
    names, others = (pa.array(manifest.image_ids(), pa.string()) for manifest in (sources, targets))
    labels, other_labels = (
        pa.array(map(list, manifest.labels()), _STRINGS) for manifest in (sources, targets)
    )
    for rows, block in _blocks(found):
        source, rank = np.nonzero(block.indices != NOBODY)
        target = block.indices[source, rank]
        yield pa.Table.from_arrays(
            [
                names.take(source + rows.start),
                others.take(target),
                pa.array(rank + 1, pa.int32()),
                block.similarity[source, rank],
                block.gap[source, rank],
                labels.take(source + rows.start),
                other_labels.take(target),
            ],
            schema=_EDGES,
        )


def _atlas_rows(run: RunReader, side: str, found: LayerNeighbours, places: NDArray[np.float64]) -> pa.Table:
    """Return the rows of one side; in a rectangular run, images come first and have no neighbours."""
    manifest = run.manifest(side)
    rows = manifest.readable
    if side == run.record.row_side:
        neighbours = pa.chunked_array([_as_struct(block) for _, block in _blocks(found)])
    else:
        neighbours = pa.chunked_array([pa.nulls(len(rows), _NEIGHBOURS)])
    columns = {
        "image": pa.array(manifest.image_ids(), pa.string()),
        "uri": pa.array([row.uri for row in rows], pa.string()),
        "labels": pa.array(list(map(format_labels, manifest.labels())), pa.string()),
        "group": pa.array(manifest.groups(), pa.string()),
        "side": pa.array([side] * len(rows), pa.string()),
        "x": pa.array(places[:, 0]),
        "y": pa.array(places[:, 1]),
        "neighbors": neighbours,
    }
    return pa.table(columns)


def _as_struct(block: Neighbours) -> pa.StructArray:
    there = block.indices != NOBODY
    starts = pa.array(np.concatenate([[0], np.cumsum(there.sum(axis=1))]), pa.int32())
    values = {"ids": pa.array(block.indices[there]), "distances": pa.array(1.0 - block.similarity[there])}
    lists = [pa.ListArray.from_arrays(starts, column) for column in values.values()]
    return pa.StructArray.from_arrays(lists, fields=list(_NEIGHBOURS))


def _project(run: RunReader, layer: str) -> dict[str, NDArray[np.float64]]:
    """Return (N, 2) for each side: the two principal components of the averages of the images' tokens."""
    pooled = {
        side: FeatureStore(run.directory.features, side, layer).read_pooled().astype(np.float64)
        for side in run.record.sides
    }
    mean = pooled["images"].mean(axis=0)
    centred = pooled["images"] - mean
    _, directions = np.linalg.eigh(centred.T @ centred)
    axes = directions[:, :-3:-1]
    axes = np.pad(axes, ((0, 0), (0, 2 - axes.shape[1])))
    return {side: (vectors - mean) @ axes for side, vectors in pooled.items()}

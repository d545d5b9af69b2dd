"""The neighbour graph of a run for other programs: as a list of edges, a sparse matrix, or a table with neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray
from scipy import sparse

from semrsm_dist.data.entries import format_labels
from semrsm_dist.errors import ConfigError
from semrsm_dist.results.neighbours import LayerNeighbours, Neighbours
from semrsm_dist.results.run import Run
from semrsm_dist.store.chunks import writing
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.neighbours import NOBODY

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


def export_edges(
    run: Run,
    folder: str | Path,
    *,
    layers: Sequence[str] | None = None,
    kernels: Sequence[str] | None = None,
) -> list[Path]:
    """Write a Parquet file of edges, from each image to its neighbours, for each layer.

    Parameters
    ----------
    run
        A run with `output.neighbours`.
    folder
        Output folder; created if missing.
    layers
        Which layers; None means all that the run's last session requested.
    kernels
        Kernels of the similarities; None is cosine.

    Returns
    -------
    list of Path
        The files written, `<layer>.<kernel>.edges.parquet`, with columns `source`, `target` (ids of images), `rank`
        (from 1), `similarity`, `gap` (how much larger that of the best permutation can be), `source_labels`,
        `target_labels`.

    Raises
    ------
    ConfigError, IncompleteError
        As `Run.neighbours`.
    StorageError
        If a file cannot be written.
    """
    return [
        _write_table(Path(folder) / f"{name}.edges.parquet", _EDGES, _edges(run, found))
        for name, found in _open(run, layers, kernels).items()
    ]


def export_csr(
    run: Run,
    folder: str | Path,
    *,
    layers: Sequence[str] | None = None,
    kernels: Sequence[str] | None = None,
) -> list[Path]:
    """Write a sparse matrix of similarities, with the neighbours of each image in its row, for each layer.

    Parameters
    ----------
    run, folder, layers, kernels
        As in `export_edges`.

    Returns
    -------
    list of Path
        The files written: `<layer>.<kernel>.csr.npz`, which `scipy.sparse.load_npz` reads; a neighbour with similarity
        0 is stored like all others. `image_i.txt` and `image_j.txt` have the ids of rows and columns, one per line.

    Raises
    ------
    ConfigError, IncompleteError, StorageError
        As `export_edges`.
    """
    opened = _open(run, layers, kernels)
    written = []
    for name, found in opened.items():
        indices, similarity, _, _ = found.read(slice(None))
        there = indices != NOBODY
        starts = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
        shape = found.squared_norms[0].size, found.squared_norms[1].size
        matrix = sparse.csr_array((similarity[there], indices[there], starts), shape=shape)
        matrix.sort_indices()
        written.append(Path(folder) / f"{name}.csr.npz")
        with writing(written[-1]):
            written[-1].parent.mkdir(parents=True, exist_ok=True)
            sparse.save_npz(written[-1], matrix)
    return written + write_ids(run, folder)


def export_atlas(
    run: Run,
    folder: str | Path,
    *,
    layers: Sequence[str] | None = None,
    kernels: Sequence[str] | None = None,
) -> list[Path]:
    """Write a table that Embedding Atlas opens, a row for each image, for each layer.

    Parameters
    ----------
    run, folder, layers, kernels
        As in `export_edges`.

    Returns
    -------
    list of Path
        The files written, `<layer>.<kernel>.atlas.parquet`. Columns: `image`, the id; `uri`, where it was read;
        `labels` and `group`; `side`, images or queries; `x` and `y`, the two principal components of the averages of
        its tokens; and `neighbors`, a struct of `ids`, rows of the table, and `distances`, 1 minus the similarity.
        Open it with ``embedding-atlas FILE --x x --y y --neighbors neighbors``.

    Raises
    ------
    ConfigError, IncompleteError, StorageError
        As `export_edges`; ConfigError for `linear`, whose similarities are no distances.
    """
    if "linear" in (kernels or ()):
        raise ConfigError(
            "kernel linear: inner products are no distances: choose cosine or rbf with --kernel"
        )
    written = []
    for name, found in _open(run, layers, kernels).items():
        places = _project(run, found.store.layer)
        tables = [_atlas_rows(run, side, found, places[side]) for side in run.record.sides]
        schema = tables[0].schema
        written.append(_write_table(Path(folder) / f"{name}.atlas.parquet", schema, iter(tables)))
    return written


def write_ids(run: Run, folder: str | Path) -> list[Path]:
    """Write the ids of rows and columns, and their labels if there are any, one image per line."""
    written = []
    for suffix, side in (("i", run.record.row_side), ("j", "images")):
        manifest = run.manifest(side)
        columns = {"image": manifest.image_ids(), "labels": list(map(format_labels, manifest.labels()))}
        for column, values in columns.items():
            if any(values):
                written.append(Path(folder) / f"{column}_{suffix}.txt")
                with writing(written[-1]):
                    lines = "".join(f"{_one_line(value)}\n" for value in values)
                    written[-1].write_text(lines, encoding="utf-8")
    return written


def _one_line(text: str) -> str:
    """Return a text with line breaks escaped, so that each line of the file is one row of the matrix."""
    return text.replace("\r", "\\r").replace("\n", "\\n")


def _open(
    run: Run, layers: Sequence[str] | None, kernels: Sequence[str] | None
) -> dict[str, LayerNeighbours]:
    """Return the neighbours of layers by the name of their files: all are opened before the first is written."""
    return {
        f"{layer}.{kernel}": run.layer_neighbours(layer, kernel)
        for layer in (run.requested_layers if layers is None else layers)
        for kernel in kernels or ["cosine"]
    }


def _blocks(found: LayerNeighbours) -> Iterator[tuple[slice, Neighbours]]:
    for start in range(0, found.n_rows, ROWS):
        rows = slice(start, min(start + ROWS, found.n_rows))
        yield rows, found.read(rows)


def _edges(run: Run, found: LayerNeighbours) -> Iterator[pa.Table]:
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


def _atlas_rows(run: Run, side: str, found: LayerNeighbours, places: NDArray[np.float64]) -> pa.Table:
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


def _project(run: Run, layer: str) -> dict[str, NDArray[np.float64]]:
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


def _write_table(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> Path:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)
    return path

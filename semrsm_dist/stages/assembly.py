"""Assembly: from solved tiles to the final matrices, mirrored, with the kernels that the configuration asks for.

The work is cut by chunks of the final matrices, each written by one worker. Assembling again gives the same
bytes, so a session that was killed here simply repeats it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.config import KernelConfig
from semrsm_dist.data.manifest import Manifest
from semrsm_dist.engine.protocol import Receipt, Resources, Task
from semrsm_dist.errors import WorkError
from semrsm_dist.kernels import derive, squared_distances
from semrsm_dist.median import streaming_median
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.stages.faults import failure_receipt
from semrsm_dist.stages.session import Session
from semrsm_dist.store.blocks import QUANTITIES, BlockStore
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.matrices import DIMENSIONS, MatrixStore

CHUNK = 512
"""Largest side of a final matrix's chunk: a whole number of tiles, so that one writer owns it."""

KINDS = {"semantic": "matched", "spatio-semantic": "identity"}
"""The two similarities of a pair and the stored inner product each comes from."""


@dataclass(frozen=True)
class AssemblyWorker:
    """Writes chunks of one layer's final matrices.

    Parameters
    ----------
    run, layer
        The run directory and the layer.
    layout
        The layout of the layer's tiles.
    merge
        Tiles a side that one chunk of a final matrix is made of.
    norms_i, norms_j
        Squared norms of the rows' and the columns' images.
    kernels
        For each matrix to derive: its name, the stored quantity, the kernel, and sigma or None.
    """

    run: Path
    layer: str
    layout: Layout
    merge: int
    norms_i: NDArray[np.float64]
    norms_j: NDArray[np.float64]
    kernels: Sequence[tuple[str, str, str, float | None]]

    def __call__(self, units: tuple[Hashable, ...]) -> Iterator[Receipt]:
        """Assemble chunks (row, column) of the final matrices; in a symmetric run also the mirrored ones."""
        matrices = MatrixStore(RunDirectory(self.run).matrices, self.layer)
        for unit in units:
            try:
                yield Receipt(unit, counts=self._assemble(cast("tuple[int, int]", unit), matrices))
            except Exception as error:  # noqa: BLE001 - recorded against the chunk, which is tried again
                yield failure_receipt(unit, error)

    def _assemble(self, chunk: tuple[int, int], matrices: MatrixStore) -> dict[str, float]:
        rows = self._span(chunk[0], self.layout.n_rows)
        columns = self._span(chunk[1], self.layout.n_columns)
        values = dict(zip(QUANTITIES, self._read(chunk, rows, columns), strict=True))
        norms_i, norms_j = self.norms_i[rows], self.norms_j[columns]
        for name, quantity, kernel, sigma in self.kernels:
            values[name] = derive(kernel, values[quantity], norms_i, norms_j, sigma=sigma)
        for name, block in values.items():
            matrices.write(name, chunk, block)
            if self.layout.symmetric and chunk[0] != chunk[1]:
                matrices.write(name, (chunk[1], chunk[0]), block.T)
        return {"chunks": 1}

    def _read(self, chunk: tuple[int, int], rows: slice, columns: slice) -> NDArray[np.float64]:
        """Return (3, R, K): the tiles of a chunk, with those below the diagonal mirrored."""
        store = BlockStore(RunDirectory(self.run).blocks, self.layer)
        block = np.full((len(QUANTITIES), rows.stop - rows.start, columns.stop - columns.start), np.nan)
        for row in range(chunk[0] * self.merge, min((chunk[0] + 1) * self.merge, self.layout.row_panels)):
            for column in range(chunk[1] * self.merge, min((chunk[1] + 1) * self.merge, self.layout.column_panels)):
                mirrored = self.layout.symmetric and column < row
                tile = store.read((column, row) if mirrored else (row, column))
                r, c = self.layout.rows(row), self.layout.columns(column)
                block[:, r.start - rows.start : r.stop - rows.start, c.start - columns.start : c.stop - columns.start] = (
                    tile.transpose(0, 2, 1) if mirrored else tile
                )
        return block

    def _span(self, index: int, length: int) -> slice:
        size = self.merge * self.layout.side
        return slice(index * size, min((index + 1) * size, length))


def assemble_layer(  # noqa: PLR0913 - the stage's whole contract
    session: Session,
    layer: str,
    layout: Layout,
    *,
    manifests: Mapping[str, Manifest],
    row_side: str,
    fingerprint: Mapping[str, Any],
) -> None:
    """Write the final matrices of one layer, unless they are there for these kernels.

    Parameters
    ----------
    session
        The session.
    layer, layout
        The layer, all of whose tiles are there.
    manifests, row_side
        The manifests by side, and the side of the rows.
    fingerprint
        What the numbers depend on; kept with the matrices.

    Raises
    ------
    WorkError
        If chunks could not be written.
    """
    store = MatrixStore(session.directory.matrices, layer)
    recipe = {"kernels": [kernel.model_dump() for kernel in session.config.kernels]}
    attributes = store.read_attributes()
    if store.is_complete() and attributes.get("recipe") == recipe:
        session.counts["assembly"]["found"] += 1
        return
    session.counts["assembly"]["computed"] += 1
    features = session.directory.features
    with session.timed("assembly"):
        norms_i = FeatureStore(features, row_side, layer).read_squared_norms()
        norms_j = FeatureStore(features, "images", layer).read_squared_norms()
        kernels = [
            (f"{kind}_{kernel.name}", quantity, kernel.name, _sigma(session, layer, layout, kernel, quantity))
            for kernel in session.config.kernels
            for kind, quantity in KINDS.items()
        ]
        merge = max(1, CHUNK // layout.side)
        worker = AssemblyWorker(
            session.directory.path, layer, layout, merge, norms_i, norms_j, tuple(kernels)
        )
        _prepare(store, worker, recipe, fingerprint)
        _write_coordinates(store, manifests, row_side, norms_i, norms_j)
    chunks = Layout(layout.n_rows, layout.n_columns, merge * layout.side, layout.symmetric)
    tiles = list(chunks.tiles())
    failures = session.work(
        "assembly",
        lambda: session.engine.start_tasks(
            worker, Resources(cpus=1, memory=int(session.config.matching.worker_memory))
        ),
        [Task(units=(tile,)) for tile in tiles],
        total=len(tiles),
        done=0,
        unit="chunks",
        amount=lambda receipt: 1,
    )
    if failures:
        raise WorkError(
            f"{len(failures)} of {len(tiles)} chunks of layer {layer!r} could not be assembled; the solved tiles are kept "
            f"and the same command tries again. First cause: {failures[0].error}"
        )
    store.finish()


def _prepare(
    store: MatrixStore, worker: AssemblyWorker, recipe: Mapping[str, Any], fingerprint: Mapping[str, Any]
) -> None:
    layout = worker.layout
    store.begin({"layer": worker.layer, "recipe": recipe, "fingerprint": dict(fingerprint)})
    shape, side = (layout.n_rows, layout.n_columns), worker.merge * layout.side
    descriptions = {
        "matched": "inner product after the best permutation found",
        "identity": "inner product position by position",
        "gap": "certified: the best permutation's inner product is at most matched + gap",
    }
    for name in QUANTITIES:
        store.add_matrix(name, shape, side, {"description": descriptions[name]})
    for name, quantity, kernel, sigma in worker.kernels:
        attributes: dict[str, Any] = {"kernel": kernel, "from": quantity}
        if sigma is not None:
            attributes["sigma"] = sigma
        store.add_matrix(name, shape, side, attributes)


def _write_coordinates(
    store: MatrixStore,
    manifests: Mapping[str, Manifest],
    row_side: str,
    norms_i: NDArray[np.float64],
    norms_j: NDArray[np.float64],
) -> None:
    for dimension, side, norms in zip(DIMENSIONS, (row_side, "images"), (norms_i, norms_j), strict=True):
        manifest = manifests[side]
        suffix = dimension[-2:]
        store.write_coordinate(dimension, dimension, manifest.image_ids())
        store.write_coordinate(f"labels{suffix}", dimension, ["|".join(labels) for labels in manifest.labels()])
        store.write_coordinate(f"group{suffix}", dimension, [group or "" for group in manifest.groups()])
        store.write_coordinate(f"squared_norm{suffix}", dimension, norms)


def _sigma(
    session: Session, layer: str, layout: Layout, kernel: KernelConfig, quantity: str
) -> float | None:
    if kernel.name != "rbf":
        return None
    if kernel.sigma is not None:
        return kernel.sigma
    return median_sigma_of_blocks(session.directory, layer, layout, quantity)


def median_sigma_of_blocks(directory: RunDirectory, layer: str, layout: Layout, quantity: str) -> float:
    """Return sqrt(median of the non-zero squared distances) over all pairs, reading one tile at a time.

    A symmetric matrix enters with each pair of different images once.
    """
    store = BlockStore(directory.blocks, layer)
    features = directory.features
    norms_j = FeatureStore(features, "images", layer).read_squared_norms()
    norms_i = norms_j if layout.symmetric else FeatureStore(features, "queries", layer).read_squared_norms()
    position = QUANTITIES.index(quantity)

    def distances() -> Iterator[NDArray[np.float64]]:
        for row, column in layout.tiles():
            inner = store.read((row, column))[position]
            rows, columns = layout.rows(row), layout.columns(column)
            upper = layout.symmetric and row == column
            squared = squared_distances(inner, norms_i[rows], norms_j[columns])
            yield squared[np.triu(squared > 0, k=1) if upper else squared > 0]

    median = streaming_median(distances)
    return math.sqrt(median) if median == median else 1.0  # noqa: PLR0124 - NaN: all images coincide

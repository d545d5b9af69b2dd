"""Assembly: from solved tiles to the final matrices, mirrored, with the kernels of the configuration.

The work is cut by chunks of the final matrices, each written by one worker. Assembling again gives the same
bytes, so a session that was killed here simply repeats it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.config.schema import KernelConfig
from semrsm_dist.data.entries import format_labels
from semrsm_dist.data.manifest import Manifest
from semrsm_dist.engine.protocol import Receipt, Task
from semrsm_dist.errors import WorkError
from semrsm_dist.matching.kernels import derive
from semrsm_dist.pipeline.faults import attempt_each, list_failures
from semrsm_dist.pipeline.session import Session
from semrsm_dist.plan.tiling import Layout, Tile
from semrsm_dist.results.rbf_width import median_sigma
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.matrices import DIMENSIONS, MatrixStore, gather_metadata
from semrsm_dist.store.record import RunRecord, Side
from semrsm_dist.store.tiles import KINDS, QUANTITIES, TileStore

CHUNK = 512
"""Maximum chunk size of a final matrix, in images: a whole number of tiles, so that a chunk has one writer."""

DESCRIPTIONS = {
    "matched": "inner product after the best permutation found",
    "identity": "inner product position by position",
    "gap": "certified: the best permutation's inner product is at most matched + gap",
}


@dataclass(frozen=True, slots=True)
class KernelMatrix:
    """A matrix to derive: kernel `kernel` of the stored inner products `quantity`, under the name `name`."""

    name: str
    quantity: str
    kernel: str
    sigma: float | None


@dataclass(frozen=True)
class LayerAssembly:
    """How one layer is assembled.

    Parameters
    ----------
    layout
        The layout of the layer's tiles.
    norms_i, norms_j
        Squared norms of the rows' and the columns' images.
    kernels
        The matrices to derive.
    """

    layout: Layout
    norms_i: NDArray[np.float64]
    norms_j: NDArray[np.float64]
    kernels: tuple[KernelMatrix, ...]

    @property
    def merge(self) -> int:
        """Tiles along an edge of a final matrix's chunk."""
        return self.chunks.tile_size // self.layout.tile_size

    @property
    def chunks(self) -> Layout:
        """How the final matrices are cut into chunks."""
        return _chunk_layout(self.layout)


@dataclass(frozen=True)
class AssemblyWorker:
    """Writes chunks of final matrices; in a symmetric run each with its mirror image."""

    run: Path
    layers: Mapping[str, LayerAssembly]

    def __call__(self, units: tuple[Hashable, ...]) -> Iterator[Receipt]:
        """Assemble chunks of the final matrices."""
        return attempt_each(cast("tuple[Tile, ...]", units), self._assemble, self.run)

    def _assemble(self, chunk: Tile) -> Receipt:
        layer = self.layers[chunk.layer]
        inner = dict(zip(QUANTITIES, self._read(chunk), strict=True))
        norms_i = layer.norms_i[layer.chunks.rows(chunk.row)]
        norms_j = layer.norms_j[layer.chunks.columns(chunk.column)]
        matrices = MatrixStore(RunDirectory(self.run).matrices, chunk.layer)
        for name, block in inner.items():
            self._write(matrices, chunk, name, block)
        for matrix in layer.kernels:  # one at a time: each may be as large as a tile of the result
            values = derive(matrix.kernel, inner[matrix.quantity], norms_i, norms_j, sigma=matrix.sigma)
            self._write(matrices, chunk, matrix.name, values)
        return Receipt(chunk, counts={"chunks": 1})

    def _write(self, matrices: MatrixStore, chunk: Tile, name: str, block: NDArray[np.float64]) -> None:
        matrices.write(name, (chunk.row, chunk.column), block)
        if self.layers[chunk.layer].layout.symmetric and chunk.row != chunk.column:
            matrices.write(name, (chunk.column, chunk.row), block.T)

    def _read(self, chunk: Tile) -> NDArray[np.float64]:
        """Return (3, R, K): the tiles of a chunk, with those below the diagonal mirrored."""
        layer = self.layers[chunk.layer]
        layout, merge = layer.layout, layer.merge
        rows, columns = layer.chunks.rows(chunk.row), layer.chunks.columns(chunk.column)
        solved = TileStore(RunDirectory(self.run).tiles, chunk.layer)
        block = np.full((len(QUANTITIES), rows.stop - rows.start, columns.stop - columns.start), np.nan)
        for row in range(chunk.row * merge, min((chunk.row + 1) * merge, layout.row_panels)):
            for column in range(chunk.column * merge, min((chunk.column + 1) * merge, layout.column_panels)):
                if layout.symmetric and column < row:
                    continue  # mirrored from above the diagonal
                tile = solved.read((row, column))
                r, c = _shifted(layout.rows(row), rows.start), _shifted(layout.columns(column), columns.start)
                block[:, r, c] = tile
                if layout.symmetric and chunk.row == chunk.column and row != column:
                    block[:, c, r] = tile.transpose(0, 2, 1)
        return block


def _shifted(part: slice, start: int) -> slice:
    return slice(part.start - start, part.stop - start)


def assemble_layers(
    session: Session, record: RunRecord, layers: Sequence[str], manifests: Mapping[Side, Manifest]
) -> None:
    """Write the final matrices of layers whose tiles are all solved, unless they exist for these kernels and labels.

    Parameters
    ----------
    session, record
        The session, and the run's record.
    layers
        The layers.
    manifests
        The images by side.

    Raises
    ------
    WorkError
        If chunks could not be written.
    """
    recipe = {
        "kernels": [kernel.model_dump() for kernel in session.config.kernels],
        "labels_sha256": _digest_labels(manifests),
    }
    stores = {layer: MatrixStore(session.directory.matrices, layer) for layer in layers}
    missing = [
        layer
        for layer, store in stores.items()
        if not (store.is_complete() and store.read_attributes().get("recipe") == recipe)
    ]
    session.counts["assembly"]["found"] += sum(
        sum(1 for _ in _chunk_layout(record.layout(layer)).tiles())
        for layer in layers
        if layer not in missing
    )
    if not missing:
        if layers:  # in case an earlier session was killed before it could
            gather_metadata(session.directory.matrices)
        return
    with session.timed("assembly"):
        assemblies = {layer: _plan_layer(session, record, layer) for layer in missing}
        for layer, assembly in assemblies.items():
            fingerprint = record.fingerprint | record.layers[layer].facts
            attributes = {"layer": layer, "recipe": recipe, "fingerprint": fingerprint}
            _make_arrays(stores[layer], assembly, attributes)
            _write_coordinates(stores[layer], assembly, manifests, record.row_side)
    chunks = [Tile(layer, *chunk) for layer in missing for chunk in assemblies[layer].chunks.tiles()]
    worker = AssemblyWorker(session.directory.path, assemblies)
    failures = session.work(
        "assembly",
        lambda: session.start_tasks(worker),
        [Task(units=(chunk,)) for chunk in chunks],
        unit="chunks",
        total=len(chunks),
    ).failures
    session.counts["assembly"]["computed"] = session.counts["assembly"]["chunks"]
    if failures:
        raise WorkError(
            f"{len(failures)} of {len(chunks)} chunks of the final matrices could not be assembled; the solved tiles "
            f"are kept and the same command tries again:\n{list_failures(failures)}"
        )
    for layer in missing:
        stores[layer].finish()
    gather_metadata(session.directory.matrices)


def _chunk_layout(layout: Layout) -> Layout:
    size = max(1, CHUNK // layout.tile_size) * layout.tile_size
    return Layout(layout.n_rows, layout.n_columns, size, layout.symmetric)


def _plan_layer(session: Session, record: RunRecord, layer: str) -> LayerAssembly:
    features, layout = session.directory.features, record.layout(layer)
    kernels = [
        KernelMatrix(
            f"{kind}_{kernel.name}", quantity, kernel.name, _sigma(session, layer, layout, kernel, quantity)
        )
        for kernel in session.config.kernels
        for kind, quantity in KINDS.items()
    ]
    return LayerAssembly(
        layout,
        FeatureStore(features, record.row_side, layer).read_squared_norms(),
        FeatureStore(features, "images", layer).read_squared_norms(),
        tuple(kernels),
    )


def _sigma(session: Session, layer: str, layout: Layout, kernel: KernelConfig, quantity: str) -> float | None:
    if kernel.name != "rbf":
        return None
    if kernel.sigma is not None:
        return kernel.sigma
    return median_sigma(session.directory, layer, layout, quantity, reporter=session.reporter)


def _make_arrays(store: MatrixStore, assembly: LayerAssembly, attributes: Mapping[str, Any]) -> None:
    store.begin(attributes, {*QUANTITIES, *(matrix.name for matrix in assembly.kernels)})
    shape, size = (assembly.layout.n_rows, assembly.layout.n_columns), assembly.chunks.tile_size
    for name in QUANTITIES:
        store.add_matrix(name, shape, size, {"description": DESCRIPTIONS[name]})
    for matrix in assembly.kernels:
        facts = {"kernel": matrix.kernel, "from": matrix.quantity}
        store.add_matrix(
            matrix.name, shape, size, facts if matrix.sigma is None else {**facts, "sigma": matrix.sigma}
        )


def _digest_labels(manifests: Mapping[Side, Manifest]) -> str:
    """Return a hash of settings that may change from one session to the next without changing a number."""
    facts = {side: [manifest.labels(), manifest.groups()] for side, manifest in manifests.items()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _write_coordinates(
    store: MatrixStore, assembly: LayerAssembly, manifests: Mapping[Side, Manifest], row_side: Side
) -> None:
    sides: Sequence[tuple[str, Side, NDArray[np.float64]]] = (
        (DIMENSIONS[0], row_side, assembly.norms_i),
        (DIMENSIONS[1], "images", assembly.norms_j),
    )
    for dimension, side, norms in sides:
        manifest = manifests[side]
        suffix = dimension.removeprefix("image")
        store.write_coordinate(dimension, dimension, manifest.image_ids())
        store.write_coordinate(f"labels{suffix}", dimension, list(map(format_labels, manifest.labels())))
        store.write_coordinate(f"group{suffix}", dimension, [group or "" for group in manifest.groups()])
        store.write_coordinate(f"squared_norm{suffix}", dimension, norms)

"""Assembly: what makes a layer readable when its tiles are solved.

Matrices are derived from the tiles when they are read, so this writes coordinates and finds the widths of RBF kernels.
Only where the configuration keeps the matrices, workers write them: each chunk by one worker. Writing again gives the
same bytes, so a session that was killed here simply repeats it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from semrsm_dist.data.manifest import Manifest
from semrsm_dist.engine.protocol import Receipt
from semrsm_dist.errors import WorkError
from semrsm_dist.pipeline.faults import attempt_each, list_failures
from semrsm_dist.pipeline.session import Session
from semrsm_dist.plan.tiling import Layout, Tile
from semrsm_dist.results.coordinates import collect_coordinates, digest_labels
from semrsm_dist.results.export.whole_zarr import make_matrices, write_chunks
from semrsm_dist.results.matrices import LayerMatrices
from semrsm_dist.results.rbf_width import median_width
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.groups import create_group
from semrsm_dist.store.labelled import LabelledGroup
from semrsm_dist.store.matrices import MatrixStore
from semrsm_dist.store.paths import RunPath
from semrsm_dist.store.record import RunRecord, Side
from semrsm_dist.store.tiles import KINDS, TileStore


@dataclass(frozen=True)
class AssemblyWorker:
    """Writes chunks of the matrices; in a symmetric run each with its mirror image."""

    run: RunPath
    layouts: Mapping[str, Layout]

    def __call__(self, units: tuple[Hashable, ...]) -> Iterator[Receipt]:
        """Write chunks of the matrices."""
        return attempt_each(cast("tuple[Tile, ...]", units), self._write, self.run)

    def _write(self, chunk: Tile) -> Receipt:
        directory = RunDirectory(self.run)
        matrices = LayerMatrices.open(TileStore(directory.tiles, chunk.layer), self.layouts[chunk.layer])
        store = MatrixStore(directory.matrices, chunk.layer)
        write_chunks(store, matrices, matrices.all(), (chunk.row, chunk.column))
        return Receipt(chunk, counts={"chunks": 1})


def assemble_layers(
    session: Session, record: RunRecord, layers: Sequence[str], manifests: Mapping[Side, Manifest]
) -> None:
    """Finish layers whose tiles are all solved, unless they are finished for these kernels and labels.

    Raises WorkError if matrices are to be stored, and chunks of them could not be written.
    """
    recipe = {
        "kernels": [kernel.model_dump() for kernel in session.config.kernels],
        "labels_sha256": digest_labels(manifests),
    }
    for layer in layers:
        store, layout = TileStore(session.directory.tiles, layer), record.layout(layer)
        known = store.read_attributes()
        if not (known.get("recipe") == recipe and store.is_done(layout) and store.has_sound_coordinates()):
            with session.timed("assembly"):
                kernels = _find_kernels(session, record, layer)
                finish_layer(session, record, store, manifests, {"recipe": recipe, "kernels": kernels})
    if session.config.output.matrices == "stored":
        _store_matrices(session, record, layers)


def finish_layer(
    session: Session,
    record: RunRecord,
    store: LabelledGroup,
    manifests: Mapping[Side, Manifest],
    attributes: Mapping[str, Any],
) -> None:
    """Give the results of a layer their coordinates and attributes, which makes them readable."""
    session.directory.require_held()  # finding the widths can have taken minutes
    layer = store.layer
    fingerprint = record.fingerprint | record.layers[layer].facts
    store.finish(
        collect_coordinates(session.directory, record, layer, manifests),
        {"layer": layer, "fingerprint": fingerprint, **attributes},
        record.id_of(layer),
    )


def _find_kernels(session: Session, record: RunRecord, layer: str) -> dict[str, Any]:
    """Return the kernels of a layer by name, with the widths of RBF kernels."""
    store = TileStore(session.directory.tiles, layer)
    norms_i, norms_j = (
        FeatureStore(session.directory.features, side, layer).read_squared_norms()
        for side in (record.row_side, "images")
    )
    matrices = LayerMatrices(store, record.layout(layer), (norms_i, norms_j), {})
    kernels: dict[str, Any] = {}
    for kernel in session.config.kernels:
        for kind in KINDS:
            facts: dict[str, Any] = {"kind": kind, "kernel": kernel.name, "sigma": kernel.sigma}
            if kernel.name == "rbf" and kernel.sigma is None:
                width = median_width(matrices, kind, reporter=session.reporter)
                facts["sigma"], facts["sigma_error"] = width
            kernels[f"{kind}_{kernel.name}"] = facts
    return kernels


def _store_matrices(session: Session, record: RunRecord, layers: Sequence[str]) -> None:
    """Write the matrices of finished layers, unless they are there for these kernels and labels."""
    tiles = {layer: TileStore(session.directory.tiles, layer) for layer in layers}
    stores = {layer: MatrixStore(session.directory.matrices, layer) for layer in layers}
    for layer in layers:
        create_group(session.directory.matrices, layer)
    recipes = {layer: store.read_attributes()["recipe"] for layer, store in tiles.items()}
    opened = {layer: LayerMatrices.open(store, record.layout(layer)) for layer, store in tiles.items()}
    chunks: dict[str, list[Tile]] = {
        layer: [Tile(layer, *chunk) for chunk in matrices.chunks.tiles()]
        for layer, matrices in opened.items()
    }
    missing = [
        layer
        for layer, store in stores.items()
        if not (store.read_attributes().get("recipe") == recipes[layer] and store.is_complete())
    ]
    session.counts["assembly"]["found"] += sum(len(chunks[layer]) for layer in chunks.keys() - set(missing))
    if not missing:
        return
    for layer in missing:
        make_matrices(stores[layer], opened[layer], opened[layer].all(), record.id_of(layer))
    units = [chunk for layer in missing for chunk in chunks[layer]]
    worker = AssemblyWorker(session.directory.path, {layer: record.layout(layer) for layer in missing})
    failures = session.work_on_each("assembly", worker, units, unit="chunks")
    if failures:
        raise WorkError(
            f"{len(failures)} of {len(units)} chunks of the matrices could not be written; the solved tiles are kept "
            f"and the run's command tries again:\n{list_failures(failures)}"
        )
    for layer in missing:
        attributes = {"layer": layer, "recipe": recipes[layer]}
        stores[layer].finish(tiles[layer].coordinates(), attributes, record.id_of(layer))

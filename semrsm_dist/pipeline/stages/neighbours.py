"""Neighbours: from the candidates of tiles to the most similar images of each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from semrsm_dist.data.manifest import Manifest
from semrsm_dist.errors import WorkError, counted
from semrsm_dist.pipeline.faults import list_failures
from semrsm_dist.pipeline.session import Session
from semrsm_dist.pipeline.stages.assembly import finish_layer
from semrsm_dist.pipeline.stages.neighbours_worker import ChoosingWorker, RowPanel
from semrsm_dist.results.coordinates import Groups, digest_labels, number_groups
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.groups import create_group
from semrsm_dist.store.neighbours import NeighbourStore
from semrsm_dist.store.record import NeighbourSettings, RunRecord, Side
from semrsm_dist.store.results import tile_files


def read_groups(directory: RunDirectory, record: RunRecord) -> Groups | None:
    """Return the groups of the images of rows and columns; None if there are none."""
    return number_groups({side: directory.read_manifest(side) for side in record.sides})


def warn_of_few_candidates(session: Session, record: RunRecord) -> None:
    """Warn if a run keeps as many neighbours of an image as there are others: it leaves none out."""
    others = record.counts["images"] - (record.row_side == "images")
    if record.neighbours is not None and record.neighbours.k >= others:
        session.warn(
            f"output.neighbours.k: {record.neighbours.k}, but there {'is' if others == 1 else 'are'} only "
            f"{counted(others, 'image')} to choose from, so k leaves none out; lower k, or remove "
            "output.neighbours to keep the matrix"
        )


def choose_neighbours(
    session: Session, record: RunRecord, layers: Sequence[str], manifests: Mapping[Side, Manifest]
) -> None:
    """Write the neighbours of layers whose tiles are all searched, unless they are there.

    Raises WorkError if neighbours could not be written; the candidates are kept.
    """
    stores = {layer: NeighbourStore(session.directory.neighbours, layer) for layer in layers}
    for layer in layers:
        create_group(session.directory.neighbours, layer)
    missing = [layer for layer in layers if not stores[layer].is_done(record.layout(layer))]
    found = [layer for layer in layers if layer not in missing]
    session.counts["assembly"]["found"] += sum(record.layout(layer).row_panels for layer in found)
    if missing:
        _choose(session, record, missing)
    recipe = {"labels_sha256": digest_labels(manifests)}
    for layer in layers:
        store = stores[layer]
        is_described = layer not in missing and store.read_attributes().get("recipe") == recipe
        if not (is_described and store.has_sound_coordinates()):
            with session.timed("assembly"):
                finish_layer(session, record, store, manifests, {"recipe": recipe})


def _choose(session: Session, record: RunRecord, layers: Sequence[str]) -> None:
    k, _ = record.neighbours or NeighbourSettings(0, None)
    layouts = {layer: record.layout(layer) for layer in layers}
    for layer, layout in layouts.items():
        dtype = str(tile_files(session.directory, record, layer).dtype)
        store = NeighbourStore(session.directory.neighbours, layer)
        store.make(layout.n_rows, k, layout.tile_size, dtype, record.id_of(layer))
    units = [RowPanel(layer, panel) for layer in layers for panel in range(layouts[layer].row_panels)]
    worker = ChoosingWorker(session.directory.path, record.row_side, layouts, k)
    failures = session.work_on_each("assembly", worker, units, unit="panels")
    if failures:
        raise WorkError(
            f"the neighbours of {len(failures)} of {len(units)} panels could not be chosen; their candidates are kept, "
            f"and the run's command tries again:\n{list_failures(failures)}"
        )

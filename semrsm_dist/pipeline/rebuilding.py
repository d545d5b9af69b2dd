"""A record that was lost with its copy is made anew, from the configuration, the images, and the arrays that are left.

Each array names its origin: an id of the fingerprint and the array's place in the run
(`semrsm_dist.store.chunk_labels`). So arrays that were made from other inputs, or by another configuration, are never
taken for those of this run.
"""

from __future__ import annotations

from semrsm_dist.errors import ResumeError, StorageError
from semrsm_dist.pipeline.session import Session
from semrsm_dist.store import chunks, groups
from semrsm_dist.store.chunk_labels import ORIGIN, origin
from semrsm_dist.store.directory import RECORD
from semrsm_dist.store.features import FEATURES, FeatureStore
from semrsm_dist.store.paths import RunPath
from semrsm_dist.store.record import RunRecord
from semrsm_dist.store.results import tile_files


def adopt_sizes(session: Session, record: RunRecord, known: RunRecord | None) -> RunRecord:
    """Return the record of a session in which layers that are not `known` have the sizes of the arrays that are left.

    A new run has none, and of a run whose record is intact every layer is known.

    Raises
    ------
    ResumeError
        If the arrays are not those of this configuration and these inputs.
    StorageError
        If there are tiles, but no description of how they are cut.
    """
    layers, chunk_size = dict(record.layers), record.chunk_size
    for layer in record.layers.keys() - (known.layers if known else {}):
        tile_size = _find_tile_size(session, record, layer)
        layers[layer] = record.layers[layer].model_copy(update={"tile_size": tile_size})
        for side in record.sides:
            store = FeatureStore(session.directory.features, side, layer)
            place = (store.root.name, side, layer, FEATURES)
            shape = _chunk_shape(store.group / FEATURES, record.id_of(layer), *place)
            chunk_size = shape[0] if shape and known is None else chunk_size
    if known is None and session.directory.has_results():
        session.warn(
            f"{session.directory.path / RECORD}: lost, and so is its copy; made anew from the configuration, the "
            "images and the arrays that are here"
        )
    batch_size = record.batch_size and min(record.batch_size, chunk_size)
    return record.model_copy(update={"layers": layers, "chunk_size": chunk_size, "batch_size": batch_size})


def _find_tile_size(session: Session, record: RunRecord, layer: str) -> int:
    store, chosen = tile_files(session.directory, record, layer), record.layers[layer].tile_size
    array = store.group / store.sized_by
    shape = _chunk_shape(array, record.id_of(layer), store.root.name, layer, store.sized_by)
    if not shape and chunks.list_chunks(store.group, store.array_name):
        raise StorageError(
            f"{array / 'zarr.json'}: the description of the tiles of layer {layer!r} is lost, and so is {RECORD}, so "
            "how they are cut is not known; nothing was changed: restore one of these files, or start a new run "
            "directory"
        )
    return shape[1] if shape else chosen


def _chunk_shape(array: RunPath, run: str, *place: str) -> list[int]:
    """Return the lengths of an array's chunks, if it is there; it must be of this run."""
    description = groups.read_description(array)
    if not description:
        return []
    found, expected = description["attributes"].get(ORIGIN), origin(run, *place)
    if found != expected:
        raise ResumeError(
            f"{array}: {RECORD} and its copy are lost, and this array is not one of the configured run (origin "
            f"{found!r} instead of {expected!r}), so the record cannot be made anew; nothing was changed: start the "
            "command that began the run, with the same images, or start a new run directory"
        )
    shape: list[int] = description["chunk_grid"]["configuration"]["chunk_shape"]
    return shape

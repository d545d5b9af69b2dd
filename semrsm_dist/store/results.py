"""Where a run keeps a layer's tiles and its results: as matrices or, if its record says so, as neighbours."""

from __future__ import annotations

from semrsm_dist.store.candidates import CandidateStore
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.neighbours import NeighbourStore
from semrsm_dist.store.record import RunRecord
from semrsm_dist.store.tiles import TileStore


def tile_files(directory: RunDirectory, record: RunRecord, layer: str) -> TileStore | CandidateStore:
    """Return the store of what workers write of each tile."""
    if record.neighbours is None:
        return TileStore(directory.tiles, layer)
    return CandidateStore(directory.candidates, layer, record.neighbours.k)


def result_store(directory: RunDirectory, record: RunRecord, layer: str) -> TileStore | NeighbourStore:
    """Return the store of what readers read, which has the coordinates."""
    if record.neighbours is None:
        return TileStore(directory.tiles, layer)
    return NeighbourStore(directory.neighbours, layer)

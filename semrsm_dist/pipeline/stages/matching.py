"""Matching: find the missing tiles of each layer, and let workers solve them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import cast

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.engine.protocol import Pool, Receipt, Resources, Task
from semrsm_dist.engine.schedule import Failure
from semrsm_dist.errors import StorageError
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.matching.search.tile import Criterion
from semrsm_dist.pipeline.faults import list_failures
from semrsm_dist.pipeline.memory import WorkerMemory
from semrsm_dist.pipeline.session import Estimate, Session
from semrsm_dist.pipeline.sizing import count_workers, matching_memory
from semrsm_dist.pipeline.stages.matching_worker import ActorFactory, MatchingWorker, PanelLimits, TileChecker
from semrsm_dist.pipeline.stages.neighbours import read_groups
from semrsm_dist.pipeline.stages.neighbours_worker import SearchWorker
from semrsm_dist.plan.blocks import BlockPlanner, LayerWork
from semrsm_dist.plan.tiling import Layout, Tile
from semrsm_dist.store.candidates import CandidateStore
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.groups import DamagedDescriptionError
from semrsm_dist.store.record import RunRecord
from semrsm_dist.store.results import result_store, tile_files
from semrsm_dist.store.tiles import TileStore, choose_dtype

CHECKED_TILES = 256
"""Tiles that a task checks at most: a second or more of reading."""


def remove_damaged_tiles(session: Session, record: RunRecord) -> None:
    """Remove the damaged tiles of finished layers, so that these are unfinished before their features are checked."""
    for layer in record.requested if record.neighbours is None else ():
        store, layout = TileStore(session.directory.tiles, layer), record.layout(layer)
        if store.is_done(layout):
            _remove_damaged(session, record, layer, store.changed(layout, session.inventory))


def match_layers(session: Session, matcher: Matcher, record: RunRecord) -> list[Failure]:
    """Solve the missing tiles of the requested layers, and return those that were set aside."""
    memory = matching_memory(session, matcher, record)
    works = [_find_work(session, memory, record, layer) for layer in record.requested]
    if not any(work.n_missing for work in works):
        return []
    budget = memory.panel_budget(record)
    worker = _make_worker(session, memory, record, {work.layer: work.layout for work in works}, budget)
    with session.timed("compile"):
        worker.compile()
    planners = [
        BlockPlanner(
            phase,
            workers=count_workers(session.engine, matcher),
            task_seconds=session.config.matching.task_seconds,
            budget=budget,
        )
        for phase in ([works] if record.neighbours is None else _diagonal_first(works))
    ]
    by_layer = {work.layer: work for work in works}

    def effort(receipt: Receipt) -> float:
        layer, pairs = cast("Tile", receipt.unit).layer, receipt.counts["pairs"]
        for planner in planners:
            planner.observe(layer, pairs, sum(receipt.counts[name] for name in MatchingWorker.SECONDS))
        return by_layer[layer].pair_seconds * pairs

    def recover(tile: Tile) -> Receipt | None:
        if not tile_files(session.directory, record, tile.layer).has((tile.row, tile.column)):
            return None
        pairs = by_layer[tile.layer].layout.n_pairs(tile.row, tile.column)
        return Receipt(
            tile, counts={"pairs": pairs, "tiles": 1, **dict.fromkeys(MatchingWorker.SECONDS, 0.0)}
        )

    outcome = session.work(
        "matching",
        lambda: _start_workers(session, memory, worker),
        (Task(units=tuple(tiles), cost=cost) for tiles, cost in chain.from_iterable(planners)),
        unit="pairs",
        total=sum(work.layout.total_pairs for work in works),
        done=sum(work.layout.total_pairs - work.missing_pairs for work in works),
        estimate=Estimate(effort, left=sum(work.missing_seconds for work in works)),
        recover=recover,
    )
    session.counts["matching"]["computed"] = session.counts["matching"]["tiles"]
    return outcome.failures


def _start_workers(session: Session, memory: WorkerMemory, worker: MatchingWorker) -> Pool:
    """Start the workers: tasks or, on GPUs, actors that keep what they have there; all of one kind.

    CPUs do not help GPUs with a matrix: their numbers would differ, if only within the tolerance.
    """
    matcher = memory.matcher
    if not matcher.gpus:
        return session.start_tasks(worker, cpus=matcher.cpus)
    resources = Resources(matcher.cpus, matcher.gpus, memory.allowed)
    return session.engine.start_actors(
        ActorFactory(worker), count_workers(session.engine, matcher), resources
    )


def _make_worker(
    session: Session, memory: WorkerMemory, record: RunRecord, layouts: Mapping[str, Layout], budget: int
) -> MatchingWorker:
    """Return the worker that solves tiles or, in a run that keeps neighbours, searches them."""
    run, side, matcher = session.directory.path, record.row_side, memory.matcher
    limits: dict[str, PanelLimits] = {}
    for layer in layouts:
        sizes = record.layers[layer]
        images = memory.panel_size(sizes)
        limits[layer] = PanelLimits(images, memory.prepared_bytes(images, sizes))
    if record.neighbours is None:
        return MatchingWorker(run, side, layouts, matcher, limits, budget)
    k, threshold = record.neighbours
    wanted = {
        layer: Criterion(
            k,
            -np.inf if threshold is None else threshold,
            tile_files(session.directory, record, layer).dtype == np.float32,
        )
        for layer in layouts
    }
    groups = read_groups(session.directory, record)
    return SearchWorker(run, side, layouts, matcher, limits, budget, wanted, groups)


def _diagonal_first(works: Sequence[LayerWork]) -> list[list[LayerWork]]:
    """Return the works in two phases: what tiles on the diagonal find spares much of the work on all others."""
    first = [
        replace(work, missing=work.missing & np.eye(*work.missing.shape, dtype=np.bool_)) for work in works
    ]
    rest = [
        replace(work, missing=work.missing & ~early.missing) for work, early in zip(works, first, strict=True)
    ]
    return [first, rest]


def _find_work(session: Session, memory: WorkerMemory, record: RunRecord, layer: str) -> LayerWork:
    """Create the array of a layer's tiles and return its missing tiles."""
    matcher, sizes, layout = memory.matcher, record.layers[layer], record.layout(layer)
    store = tile_files(session.directory, record, layer)
    is_done = result_store(session.directory, record, layer).is_done(layout)
    store.create(layout, _choose_dtype(session, matcher, record, store), record.id_of(layer))
    if is_done:  # and checked; or nothing needs the candidates any more
        present = layout.wanted()
    else:
        present = store.present(layout)
        suspect = store.changed(layout, session.inventory)
        present = present & ~_remove_damaged(session, record, layer, suspect)
    session.counts["matching"]["found"] += int(present.sum())
    return LayerWork(
        layer,
        layout,
        layout.wanted() & ~present,
        matcher.pair_seconds(sizes.n_tokens, sizes.n_channels),
        memory.prepared_bytes(layout.tile_size, sizes),
    )


def _choose_dtype(
    session: Session, matcher: Matcher, record: RunRecord, store: TileStore | CandidateStore
) -> str:
    """Return the type of a layer's tiles: that of those that exist, or what matcher and features allow."""
    if store.exists():
        with contextlib.suppress(DamagedDescriptionError):  # `create` writes it anew
            return str(store.dtype)
    norms_i, norms_j = (
        FeatureStore(session.directory.features, side, store.layer).read_squared_norms()
        for side in (record.row_side, "images")
    )
    return choose_dtype(matcher.is_exact, norms_i, norms_j)


def _remove_damaged(
    session: Session, record: RunRecord, layer: str, suspect: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Let workers read tiles, and return which of them were damaged and are deleted.

    A crash of the machine can leave unreadable tiles of an unfinished session; of a finished one, those are suspect
    that were written since. Reading takes at most a few hundredths of the time in which the tiles were computed.
    """
    removed, count = np.zeros_like(suspect), int(suspect.sum())
    if not count:
        return removed
    outcome = session.work(
        "check",
        lambda: session.start_tasks(TileChecker(session.directory.path, record)),
        _checks(layer, suspect, session.engine.slots),
        unit="tiles",
        total=count,
    )
    if outcome.failures:
        raise StorageError(
            f"layer {layer}: {len(outcome.failures)} of {count} tiles cannot be read, so whether they are intact is "
            f"not known; nothing was removed and nothing computed:\n{list_failures(outcome.failures)}"
        )
    damaged = [cast("Tile", tile) for tile, _ in outcome.values]
    for tile in damaged:
        removed[tile.row, tile.column] = True
    if damaged:
        session.warn(f"layer {layer}: damaged tiles ({len(damaged)}) were removed and are computed again")
    return removed


def _checks(layer: str, present: NDArray[np.bool_], workers: int) -> Iterator[Task]:
    """Yield tasks that check the tiles, a row after the other."""
    size = min(CHECKED_TILES, -(-int(present.sum()) // (4 * workers)))
    tiles = (
        Tile(layer, row, int(column)) for row, there in enumerate(present) for column in np.flatnonzero(there)
    )
    while some := tuple(islice(tiles, size)):
        yield Task(units=some, cost=len(some))

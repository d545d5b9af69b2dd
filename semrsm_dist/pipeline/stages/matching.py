"""Matching: find the missing tiles of each layer, and let workers solve them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from semrsm_dist.engine.protocol import Task
from semrsm_dist.engine.scheduler import Failure
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.pipeline.session import Session
from semrsm_dist.pipeline.sizing import panel_budget
from semrsm_dist.pipeline.stages.matching_worker import MatchingWorker
from semrsm_dist.plan.cost import choose_block_size
from semrsm_dist.plan.tiling import Layout, Tile, plan_blocks, split_tail
from semrsm_dist.store.matrices import MatrixStore
from semrsm_dist.store.record import RunRecord
from semrsm_dist.store.tiles import TileStore

TASKS_PER_WORKER = 8
"""Minimum tasks per worker, so that uneven ones balance out."""

SHORTEST_TASK = 0.5
"""Seconds below which a task is too short to hand out."""


@dataclass(frozen=True, slots=True)
class LayerWork:
    """The missing tiles of one layer.

    Parameters
    ----------
    layer, layout
        The layer and its layout.
    wanted
        The tiles that are missing.
    pair_seconds
        Estimated seconds of one pair.
    panel_bytes
        Memory of one prepared panel.
    """

    layer: str
    layout: Layout
    wanted: Sequence[tuple[int, int]]
    pair_seconds: float
    panel_bytes: int

    def count_found_pairs(self) -> int:
        """Return the number of pairs in the tiles that are not missing."""
        return self.layout.total_pairs - sum(self.layout.n_pairs(*tile) for tile in self.wanted)


def match_layers(session: Session, matcher: Matcher, record: RunRecord) -> list[Failure]:
    """Solve the missing tiles of the requested layers, and return those that were set aside.

    Parameters
    ----------
    session
        The session.
    matcher
        The matcher.
    record
        The run's record.
    """
    works = [_find_work(session, matcher, record, layer) for layer in record.requested]
    if not any(work.wanted for work in works):
        return []
    with session.timed("compile"):
        matcher.compile()
    by_layer = {work.layer: work for work in works}
    budget = panel_budget(session.config, matcher, record)
    worker = MatchingWorker(
        session.directory.path,
        record.row_side,
        {work.layer: work.layout for work in works},
        matcher,
        panel_bytes={work.layer: work.panel_bytes for work in works},
        room=budget,
    )
    task_seconds = session.config.matching.task_seconds
    outcome = session.work(
        "matching",
        lambda: session.start_tasks(worker, cpus=matcher.cpus, gpus=matcher.gpus),
        plan_tasks(works, workers=session.engine.slots, task_seconds=task_seconds, budget=budget),
        unit="pairs",
        total=sum(work.layout.total_pairs for work in works),
        done=sum(work.count_found_pairs() for work in works),
        effort=lambda receipt: (
            by_layer[cast("Tile", receipt.unit).layer].pair_seconds * receipt.counts["pairs"]
        ),
    )
    session.counts["matching"]["computed"] = session.counts["matching"]["tiles"]
    return outcome.failures


def _find_work(session: Session, matcher: Matcher, record: RunRecord, layer: str) -> LayerWork:
    """Create the array of a layer's tiles and return its missing tiles."""
    sizes, layout = record.layers[layer], record.layout(layer)
    store = TileStore(session.directory.tiles, layer)
    store.create(layout.n_rows, layout.n_columns, layout.tile_size)
    damaged = _remove_damaged(session, store)
    if damaged:
        session.warn(f"layer {layer}: {len(damaged)} damaged tiles were removed and are computed again")
    present = store.present()
    session.counts["matching"]["found"] += len(present)
    return LayerWork(
        layer,
        layout,
        [tile for tile in layout.tiles() if tile not in present],
        matcher.pair_seconds(sizes.n_tokens, sizes.n_channels),
        matcher.panel_bytes(layout.tile_size, sizes.n_tokens, sizes.n_channels),
    )


def _remove_damaged(session: Session, store: TileStore) -> list[tuple[int, int]]:
    """Read once what an unfinished session left: a crash of the machine can leave unreadable chunks."""
    if MatrixStore(session.directory.matrices, store.layer).is_complete():
        return []
    with session.timed("check"):
        return store.remove_damaged()


def plan_tasks(layers: Sequence[LayerWork], *, workers: int, task_seconds: float, budget: int) -> list[Task]:
    """Turn missing tiles into tasks: large blocks first, single tiles at the end.

    Parameters
    ----------
    layers
        The work of each layer.
    workers
        Number of workers that will share the tasks.
    task_seconds
        Target duration of a task; less if there would be too few tasks.
    budget
        Memory of one worker for panels, in bytes.
    """
    works = {work.layer: work for work in layers}

    def seconds(tiles: Sequence[Tile]) -> float:
        return sum(
            works[tile.layer].pair_seconds * works[tile.layer].layout.n_pairs(tile.row, tile.column)
            for tile in tiles
        )

    total = sum(seconds([Tile(work.layer, *tile) for tile in work.wanted]) for work in layers)
    target = min(task_seconds, max(total / (TASKS_PER_WORKER * workers), SHORTEST_TASK))
    blocks: list[list[Tile]] = []
    for work in layers:
        size = choose_block_size(work.pair_seconds, work.layout.tile_size, target, work.panel_bytes, budget)
        for block in plan_blocks(work.layout, work.wanted, size):
            blocks.append([Tile(work.layer, row, column) for row, column in block])
    blocks.sort(key=seconds, reverse=True)
    return [Task(units=tuple(part), cost=seconds(part)) for part in split_tail(blocks, workers)]

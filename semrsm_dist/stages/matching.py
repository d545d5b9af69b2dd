"""Matching: solve the tiles of all layers."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from semrsm_dist.engine.protocol import Receipt, Task
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.matching.panel import Panel
from semrsm_dist.matching.registry import make_matcher
from semrsm_dist.plan.cost import choose_block_side
from semrsm_dist.plan.tiling import Layout, Tile, plan_blocks, split_tail
from semrsm_dist.stages.faults import failure_receipt
from semrsm_dist.store.blocks import BlockStore
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.features import FeatureStore, count_tokens

TASKS_PER_WORKER = 8
"""At least so many tasks for each worker, so that uneven ones even out."""

SHORTEST_TASK = 0.5
"""Seconds below which a task is not worth handing out."""


@dataclass(frozen=True)
class MatchingWorker:
    """Solves tiles: loads each panel once per task, matches, writes the tile, and says so.

    Parameters
    ----------
    run
        The run directory.
    row_side
        `images` in a symmetric run, `queries` in a rectangular one. Columns are always `images`.
    layouts
        The layout of each layer.
    matcher, parameters
        The matcher and its parameters.
    """

    run: Path
    row_side: str
    layouts: Mapping[str, Layout]
    matcher: str
    parameters: Mapping[str, int | float]

    def __call__(self, units: tuple[Hashable, ...]) -> Iterator[Receipt]:
        """Solve tiles, which should be ordered by column; yield a receipt for each."""
        matcher = make_matcher(self.matcher, **self.parameters)
        panels = _Panels(self, matcher)
        for tile in cast("tuple[Tile, ...]", units):
            try:
                yield Receipt(tile, counts=self._solve(tile, matcher, panels))
            except Exception as error:  # noqa: BLE001 - one bad tile must not take its neighbours along
                yield failure_receipt(tile, error, self.run)

    def _solve(self, tile: Tile, matcher: Matcher, panels: _Panels) -> dict[str, float]:
        started = time.perf_counter()
        rows, columns = panels.load(tile)
        loaded = time.perf_counter()
        layout = self.layouts[tile.layer]
        result = matcher.solve_tile(rows, columns, triangular=layout.symmetric and tile.row == tile.column)
        solved = time.perf_counter()
        store = BlockStore(RunDirectory(self.run).blocks, tile.layer)
        store.write(
            (tile.row, tile.column), result.matched, result.identity, result.upper_bound - result.matched
        )
        return {
            "pairs": layout.n_pairs(tile.row, tile.column),
            "tiles": 1,
            "load_seconds": loaded - started,
            "product_seconds": result.products,
            "match_seconds": result.solving,
            "solve_seconds": solved - loaded - result.products - result.solving,
            "write_seconds": time.perf_counter() - solved,
        }


class _Panels:
    """The prepared panels a task holds: all rows of its block, and one column at a time."""

    def __init__(self, worker: MatchingWorker, matcher: Matcher) -> None:
        self._worker = worker
        self._matcher = matcher
        self._rows: dict[tuple[str, int], Panel] = {}
        self._column: tuple[tuple[str, int], Panel] | None = None

    def load(self, tile: Tile) -> tuple[Panel, Panel]:
        layout = self._worker.layouts[tile.layer]
        self._rows = {key: panel for key, panel in self._rows.items() if key[0] == tile.layer}
        row_key, column_key = (tile.layer, tile.row), (tile.layer, tile.column)
        if row_key not in self._rows:
            if layout.symmetric and self._column is not None and self._column[0] == row_key:
                self._rows[row_key] = self._column[1]
            else:
                self._rows[row_key] = self._read(self._worker.row_side, tile.layer, layout.rows(tile.row))
        if layout.symmetric and column_key in self._rows:
            return self._rows[row_key], self._rows[column_key]
        if self._column is None or self._column[0] != column_key:
            self._column = None  # let go of the old one before the new one takes memory
            self._column = column_key, self._read("images", tile.layer, layout.columns(tile.column))
        return self._rows[row_key], self._column[1]

    def _read(self, side: str, layer: str, images: slice) -> Panel:
        store = FeatureStore(RunDirectory(self._worker.run).features, side, layer)
        z = store.read(images)
        return self._matcher.prepare(z, count_tokens(z))


@dataclass(frozen=True, slots=True)
class LayerWork:
    """What is left to solve in one layer.

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


def plan_tasks(layers: Sequence[LayerWork], *, workers: int, task_seconds: float, budget: int) -> list[Task]:
    """Turn missing tiles into tasks: large blocks first, single tiles at the tail.

    Parameters
    ----------
    layers
        The work of each layer.
    workers
        Number of workers that will share the tasks.
    task_seconds
        Wanted duration of a task; less where the work would not go round.
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
        side = choose_block_side(work.pair_seconds, work.layout.side, target, work.panel_bytes, budget)
        for block in plan_blocks(work.layout, work.wanted, side):
            blocks.append([Tile(work.layer, row, column) for row, column in block])
    blocks.sort(key=seconds, reverse=True)
    return [Task(units=tuple(part), cost=seconds(part)) for part in split_tail(blocks, workers)]

"""Blocks: in which order, and how many at once, missing tiles are handed to workers. Pure: no I/O, no clock.

The tiles of a layer are taken band by band. A *band* is as many row panels as a worker can hold, and within it the
tiles go column by column: a worker that solves consecutive tiles loads each column panel once for the whole band. Only
the map of missing tiles is in memory, never a list of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.plan.tiling import Layout, Tile

PORTIONS = 4
"""What is left is handed out as if in this many tasks for each worker, so that tasks become shorter towards the end."""

SHORTEST_TASK = 0.5
"""Seconds below which a task is too short to hand out."""

TASK_OVERHEAD = 0.005
"""Seconds that a task takes of the driver's time: with many workers, tasks last long enough for one driver.

So many workers are kept busy by tasks of `TASK_OVERHEAD * workers` seconds. Where little is left, there is no second
task for each: what is left is over soonest in tasks of sqrt(TASK_OVERHEAD * left) seconds, of which the first ends when
the last is handed out.
"""

LARGEST_BLOCK = 1024
"""Tiles of a task: what the driver loses at most with a worker, and the size of a message."""


@dataclass(frozen=True, eq=False)
class LayerWork:
    """The missing tiles of one layer."""

    layer: str
    layout: Layout
    missing: NDArray[np.bool_]
    """Which tiles are missing: (row panels, column panels), True only for tiles of the layout."""
    pair_seconds: float
    """Estimated seconds of one pair."""
    panel_bytes: int
    """Memory of the prepared images along one edge of a tile."""

    @property
    def n_missing(self) -> int:
        """Number of missing tiles."""
        return int(np.count_nonzero(self.missing))

    @property
    def missing_pairs(self) -> int:
        """Number of pairs in the missing tiles."""
        return int(self.layout.pairs()[self.missing].sum())

    @property
    def missing_seconds(self) -> float:
        """Estimated seconds of the missing tiles."""
        return self.pair_seconds * self.missing_pairs

    def seconds(self, tile: Tile) -> float:
        """Return the estimated seconds of a tile."""
        return self.pair_seconds * self.layout.n_pairs(tile.row, tile.column)


class BlockPlanner:
    """Cuts missing tiles into blocks, one at a time, of some seconds by what earlier blocks took.

    Parameters
    ----------
    works
        The missing tiles of each layer. Those whose tiles take longest come first.
    workers
        Number of workers that share them.
    task_seconds
        Longest that a block should take; with so many workers that one driver could not feed them, longer.
    budget
        Memory of one worker for panels, in bytes.
    """

    def __init__(self, works: Sequence[LayerWork], *, workers: int, task_seconds: float, budget: int) -> None:
        self._works = {work.layer: work for work in works}
        self._workers = workers
        self._longest = max(task_seconds, TASK_OVERHEAD * workers)
        self._budget = budget
        self._left = {work.layer: work.missing_seconds for work in works}
        self._estimated = dict.fromkeys(self._works, 0.0)
        self._measured = dict.fromkeys(self._works, 0.0)
        by_size = sorted(works, key=lambda work: work.pair_seconds * work.layout.tile_size**2, reverse=True)
        self._tiles = (tile for work in by_size for tile in self._in_order(work))
        self._next = next(self._tiles, None)

    def observe(self, layer: str, pairs: float, seconds: float) -> None:
        """Note how long a worker took for pairs of a layer: later blocks are cut by that, not by the estimate."""
        self._estimated[layer] += pairs * self._works[layer].pair_seconds
        self._measured[layer] += seconds

    def take_block(self) -> tuple[list[Tile], float]:
        """Return the next tiles, all of one layer, and their estimated seconds; none if all are handed out."""
        if self._next is None:
            return [], 0.0
        layer = self._next.layer
        work, limit = self._works[layer], self._block_seconds() / self._pace(layer)
        tiles: list[Tile] = []
        cost = 0.0
        while self._next is not None and self._next.layer == layer and len(tiles) < LARGEST_BLOCK:
            more = work.seconds(self._next)
            if tiles and cost + more > limit:
                break
            tiles.append(self._next)
            cost += more
            self._next = next(self._tiles, None)
        self._left[layer] -= cost
        return tiles, cost

    def __iter__(self) -> Iterator[tuple[list[Tile], float]]:
        """Yield blocks until all tiles are handed out."""
        while self._next is not None:
            yield self.take_block()

    def _block_seconds(self) -> float:
        """Return how long the next block should take."""
        left = sum(seconds * self._pace(layer) for layer, seconds in self._left.items())
        fed = min(TASK_OVERHEAD * self._workers, math.sqrt(TASK_OVERHEAD * max(left, 0.0)))
        return min(self._longest, max(left / (PORTIONS * self._workers), SHORTEST_TASK, fed))

    def _pace(self, layer: str) -> float:
        """Return how many times as long as estimated a layer's tiles take."""
        if min(self._estimated[layer], self._measured[layer]) <= 0:
            return 1.0
        return self._measured[layer] / self._estimated[layer]

    def _in_order(self, work: LayerWork) -> Iterator[Tile]:
        """Yield a layer's missing tiles; the height of a band is chosen when the one before is handed out."""
        row = 0
        while row < work.layout.row_panels:
            height = self._height(work)
            for column, below in np.argwhere(work.missing[row : row + height].T).tolist():
                yield Tile(work.layer, row + below, column)
            row += height

    def _height(self, work: LayerWork) -> int:
        """Return the row panels of a band: blocks are about square, and a column panel fits beside them."""
        tile_seconds = work.pair_seconds * self._pace(work.layer) * work.layout.tile_size**2
        tiles = min(self._block_seconds() / max(tile_seconds, 1e-9), LARGEST_BLOCK)
        by_memory = self._budget // max(work.panel_bytes, 1) - 1
        return max(1, min(math.isqrt(int(tiles)), by_memory))

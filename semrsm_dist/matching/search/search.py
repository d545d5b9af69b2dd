"""Searching all pairs for the best hits: blocks of queries in threads, bounds first."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.compiled.product import rounding_of_product
from semrsm_dist.matching.matchers.auction import Auction
from semrsm_dist.matching.panel import PackedPanel
from semrsm_dist.matching.search.block import SearchPanel, decide_pairs, similarity_bounds
from semrsm_dist.matching.search.progressive import NOBODY, Settings, merge
from semrsm_dist.matching.search.pruning_bounds import principal_directions

Groups = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Numbers of the groups of rows (N,) and columns (M,), equal where an image cannot be a hit."""

Outcome = TypeVar("Outcome")

_BLOCK_ROWS = 32
_BLOCK_PAIRS = 2**20  # bounds that a thread holds at once


class Search:
    """One search: the images in the forms that its stages need, and the best hits so far.

    Without a database, pair (i, j) with i < j is decided once, for both images: it is dropped when its bound is below
    the k-th best of both. So that there is a k-th best to begin with, the k pairs of each image with the
    highest bounds are solved first.

    `rows` and `columns` are the N queries and M database images, one object if they are the same; k is at most M.
    """

    _on_device: ClassVar[bool] = False

    def __init__(
        self, matcher: Auction, rows: PackedPanel, columns: PackedPanel, k: int, groups: Groups | None = None
    ) -> None:
        self.matcher, self.groups = matcher, groups
        self.same = rows is columns
        double = np.float64 in (rows.raw.dtype, columns.raw.dtype)
        directions = principal_directions(columns)
        prepare = partial(SearchPanel.of, directions=directions, double=double, on_device=self._on_device)
        self.columns = prepare(columns)
        self.rows = self.columns if self.same else prepare(rows)
        sketches = self.columns.sketches
        rounding = rounding_of_product(rows.n_channels)
        self.settings = Settings(matcher.tolerance, rounding, sketches.n_channels, sketches.rounding, False)
        self.best = np.full((rows.n_images, k), -np.inf)  # similarities of the best hits
        self.indices = np.full((rows.n_images, k), NOBODY)  # their columns
        self.counts = np.zeros(4, np.int64)  # pairs by what decided them, in the order of `progressive`
        self._likely: list[NDArray[np.intp]] = []  # later images that an image was compared with first
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def run(self, workers: int) -> None:
        """Decide all pairs, in threads."""
        with ThreadPoolExecutor(workers) as pool:
            if self.same:
                pairs = np.concatenate(self._on_blocks(pool, self._find_likely))
                self._likely = _later_partners(pairs, self.rows.n_images)
                self._on_blocks(pool, self._search_likely)
            self._on_blocks(pool, self._search_rest)

    def _on_blocks(self, pool: ThreadPoolExecutor, task: Callable[[slice], Outcome]) -> list[Outcome]:
        """Return a task's result for each block of rows; start no further block after an error or interrupt."""

        def unless_stopped(block: slice) -> Outcome | None:
            return None if self._stop.is_set() else task(block)

        futures = [pool.submit(unless_stopped, block) for block in self._blocks()]
        try:
            return [outcome for future in futures if (outcome := future.result()) is not None]
        except BaseException:
            self._stop.set()
            raise

    def _blocks(self) -> Iterator[slice]:
        n_rows = max(1, min(_BLOCK_ROWS, _BLOCK_PAIRS // self.columns.n_images))
        for first in range(0, self.rows.n_images, n_rows):
            yield slice(first, min(first + n_rows, self.rows.n_images))

    def _find_likely(self, block: slice) -> NDArray[np.intp]:
        """Return pairs (n, 2) of each image of a block and the k others with the highest bounds."""
        bounds = self._bounds(block, 0)
        k = self.best.shape[1]
        highest = np.argpartition(-bounds, k - 1, axis=1)[:, :k]
        r, place = np.nonzero(np.take_along_axis(bounds, highest, axis=1) > -np.inf)
        return np.column_stack([r + block.start, highest[r, place]])

    def _search_likely(self, block: slice) -> None:
        bounds = np.full((block.stop - block.start, self.columns.n_images), -np.inf)
        for row, others in zip(bounds, self._likely[block], strict=True):
            row[others] = 1.0
        self._search(block, bounds)

    def _search_rest(self, block: slice) -> None:
        bounds = self._bounds(block, block.start if self.same else 0)
        if self.same:
            for r, others in enumerate(self._likely[block]):
                bounds[r, : block.start + r] = -np.inf
                bounds[r, others] = -np.inf
        self._search(block, bounds)

    def _bounds(self, block: slice, first: int) -> NDArray[np.float64]:
        """Return upper bounds (R, M) on similarities; -inf for what is no pair and for columns before `first`."""
        bounds = np.full((block.stop - block.start, self.columns.n_images), -np.inf)
        bounds[:, first:] = similarity_bounds(self.rows, block, self.columns, slice(first, None))
        if self.groups is not None:
            left, right = self.groups
            bounds[left[block, None] == right] = -np.inf
        if self.same:
            bounds[np.arange(len(bounds)), np.arange(block.start, block.stop)] = -np.inf
        return bounds

    def _search(self, block: slice, bounds: NDArray[np.float64]) -> None:
        """Decide all pairs of a block whose bound is not -inf, the most promising first."""
        with self._lock:
            best, indices = self.best[block].copy(), self.indices[block].copy()
            floors = self.best[:, -1].copy() if self.same else np.full(self.columns.n_images, np.inf)
        sides = self.rows, self.columns
        order, hits = decide_pairs(
            self.matcher, sides, block.start, bounds, (best, indices, floors), self.settings
        )
        r_solved, w_solved = np.nonzero(~np.isnan(hits.solved))
        found = (r_solved + block.start, order[r_solved, w_solved], hits.solved[r_solved, w_solved])
        with self._lock:
            merge(self.best, self.indices, *found, self.same)
            self.counts += hits.counts


def _later_partners(pairs: NDArray[np.intp], n_images: int) -> list[NDArray[np.intp]]:
    """Return for each image the later ones that it is paired with, in either order, each once."""
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    starts = np.searchsorted(pairs[:, 0], np.arange(n_images + 1))
    return [pairs[start:stop, 1] for start, stop in itertools.pairwise(starts)]

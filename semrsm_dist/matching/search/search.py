"""Searching all pairs for the best hits: blocks of queries in threads, bounds first."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.assignment.auction_pair import Images, images_of
from semrsm_dist.matching.compiled.product import padded, rounding_of_product
from semrsm_dist.matching.kernels import cosine, even_exponents
from semrsm_dist.matching.matchers.auction import Auction
from semrsm_dist.matching.panel import PackedPanel
from semrsm_dist.matching.search.progressive import (
    NOBODY,
    SOLVED,
    Candidates,
    Hits,
    SearchImages,
    Settings,
    make_memory,
    merge,
    offer,
    search_rows,
)
from semrsm_dist.matching.search.pruning_bounds import (
    Sketches,
    principal_directions,
    sketch,
    sort_channels,
    sorted_channel_bounds,
)

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

    def __init__(
        self, matcher: Auction, rows: PackedPanel, columns: PackedPanel, k: int, groups: Groups | None = None
    ) -> None:
        self.matcher, self.rows, self.columns, self.groups = matcher, rows, columns, groups
        self.same = rows is columns
        directions = principal_directions(columns)
        sketches = sketch(columns, directions)
        images, others = images_of(rows, columns)
        self.right = _side(columns, others, sketches)
        self.left = self.right if self.same else _side(rows, images, sketch(rows, directions))
        self.sorted_columns = sort_channels(columns)
        self.sorted_rows = self.sorted_columns if self.same else sort_channels(rows)
        rounding = rounding_of_product(rows.n_channels)
        self.settings = Settings(matcher.tolerance, rounding, sketches.n_channels, sketches.rounding)
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
        rows, columns = self.rows.part(block), self.columns.part(slice(first, None))
        matched = sorted_channel_bounds(rows, self.sorted_rows[block], columns, self.sorted_columns[first:])
        bounds = np.full((rows.n_images, self.columns.n_images), -np.inf)
        # Rounded like the similarities themselves, so a bound stays one. NaN: norms of zero, no similarity.
        bounds[:, first:] = cosine(matched, rows.squared_norms, columns.squared_norms)
        bounds[np.isnan(bounds)] = -np.inf
        if self.groups is not None:
            left, right = self.groups
            bounds[left[block, None] == right] = -np.inf
        if self.same:
            bounds[np.arange(rows.n_images), np.arange(block.start, block.stop)] = -np.inf
        return bounds

    def _search(self, block: slice, bounds: NDArray[np.float64]) -> None:
        """Decide all pairs of a block whose bound is not -inf, the most promising first."""
        width = int((bounds > -np.inf).sum(axis=1).max())
        order = np.ascontiguousarray(np.argsort(-bounds, axis=1, kind="stable")[:, :width])
        bounds = np.take_along_axis(bounds, order, axis=1)
        with self._lock:
            best, indices = self.best[block].copy(), self.indices[block].copy()
            floors = self.best[:, -1].copy() if self.same else np.full(self.columns.n_images, np.inf)
        hits = Hits(best, indices, np.full(order.shape, np.nan), np.zeros(4, np.int64))
        candidates = Candidates(block.start, order, bounds, floors)
        memory = make_memory(self.rows.n_tokens, self.rows.n_channels)
        r = w = 0
        while True:
            r, w = search_rows((self.left, self.right), candidates, self.settings, memory, hits, (r, w))
            if r == len(order):
                break
            hits.solved[r, w] = self._finish(block.start + r, int(order[r, w]))
            offer(best[r], indices[r], hits.solved[r, w], order[r, w])
            hits.counts[SOLVED] += 1
            w += 1
        r_solved, w_solved = np.nonzero(~np.isnan(hits.solved))
        found = (r_solved + block.start, order[r_solved, w_solved], hits.solved[r_solved, w_solved])
        with self._lock:
            merge(self.best, self.indices, *found, self.same)
            self.counts += hits.counts

    def _finish(self, r: int, c: int) -> float:
        """Return the similarity of a pair that needs the exact finish."""
        row, column = self.rows.part(slice(r, r + 1)), self.columns.part(slice(c, c + 1))
        matched, _, _ = self.matcher.match_prepared(row, 0, column, 0)
        return float(cosine([[matched]], row.squared_norms, column.squared_norms)[0, 0])


def _side(panel: PackedPanel, images: Images, sketches: Sketches) -> SearchImages:
    prices = np.zeros((panel.n_images, padded(panel.n_tokens)), np.float32)
    norms = even_exponents(panel.squared_norms)
    return SearchImages(images, *norms, sketches.packed, prices, np.zeros(panel.n_images, np.int64))


def _later_partners(pairs: NDArray[np.intp], n_images: int) -> list[NDArray[np.intp]]:
    """Return for each image the later ones that it is paired with, in either order, each once."""
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    starts = np.searchsorted(pairs[:, 0], np.arange(n_images + 1))
    return [pairs[start:stop, 1] for start, stop in itertools.pairwise(starts)]

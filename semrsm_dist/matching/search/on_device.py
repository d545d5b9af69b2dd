"""A search whose pairs are all matched on GPUs first; only those that may be hits are left to the CPU."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.errors import LimitError
from semrsm_dist.machine import available_memory
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.matching.matchers.auction import Auction
from semrsm_dist.matching.panel import PackedPanel
from semrsm_dist.matching.result import TileResult
from semrsm_dist.matching.search.device_bounds import prove
from semrsm_dist.matching.search.search import Groups, Search
from semrsm_dist.matching.similarity import most_threads, solve_tiles

_PAIR_BYTES = 2 * (4 + 4 + 8)  # of a candidate: row, column and bound, and a copy while they are sorted
_MEMORY_SHARE = 4  # candidates take at most 1/4


class DeviceSearch(Search):
    """A search of which GPUs do the most: `device` matches all pairs, and `matcher` those that are undecided then."""

    _on_device = True

    def __init__(
        self,
        device: Matcher,
        matcher: Auction,
        rows: PackedPanel,
        columns: PackedPanel,
        k: int,
        groups: Groups | None = None,
    ) -> None:
        super().__init__(matcher, rows, columns, k, groups)
        self._device = device
        self._sides = rows, columns
        self._firsts = np.zeros(0, np.intp)
        self._others, self._upper = np.zeros(0, np.int32), np.zeros(0)

    def run(self, workers: int) -> None:
        """Find candidates on the GPUs, and decide them in threads."""
        candidates = _Candidates(
            self._sides, self.best.shape[1], self.matcher.tolerance, self.same, self.groups
        )
        solve_tiles(self._device, self._sides, self.same, most_threads(self._device), candidates.add)
        first, self._others, self._upper = candidates.sorted()
        self._firsts = np.searchsorted(first, np.arange(self._sides[0].n_images + 1))
        super().run(workers)
        left = self._others.size // 2 if self.same else self._others.size
        self.counts[-1] += candidates.n_pairs - left  # which the GPUs have solved for good

    def _bounds(self, block: slice, first: int) -> NDArray[np.float64]:
        bounds = np.full((block.stop - block.start, self.columns.n_images), -np.inf)
        for row, r in zip(bounds, range(block.start, block.stop), strict=True):
            own = slice(self._firsts[r], self._firsts[r + 1])
            row[self._others[own]] = self._upper[own]
        bounds[:, :first] = -np.inf
        return bounds


class _Candidates:
    """The pairs that may be hits, by what tiles have shown so far; `add` may be called from several threads."""

    def __init__(
        self,
        sides: tuple[PackedPanel, PackedPanel],
        k: int,
        tolerance: float,
        same: bool,
        groups: Groups | None,
    ) -> None:
        self._sides = sides
        self._tolerance, self._same, self._groups = tolerance, same, groups
        self._certain = np.full((sides[0].n_images, k), -np.inf)  # the k largest of each image of the rows
        self._found: list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]]] = []
        self._n_found, self._prune_at = 0, 2**22
        self._most = available_memory() // (_MEMORY_SHARE * _PAIR_BYTES)
        self._lock = threading.Lock()
        self.n_pairs = 0

    def add(self, r: slice, c: slice, tile: TileResult) -> None:
        """Note the pairs of a tile that may be hits."""
        certain, upper = prove(tile, self._sides[0].part(r), self._sides[1].part(c), self._tolerance)
        excluded = upper == -np.inf
        if self._groups is not None:
            excluded |= self._groups[0][r, None] == self._groups[1][c]
        if self._same and r == c:
            excluded |= np.tri(len(upper), dtype=np.bool_)
        upper[excluded] = certain[excluded] = -np.inf
        with self._lock:
            self.n_pairs += int(np.count_nonzero(~excluded))
            self._raise_floors(r, certain)
            if self._same:
                self._raise_floors(c, certain.T)
            floors = self._certain.min(axis=1)
            limits = np.minimum(floors[r, None], floors[c]) if self._same else floors[r, None]
            rows, columns = np.nonzero(~excluded & (upper >= limits))
            self._found.append(
                (
                    (rows + r.start).astype(np.int32),
                    (columns + c.start).astype(np.int32),
                    upper[rows, columns],
                )
            )
            self._n_found += rows.size
            if self._n_found > self._prune_at:
                self._prune()

    def sorted(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]]:
        """Return rows, columns and bounds of the candidates by row; without a database, both ways round."""
        self._prune()
        rows, columns, upper = self._found[0]
        if self._same:
            rows, columns = np.concatenate([rows, columns]), np.concatenate([columns, rows])
            upper = np.concatenate([upper, upper])
        order = np.argsort(rows, kind="stable")
        return rows[order], columns[order], upper[order]

    def _raise_floors(self, part: slice, certain: NDArray[np.float64]) -> None:
        """Keep the k largest of what is certain (R, K) of some images."""
        known = self._certain[part]
        rises = np.flatnonzero((certain > known.min(axis=1)[:, None]).any(axis=1))
        both = np.concatenate([known[rises], certain[rises]], axis=1)
        known[rises] = np.partition(both, certain.shape[1], axis=1)[:, certain.shape[1] :]

    def _prune(self) -> None:
        """Drop what later tiles have shown to be no hit."""
        rows, others, upper = (np.concatenate(parts) for parts in zip(*self._found, strict=True))
        floors = self._certain.min(axis=1)
        limits = np.minimum(floors[rows], floors[others]) if self._same else floors[rows]
        kept = upper >= limits
        self._found = [(rows[kept], others[kept], upper[kept])]
        self._n_found = int(np.count_nonzero(kept))
        if self._n_found > self._most:
            raise LimitError(
                f"device: cuda: {self._n_found} pairs are too similar to tell hits from others by the tolerance "
                f"{self._tolerance:g}, and do not fit into memory: use a smaller tolerance, or device: cpu"
            )
        self._prune_at = max(2**22, 2 * self._n_found)

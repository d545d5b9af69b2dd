"""Searching one tile of a matrix for neighbours: the pairs that can be among the k most similar of one of their images.

Tiles are searched independently of each other. What ties them together are *floors*: for each image, a similarity that
the k-th best of all its pairs is known to reach. A pair is dropped only when its similarity is proved to be below the
floors of both images. So whatever the floors were, if only they were none too high, the k best pairs of an image are
among those that its tiles keep: stale floors, or none, cost time alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.compiled.product import rounding_of_product
from semrsm_dist.matching.matchers.auction import Auction
from semrsm_dist.matching.panel import prepare_packed_panel
from semrsm_dist.matching.search.block import SearchPanel, decide_pairs, similarity_bounds
from semrsm_dist.matching.search.device_bounds import Proven, kth_largest, prove
from semrsm_dist.matching.search.progressive import (
    NOBODY,
    SINGLE_ROUNDING,
    WITHOUT_PRODUCT,
    Settings,
    merge,
)

BLOCK_ROWS = 32
"""Rows that are searched before the floors of the columns are raised by what was found in them."""


class Pairs(NamedTuple):
    """Pairs with their numbers, each an array (n,).

    `matched`, `identity` and `upper_bound` are as in `semrsm_dist.matching.result.TileResult`; `similarity` is the
    cosine of `matched`.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    matched: NDArray[np.float64]
    identity: NDArray[np.float64]
    upper_bound: NDArray[np.float64]
    similarity: NDArray[np.float64]

    def some(self, which: NDArray[Any]) -> Self:
        """Return the pairs of a mask, or at some places."""
        return type(self)(*(values[which] for values in self))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Return all pairs of some lists."""
        return cls(*map(np.concatenate, zip(*parts, strict=True)))


class Searched(NamedTuple):
    """What was found in two panels."""

    pairs: Pairs
    """Those that can be neighbours, with indices in the panels."""
    counts: NDArray[np.int64]
    """Pairs by what decided them, in the order of `semrsm_dist.matching.search.progressive`."""
    bound_seconds: float
    """What the bounds of all pairs took."""


class Criterion(NamedTuple):
    """What decides whether a pair is kept."""

    k: int
    """Neighbours of an image."""
    threshold: float
    """Least similarity of neighbours; -inf is none."""
    single: bool
    """Whether similarities are those of inner products rounded to float32."""


@dataclass(frozen=True)
class TileSearch:
    """Searches tiles."""

    matcher: Auction
    wanted: Criterion
    """What decides whether a pair is kept."""
    both: bool
    """Whether columns have neighbours, too: rows and columns are the same images."""
    on_device: Auction | None = None
    """A matcher on GPUs: it matches all pairs, and `matcher` those that can be neighbours by what that proves.

    The pairs that are kept, and their numbers, are the same.
    """

    def compile(self) -> None:
        """Compile everything that is compiled at first use, as `Matcher.compile` does."""
        self.matcher.compile()
        z = np.random.default_rng(0).normal(size=(3, 4, 3)).astype(np.float32)
        panel = SearchPanel.of(prepare_packed_panel(z), np.zeros((3, 0)), double=False)
        no_floors, no_groups = np.full(3, -np.inf), np.full(3, -1)
        self.search(panel, panel, (no_floors, no_floors), (no_groups, no_groups))

    def search(
        self,
        rows: SearchPanel,
        columns: SearchPanel,
        floors: tuple[NDArray[np.float64], NDArray[np.float64]],
        groups: tuple[NDArray[np.int64], NDArray[np.int64]],
        *,
        triangular: bool = False,
    ) -> Searched:
        """Return the pairs of two panels that can be neighbours.

        Parameters
        ----------
        rows, columns
            The panels, sketched in the same directions.
        floors
            For each row (R,) and column (K,), a similarity that its k-th best reaches; -inf if nothing is known.
        groups
            For each row and column, the number of its group, equal where they cannot be neighbours; -1 for none.
        triangular
            `rows` is `columns`: only pairs r < k are searched.
        """
        k, threshold, single = self.wanted
        row_floors = np.maximum(floors[0], threshold)
        column_floors = np.maximum(floors[1], threshold) if self.both else np.full(columns.n_images, np.inf)
        best = np.full((columns.n_images, k), -np.inf)  # of the columns, and so of the rows if triangular
        indices = np.full((columns.n_images, k), NOBODY)
        settings = Settings(
            self.matcher.tolerance,
            rounding_of_product(rows.panel.n_channels),
            rows.sketches.n_channels,
            max(rows.sketches.rounding, columns.sketches.rounding),
            single,
        )
        found, counts, started = [], np.zeros(4, np.int64), time.perf_counter()
        bounds_of: Callable[[slice], NDArray[np.float64]]
        bounds_of = partial(self._bounds, rows, columns, groups, triangular)
        if self.on_device is not None:
            proven = self._match_on_device(self.on_device, rows, columns, groups, triangular)
            row_floors = np.maximum(row_floors, kth_largest(proven.least, k))
            if self.both:
                column_floors = np.maximum(column_floors, kth_largest(proven.least.T, k))
            most, counts[WITHOUT_PRODUCT] = self._drop(proven, row_floors, column_floors, triangular)
            bounds_of = most.__getitem__
        seconds = time.perf_counter() - started
        for start in range(0, rows.n_images, BLOCK_ROWS):
            block = slice(start, min(start + BLOCK_ROWS, rows.n_images))
            started = time.perf_counter()
            bounds = bounds_of(block)
            seconds += time.perf_counter() - started
            own = np.full((len(bounds), k), -np.inf)
            if triangular:
                own[:] = best[block]
            seeds = np.maximum(own, row_floors[block, None])  # in place of the hits that reached them
            state = seeds, np.full(own.shape, NOBODY), np.maximum(column_floors, best[:, -1])
            order, hits = decide_pairs(
                self.matcher, (rows, columns), start, bounds, state, settings, in_full=True
            )
            r, w = np.nonzero(~np.isnan(hits.solved))
            matched, identity, bound = hits.numbers[:, r, w]
            solved = Pairs(r + start, order[r, w], matched, identity, bound, hits.solved[r, w])
            if self.both:
                merge(best, indices, solved.columns, solved.rows, solved.similarity, triangular)
            found.append(solved)
            counts += hits.counts
        return Searched(Pairs.join(found), counts, seconds)

    def select(
        self,
        pairs: Pairs,
        floors: tuple[NDArray[np.float64], NDArray[np.float64]],
    ) -> Pairs:
        """Return those of a tile's pairs that can be neighbours of one of their images, by row and column."""
        k, threshold, _ = self.wanted
        keep = np.zeros(pairs.rows.size, bool)
        sides = ((pairs.rows, pairs.columns, floors[0]), (pairs.columns, pairs.rows, floors[1]))
        for owners, others, least in sides[: 2 if self.both else 1]:
            best = rank_pairs(owners, others, pairs.similarity, (least.size, k))
            best = best[best >= 0]
            keep[best[pairs.similarity[best] >= np.maximum(least, threshold)[owners[best]]]] = True
        kept = pairs.some(keep)
        return kept.some(np.lexsort((kept.columns, kept.rows)))

    def _match_on_device(
        self,
        matcher: Auction,
        rows: SearchPanel,
        columns: SearchPanel,
        groups: tuple[NDArray[np.int64], NDArray[np.int64]],
        triangular: bool,
    ) -> Proven:
        """Return what the matches of a GPU prove (R, K); of a panel with itself, each way round."""
        tile = matcher.solve_tile(rows.panel, columns.panel, triangular=triangular)
        matcher.check_tile(tile, rows.panel, columns.panel)
        proven = prove(tile, rows.panel, columns.panel, self.matcher.tolerance, single=self.wanted.single)
        barred = _barred(groups[0], groups[1])
        if triangular:
            np.fill_diagonal(barred, val=True)
        for values in proven:
            values[barred] = -np.inf
        return proven

    def _drop(
        self,
        proven: Proven,
        row_floors: NDArray[np.float64],
        column_floors: NDArray[np.float64],
        triangular: bool,
    ) -> tuple[NDArray[np.float64], int]:
        """Return upper bounds (R, K), -inf for what is no pair or can be no neighbour, and the number of the latter."""
        slack = SINGLE_ROUNDING if self.wanted.single else 0.0
        most = (
            np.where(np.tri(*proven.most.shape, dtype=np.bool_), -np.inf, proven.most)
            if triangular
            else proven.most
        )
        dropped = (most > -np.inf) & (most < np.minimum(row_floors[:, None], column_floors) - slack)
        return np.where(dropped, -np.inf, most), int(np.count_nonzero(dropped))

    def _bounds(
        self,
        rows: SearchPanel,
        columns: SearchPanel,
        groups: tuple[NDArray[np.int64], NDArray[np.int64]],
        triangular: bool,
        block: slice,
    ) -> NDArray[np.float64]:
        """Return upper bounds (R, K) on the similarities of a block of rows; -inf for what is no pair."""
        first = block.start if triangular else 0
        bounds = np.full((block.stop - block.start, columns.n_images), -np.inf)
        bounds[:, first:] = similarity_bounds(rows, block, columns, slice(first, None))
        if triangular:
            bounds[np.arange(columns.n_images) <= np.arange(block.start, block.stop)[:, None]] = -np.inf
        bounds[_barred(groups[0][block], groups[1])] = -np.inf
        return bounds


def _barred(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which pairs (R, K) are of the same group."""
    barred: NDArray[np.bool_] = (left[:, None] == right) & (left[:, None] >= 0)
    return barred


def rank_pairs(
    owners: NDArray[np.int64],
    others: NDArray[np.int64],
    similarity: NDArray[np.float64],
    shape: tuple[int, int],
) -> NDArray[np.int64]:
    """Return the places (N, k) of the k best pairs of each owner; -1 where it has fewer.

    The most similar come first, equal ones by the index of the other image. A pair that is given twice counts once.
    """
    order = np.lexsort((others, -similarity, owners))
    owner, other = owners[order], others[order]
    again = (owner[1:] == owner[:-1]) & (other[1:] == other[:-1])
    order = order[np.concatenate([np.ones(min(1, order.size), bool), ~again])]
    owner = owners[order]
    rank = np.arange(order.size) - np.searchsorted(owner, owner)
    table = np.full(shape, -1)
    first = rank < shape[1]
    table[owner[first], rank[first]] = order[first]
    return table

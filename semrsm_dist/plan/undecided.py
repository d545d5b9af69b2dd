"""How many pairs a search for neighbours leaves to products and to matching: order statistics of a sample. Pure.

A tile decides a pair by its bound alone unless the bound reaches the lower of two floors: for each of its images, the
k-th best similarity among the m images that it has *seen*, that is, been compared with. For images in random order the
floor is about the quantile 1 - k / m of the image's similarities, whatever the size of the run. So the share of pairs
that stay undecided depends on what rows and columns have seen, and n sampled images tell it for any m. Up to n, the
floor is the k-th best among m of them. Beyond, the r-th best among n stands for it, r < k, where m is about n k / r.

*About*: let a share grow like q^g with the quantile q. That of the r-th best of n is distributed as Beta(r, n - r + 1),
so the expectation of q^g is ``Gamma(r + g) / Gamma(r) * Gamma(n + 1) / Gamma(n + 1 + g)``. The shares at two ranks give
g, and g gives the m among which the k-th best leaves as much undecided as the r-th best among n. Beyond the last rank,
shares are taken to fall like m^-g.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator
from scipy.optimize import brentq
from scipy.special import gammaln

from semrsm_dist.plan.tiling import Layout

Numbers = NDArray[np.float64]

Share = Callable[[Numbers, Numbers], Numbers]
"""The share of undecided pairs of tiles, (T,), whose rows and columns have seen this many images, (T,) each."""

_LEAST_GROWTH, _MOST_GROWTH = 1e-6, 8.0


class Floors(NamedTuple):
    """What sampled images have at least: the `rank`-th best similarity among `seen` others.

    `rows` (R,) and `columns` (K,) are the floors of the images of both sides; inf where an image has no neighbours.
    """

    seen: int
    rank: int
    rows: Numbers
    columns: Numbers


def rank_growth(high: int, low: int, ratio: float) -> float:
    """Return the g of shares that grow like q^g, by the share at rank `low` as a part of that at a higher rank."""

    def excess(growth: float) -> float:
        return _log_order(low, growth) - _log_order(high, growth) - math.log(ratio)

    if not 0 < ratio < 1 or excess(_LEAST_GROWTH) <= 0:
        return 0.0
    if excess(_MOST_GROWTH) >= 0:
        return _MOST_GROWTH
    return float(brentq(excess, _LEAST_GROWTH, _MOST_GROWTH))


def equivalent_seen(seen: float, rank: int, k: int, growth: float) -> float:
    """Return among how many images the k-th best leaves as much undecided as that of `rank` among `seen`."""
    growth = max(growth, _LEAST_GROWTH)
    return seen * math.exp((_log_order(k, growth) - _log_order(rank, growth)) / growth)


def _log_order(rank: int, growth: float) -> float:
    """Return the logarithm of ``Gamma(rank + growth) / Gamma(rank)``."""
    return float(gammaln(rank + growth) - gammaln(rank))


@dataclass(frozen=True, eq=False)
class BoundShares:
    """The share of pairs whose bound reaches the lower floor, by what rows and columns have seen.

    For (L,) numbers of images seen, ascending, the shares are (L, L), more than 0.
    """

    seen: Numbers
    shares: Numbers

    @classmethod
    def measure(cls, bounds: Numbers, floors: Sequence[Floors], k: int) -> BoundShares:
        """Measure shares of sampled pairs.

        Parameters
        ----------
        bounds
            (R, K) upper bounds of similarities; -inf where there is no pair.
        floors
            Of sampled images, from those that have seen so few that there is no floor to those that have seen all, at
            ranks from k down; the last two give all that is beyond.
        k
            Neighbours of an image.
        """
        is_pair = bounds > -np.inf
        least = 1.0 / max(2, int(is_pair.sum()))  # where none of the sampled pairs stays undecided

        def share(one: Floors, other: Floors) -> float:
            floor = np.minimum(one.rows[:, None], other.columns)
            return max(least, float(np.count_nonzero((bounds >= floor) & is_pair)) * least)

        growth = 1.0
        whole = [each for each in floors if each.seen == floors[-1].seen]
        if len(whole) > 1:
            first, last = whole[0], whole[-1]
            growth = rank_growth(first.rank, last.rank, share(last, last) / share(first, first))
        places: list[float] = []
        kept: list[Floors] = []
        for each in floors:
            seen = equivalent_seen(each.seen, each.rank, k, growth)
            if not places or seen > places[-1] * (1 + 1e-9):
                places.append(seen)
                kept.append(each)
        return cls(np.array(places), np.array([[share(one, other) for other in kept] for one in kept]))

    def __call__(self, rows: Numbers, columns: Numbers) -> Numbers:
        """Return the share where rows and columns have seen this many images, (T,) each."""
        if self.seen.size < 2:
            return np.full(np.shape(rows), float(self.shares[0, 0]))
        first, last = self.seen[0], self.seen[-1]
        seen = np.maximum(np.stack([rows, columns], axis=-1), first)
        beyond = np.maximum(1.0, seen.max(axis=-1) / last)
        inside = np.log(np.clip(seen / beyond[..., None], first, last))
        shares: Numbers = np.exp(self._inside(inside)) * beyond**-self._growth
        return shares

    @cached_property
    def _inside(self) -> RegularGridInterpolator:
        axis = np.log(self.seen)
        axis[[0, -1]] += [-1e-9, 1e-9]  # rounding
        return RegularGridInterpolator((axis, axis), np.log(self.shares))

    @cached_property
    def _growth(self) -> float:
        """The power with which shares fall beyond all that was measured."""
        fall = math.log(self.shares[-2, -2] / self.shares[-1, -1])
        return max(0.0, fall / math.log(self.seen[-1] / self.seen[-2]))


@dataclass(frozen=True, eq=False)
class MatchedShares:
    """The share of pairs that must be matched: those whose similarity itself reaches the lower floor.

    Which images these are does not matter: k of m reach the floor of an image that has seen m.
    """

    k: int
    """Neighbours of an image."""
    reaching: Numbers
    """(R,) for each sampled image, the share of others that reach the threshold of neighbours; inf if at least k do."""
    mutual: float | None
    """The share of an image's neighbours that have it as their neighbour; None if columns have no neighbours."""

    def __call__(self, rows: Numbers, columns: Numbers) -> Numbers:
        """Return the share where rows and columns have seen this many images, (T,) each."""
        of_rows = self._one_sided(rows)
        if self.mutual is None:
            return of_rows
        of_columns = self._one_sided(columns)
        both: Numbers = of_rows + of_columns - self.mutual * np.minimum(of_rows, of_columns)
        return np.minimum(both, 1.0)

    def _one_sided(self, seen: Numbers) -> Numbers:
        different, places = np.unique(seen, return_inverse=True)
        shares = np.minimum(self.k / np.maximum(different, self.k)[:, None], self.reaching).mean(axis=1)
        found: Numbers = shares[places].reshape(np.shape(seen))
        return found


def count_undecided(layout: Layout, share: Share, block_rows: int) -> float:
    """Return how many pairs a layer's tiles leave undecided.

    Parameters
    ----------
    layout
        How the layer is cut into tiles. Those on the diagonal come first, then row by row: so the rows of tile (r, c)
        of a symmetric layout have seen c panels before it, and the columns r + 1.
    share
        The share of a tile's pairs.
    block_rows
        Rows of a tile that are searched before the floors of its columns are raised. Those of a row are raised at once,
        and its most promising pairs come first, so that its other pairs find what all of the tile leaves.
    """
    size, wanted = layout.tile_size, layout.wanted()
    if layout.symmetric:
        np.fill_diagonal(wanted, val=False)
    rows, columns = np.nonzero(wanted)
    ends = np.minimum(np.arange(1, layout.column_panels + 1) * size, layout.n_columns)
    on_diagonal = np.diff(ends, prepend=0)[np.minimum(rows, layout.column_panels - 1)]
    seen_by_rows = ends[columns] + np.where((columns < rows) & (rows < layout.column_panels), on_diagonal, 0)
    seen_by_rows[columns == rows] = on_diagonal[columns == rows]
    count = 0.0
    if rows.size:
        count = float(
            layout.pairs()[rows, columns]
            @ share(seen_by_rows.astype(np.float64), (rows.astype(np.float64) + 1.5) * size)
        )
    return count + (_count_on_diagonal(layout, share, block_rows) if layout.symmetric else 0.0)


def _count_on_diagonal(layout: Layout, share: Share, block_rows: int) -> float:
    """Return how many pairs the tiles on the diagonal leave undecided: at first, columns have no floor at all."""
    heights = [layout.rows(panel).stop - layout.rows(panel).start for panel in range(layout.row_panels)]
    count = 0.0
    for height in set(heights):
        starts = np.arange(0, height, block_rows)
        blocks = np.minimum(block_rows, height - starts)
        pairs = blocks * (height - starts) - blocks * (blocks + 1) // 2
        seen = np.full(starts.size, float(height)), starts.astype(np.float64)
        count += heights.count(height) * float(pairs @ share(*seen))
    return count

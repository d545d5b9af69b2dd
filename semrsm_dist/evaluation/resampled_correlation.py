"""Correlations over the pairs of images where images count more or less often: what a bootstrap over images needs.

Each pair has a weight, the product of how often its two images were drawn; pairs of an image with its own copy are left
out. Everything is sorted once, so that a resample costs little more than a pass over the pairs. In memory: for the
images of a bootstrap, not for millions of pairs.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.evaluation.pairs import ROUNDING, is_constant
from semrsm_dist.matching.compiled.jit import compiled

Weights = NDArray[np.int64]


class ResampledCorrelation:
    """Correlations of the entries above the diagonal of two matrices, for any counts of the images.

    Parameters
    ----------
    x, y : (N, N)
        The matrices; pairs with NaN in either are left out.
    """

    def __init__(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        i, j = np.triu_indices(len(x), k=1)
        values_x, values_y = x[i, j], y[i, j]
        kept = ~(np.isnan(values_x) | np.isnan(values_y))
        order = np.flatnonzero(kept)[np.argsort(values_x[kept], kind="stable")]
        self._i, self._j = i[order], j[order]
        self._x, self._y = values_x[order], values_y[order]
        self._place_x = _dense_ranks(self._x)
        self._place_y = _dense_ranks(self._y)
        self._is_constant = order.size < 2 or any(
            is_constant(float(values.min()), float(values.max())) for values in (self._x, self._y)
        )
        self._rounding = [ROUNDING * np.abs(values).max(initial=0.0) for values in (self._x, self._y)]
        if not self._is_constant:
            self._x, self._y = self._x - self._x.mean(), self._y - self._y.mean()

    def weights(self, counts: Weights) -> Weights:
        """Return how often each pair occurs where image i was drawn `counts[i]` times; for the methods below."""
        return counts[self._i] * counts[self._j]

    def pearson(self, weights: Weights) -> float:
        """Return the linear correlation; NaN where it is undefined."""
        return (
            math.nan if self._is_constant else _weighted_pearson(self._x, self._y, weights, *self._rounding)
        )

    def spearman(self, weights: Weights) -> float:
        """Return the linear correlation of the ranks, each pair as often as it occurs, ties by their mean rank."""
        if self._is_constant:
            return math.nan
        ranks_x, ranks_y = (
            _weighted_ranks(places, weights, int(places.max()) + 1)
            for places in (self._place_x, self._place_y)
        )
        return _weighted_pearson(ranks_x, ranks_y, weights)

    def kendall(self, weights: Weights) -> float:
        """Return tau-a over all choices of two pairs; a pair and its own copies are tied."""
        total = int(weights.sum())
        if self._is_constant or not all(_vary(places, weights) for places in (self._place_x, self._place_y)):
            return math.nan
        concordance = _concordance(self._place_x, self._place_y, weights, int(self._place_y.max()) + 1)
        return concordance / (total * (total - 1) // 2)


def _dense_ranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the place of each number among the distinct ones, from 0."""
    places: NDArray[np.int64] = np.unique(values, return_inverse=True)[1]
    return places


@compiled
def _weighted_ranks(places: NDArray[np.int64], weights: Weights, n_places: int) -> NDArray[np.float64]:
    """Return the mean rank of each number, where it and its equals occur as often as their weights say."""
    occurrences = np.zeros(n_places, dtype=np.int64)
    for p in range(len(places)):
        occurrences[places[p]] += weights[p]
    ranks = np.empty(n_places, dtype=np.float64)
    before = 0
    for place in range(n_places):
        ranks[place] = before + (occurrences[place] + 1) / 2
        before += occurrences[place]
    return ranks[places]


def _vary(places: NDArray[np.int64], weights: Weights) -> bool:
    """Tell whether there are two different places among those that occur."""
    there = places[weights > 0]
    return bool(there.size) and bool(there.min() < there.max())


def _weighted_pearson(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    weights: Weights,
    rounding_x: float = 0.0,
    rounding_y: float = 0.0,
) -> float:
    """Return the correlation; NaN where the numbers that occur lie apart by no more than rounding."""
    spread_x, spread_y, product = _weighted_products(x, y, weights)
    total = int(weights.sum())
    if not (spread_x > total * rounding_x**2 and spread_y > total * rounding_y**2):
        return math.nan
    return float(np.clip(product / math.sqrt(spread_x) / math.sqrt(spread_y), -1.0, 1.0))


@compiled
def _weighted_products(
    x: NDArray[np.float64], y: NDArray[np.float64], weights: Weights
) -> tuple[float, float, float]:
    """Return the sums of squares of x and of y and of their products about the weighted means; of nothing, zeros.

    A loop, because threaded products of long vectors take many times as long on a machine with other work.
    """
    total = 0
    sum_x = sum_y = 0.0
    for p in range(len(x)):
        total += weights[p]
        sum_x += weights[p] * x[p]
        sum_y += weights[p] * y[p]
    spread_x = spread_y = product = 0.0
    if total > 0:
        mean_x, mean_y = sum_x / total, sum_y / total
        for p in range(len(x)):
            from_x, from_y = x[p] - mean_x, y[p] - mean_y
            spread_x += weights[p] * from_x * from_x
            spread_y += weights[p] * from_y * from_y
            product += weights[p] * from_x * from_y
    return spread_x, spread_y, product


@compiled
def _concordance(place_x: NDArray[np.int64], place_y: NDArray[np.int64], weights: Weights, n_y: int) -> int:
    """Return concordant minus discordant choices of two, for pairs in the order of x.

    A binary indexed tree holds how often each place of y occurred among the smaller x (P. M. Fenwick, 1994).
    """
    tree = np.zeros(n_y + 1, dtype=np.int64)
    seen = 0
    balance = 0
    n = len(place_x)
    start = 0
    while start < n:
        stop = start
        while stop < n and place_x[stop] == place_x[start]:
            if weights[stop] > 0:
                below = _sum_of(tree, place_y[stop])
                up_to = _sum_of(tree, place_y[stop] + 1)
                balance += weights[stop] * (below - (seen - up_to))
            stop += 1
        for p in range(start, stop):  # equal x only now: they are neither concordant nor discordant
            if weights[p] > 0:
                seen += weights[p]
                node = place_y[p] + 1
                while node <= n_y:
                    tree[node] += weights[p]
                    node += node & -node
        start = stop
    return balance


@compiled
def _sum_of(tree: NDArray[np.int64], n_places: int) -> int:
    """Return the sum over the first places."""
    total = 0
    node = n_places
    while node > 0:
        total += tree[node]
        node -= node & -node
    return total

"""How well similarity separates pairs that belong together from all other pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.errors import InputError
from semrsm_dist.evaluation.bootstrap import Interval, percentile_interval

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Spread:
    """The distribution of similarities over pairs of defined similarity; NaN where there is none."""

    median: Interval
    lower_quartile: float
    upper_quartile: float
    n_pairs: int


@dataclass(frozen=True, slots=True)
class Contrast:
    """Similarity of pairs that belong together, and of other pairs.

    `auc` is the probability that a pair that belongs together is more similar than one that does not, ties counting
    half: 0.5 is chance, 1 separates them perfectly, on any scale of similarity.
    """

    same: Spread
    different: Spread
    auc: Interval


def contrast_pairs(similarity: Values, counts: NDArray[np.int64]) -> Contrast:
    """Compare the diagonal of a matrix with the rest of it.

    Raises InputError if the matrix is not square or the counts are of another number of images.

    Parameters
    ----------
    similarity
        (n, n): views of n images against other views of the same images in the same order. NaN is left out: undefined
        similarities, and pairs that count as neither.
    counts
        (resamples, n), how often each image is drawn: `draw_counts`. A pair of different images weighs the product of
        their counts.
    """
    n_images = counts.shape[1]
    if similarity.shape != (n_images, n_images):
        raise InputError(
            f"expected a square matrix with a row for each of {n_images} images, found {similarity.shape}"
        )
    drawn = np.flatnonzero(~np.isnan(np.diagonal(similarity)))
    same = _Sorted(np.diagonal(similarity)[drawn])
    rows, columns = np.nonzero(~np.isnan(similarity) & ~np.eye(n_images, dtype=bool))
    different = _Sorted(similarity[rows, columns])
    rows, columns = rows[different.order], columns[different.order]
    drawn = drawn[same.order]
    ends = [np.searchsorted(different.values, same.values, side) for side in ("left", "right")]

    def measure(times: NDArray[np.int64]) -> tuple[float, float, float]:
        above, total = times[drawn], _cumulate(times[rows] * times[columns])
        wins = (total[ends[0]] + total[ends[1]]) / 2
        n_compared = float(above.sum() * total[-1])
        auc = float(above @ wins) / n_compared if n_compared else np.nan
        return same.median(_cumulate(above)), different.median(total), auc

    replicates = np.array([measure(times) for times in counts])
    estimates = measure(np.ones(n_images, dtype=np.int64))
    intervals = [
        percentile_interval(estimate, column)
        for estimate, column in zip(estimates, replicates.T, strict=True)
    ]
    return Contrast(same.spread(intervals[0]), different.spread(intervals[1]), intervals[2])


class _Sorted:
    """Numbers in ascending order, each of which may count several times."""

    def __init__(self, values: Values) -> None:
        self.order = np.argsort(values, kind="stable")
        self.values = values[self.order]

    def median(self, total: NDArray[np.int64]) -> float:
        """Return the median where `total` (n + 1,) tells how many there are before each number; NaN without any."""
        if total[-1] == 0:
            return np.nan
        low, high = (total[-1] + 1) // 2, total[-1] // 2 + 1  # the two in the middle, counted from 1
        places = np.searchsorted(total, [low, high], "left") - 1
        return float(self.values[places].mean())

    def spread(self, median: Interval) -> Spread:
        quartiles = np.quantile(self.values, [0.25, 0.75]) if self.values.size else [np.nan, np.nan]
        return Spread(median, float(quartiles[0]), float(quartiles[1]), self.values.size)


def _cumulate(times: NDArray[np.int64]) -> NDArray[np.int64]:
    total = np.zeros(times.size + 1, dtype=np.int64)
    np.cumsum(times, out=total[1:])
    return total

"""Confidence intervals by the bootstrap over images.

The entries of an RSM are not independent: each image takes part in a whole row and column. So images are
resampled, never entries. A resample is how often each image was drawn; a pair's weight is the product of
its images' counts, and pairs of one image with its own copy are left out by the caller.

B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from semrsm_dist.errors import ConfigError

RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate from the images as they are, and its bootstrap percentile interval; NaN where it is undefined."""

    estimate: float
    low: float
    high: float
    confidence: float

    def columns(self, value: str = "value") -> dict[str, float]:
        """Return the estimate and the interval as columns of a table."""
        return {value: self.estimate, "low": self.low, "high": self.high, "confidence": self.confidence}


def draw_counts(n_images: int, *, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.int64]:
    """Return how often each image is drawn in each resample, (resamples, n_images); rows sum to n_images.

    Raises ConfigError if there is no image or no resample.
    """
    if n_images < 1 or resamples < 1:
        raise ConfigError(
            f"a bootstrap needs at least one image and one resample, found {n_images} and {resamples}"
        )
    generator = np.random.default_rng(seed)
    return generator.multinomial(n_images, np.full(n_images, 1.0 / n_images), size=resamples)


def percentile_interval(estimate: float, replicates: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval that holds the middle `confidence` of the replicates.

    Replicates that are NaN (a resample in which the quantity is undefined) are left out. If they are more than half,
    the interval is NaN: the others are alike because few images allow few of them, as with three images a correlation
    has one value or none. Raises ConfigError if `confidence` is not between 0 and 1.
    """
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence must lie between 0 and 1, found {confidence}")
    values = np.asarray(replicates, dtype=np.float64)
    defined = values[~np.isnan(values)]
    if 2 * defined.size < max(values.size, 1):
        return Interval(float(estimate), np.nan, np.nan, confidence)
    low, high = np.quantile(defined, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return Interval(float(estimate), float(low), float(high), confidence)


def mean_interval(
    values: ArrayLike,
    *,
    clusters: NDArray[np.intp] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return the mean of one value per image, (n_images,), and its interval.

    NaN, for images without a value, is left out. With none left, everything is NaN. `clusters` (n_images,) are codes of
    which images are resampled together; by default each is on its own. One image or cluster has no interval: it says
    nothing of how others would differ.
    """
    given = np.asarray(values, dtype=np.float64)
    defined = given[~np.isnan(given)]
    if not defined.size:
        return Interval(np.nan, np.nan, np.nan, confidence)
    sums, sizes = defined, np.ones(defined.size)
    if clusters is not None:
        codes = np.unique(clusters[~np.isnan(given)], return_inverse=True)[1]
        if codes.max() + 1 < defined.size:
            sums, sizes = (np.bincount(codes, each).astype(np.float64) for each in (defined, sizes))
    if sums.size == 1:
        return Interval(float(defined.mean()), np.nan, np.nan, confidence)
    replicates = np.empty(resamples)
    generator = np.random.default_rng(seed)
    for index in range(resamples):  # one at a time: with many images, all counts would not fit in memory
        drawn = generator.integers(sums.size, size=sums.size)
        replicates[index] = sums[drawn].mean() / sizes[drawn].mean()
    return percentile_interval(float(defined.mean()), replicates, confidence)

"""How well two matrices agree, by several measures, each with a bootstrap over images.

CKA and Pearson are exact for any number of images, rank correlations up to `MOST_RANKED` pairs (see `correlation`). The
bootstrap needs all pairs of its images in memory. With many images, it therefore resamples a random subset and shrinks
the deviations by the root of the subset's share: the error of all these measures, functions of means over pairs, falls
with the root of the number of images (P. Bickel, F. Götze and W. van Zwet, Resampling fewer than n observations,
Statistica Sinica 7 (1997)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.evaluation.bootstrap import CONFIDENCE, Interval, draw_counts, percentile_interval
from semrsm_dist.evaluation.cka import cka
from semrsm_dist.evaluation.correlation import ResampledRanks, pearson, rank_correlations
from semrsm_dist.evaluation.entries import Entries

MEASURES = ("cka", "cka-biased", "pearson", "spearman", "kendall")
"""CKA is debiased unless its name says otherwise; kendall is tau-a."""

BOOTSTRAP_IMAGES = 500
"""Maximum images of a bootstrap: 125 thousand pairs, about 10 ms per resample."""


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """A measure of agreement, with its error by a bootstrap over images."""

    value: float
    """NaN where it is undefined."""
    replicates: NDArray[np.float64]
    """(R,) values of the resamples, around `value`; empty for a measure without a bootstrap."""
    n_pairs: int
    """Pairs of images used."""
    n_left_out: int
    """Pairs without a value in either matrix."""
    n_resampled: int
    """Images that were resampled; 0 without a bootstrap."""

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Return the bootstrap percentile interval."""
        return percentile_interval(self.value, self.replicates, confidence)

    def columns(self) -> dict[str, float | int]:
        """Return the value, its interval and its counts, as columns of a table."""
        return {
            **self.interval().columns(),
            "n_pairs": self.n_pairs,
            "n_left_out": self.n_left_out,
            "n_resampled": self.n_resampled,
        }

    def minus(self, other: Estimate) -> Estimate:
        """Return the difference; its interval is valid if both were resampled with the same seed and images."""
        return Estimate(
            self.value - other.value,
            self.replicates - other.replicates,
            min(self.n_pairs, other.n_pairs),
            max(self.n_left_out, other.n_left_out),
            self.n_resampled,
        )


def agreement(
    pairs: Entries,
    measures: Collection[str] = MEASURES,
    *,
    resamples: int = 0,
    seed: int = 0,
    bootstrap_images: int = BOOTSTRAP_IMAGES,
) -> dict[str, Estimate]:
    """Return measures of the agreement of two matrices, by name.

    Raises InputError as `cka`.

    Parameters
    ----------
    pairs
        The matrices, both symmetric.
    measures
        Some of `MEASURES`.
    resamples, seed
        Of the bootstrap over images; 0 for none. The biased CKA never has one: copies of an image raise it.
    bootstrap_images
        Maximum images to resample.
    """
    estimates = _without_bootstrap(pairs, measures)
    if not resamples:
        return estimates
    n, generator = pairs.n_rows, np.random.default_rng(seed)
    n_resampled = min(n, bootstrap_images)
    images = np.sort(generator.choice(n, n_resampled, replace=False)) if n_resampled < n else np.arange(n)
    x, y = pairs.subset(images)
    counts = draw_counts(n_resampled, resamples=resamples, seed=seed)
    replicates = _resample(x, y, counts, measures)
    if n_resampled < n:
        centres = _without_bootstrap(Entries.of(x, y), replicates)
        share = math.sqrt(n_resampled / n)
        replicates = {
            name: estimates[name].value + share * (values - centres[name].value)
            for name, values in replicates.items()
        }
    return estimates | {
        name: replace(estimates[name], replicates=values, n_resampled=n_resampled)
        for name, values in replicates.items()
    }


def _without_bootstrap(pairs: Entries, measures: Collection[str]) -> dict[str, Estimate]:
    none = np.empty(0)
    found: dict[str, Estimate] = {}
    for name in measures:
        if name in ("cka", "cka-biased"):
            aligned = cka(pairs, debiased=name == "cka")
            n_pairs = aligned.n_images * (aligned.n_images - 1) // 2
            found[name] = Estimate(float(aligned.values[0]), none, n_pairs, pairs.n_all - n_pairs, 0)
    correlations = {"pearson": pearson(pairs)} if "pearson" in measures else {}
    if {"spearman", "kendall"} & set(measures):
        correlations["spearman"], correlations["kendall"] = rank_correlations(pairs)
    for name, correlation in correlations.items():
        found[name] = Estimate(correlation.value, none, correlation.n_pairs, correlation.n_left_out, 0)
    return {name: found[name] for name in measures}


def _resample(
    x: NDArray[np.float64], y: NDArray[np.float64], counts: NDArray[np.int64], measures: Collection[str]
) -> Mapping[str, NDArray[np.float64]]:
    pairs, ranks = Entries.of(x, y), ResampledRanks(x, y)
    resampled: dict[str, Callable[[], NDArray[np.float64]]] = {
        "cka": lambda: cka(pairs, counts=counts).values,
        "pearson": lambda: pearson(pairs, (counts, counts)).values,
        "spearman": lambda: ranks.spearman(counts),
        "kendall": lambda: ranks.kendall(counts),
    }
    return {name: resampled[name]() for name in measures if name in resampled}

"""How much of the gain of matching an approximation keeps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from semrsm_dist.evaluation.bootstrap import CONFIDENCE, RESAMPLES, Interval, draw_counts, percentile_interval

ROUNDING = 1e-9
"""Differences of inner products below this, relative to the norms, are rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class MatchQuality:
    """Quality of a matching, pair by pair; arrays (R, K), NaN where a quantity is undefined."""

    ratio: NDArray[np.float64]
    """Value over optimum: undefined unless the optimum is positive."""
    share: NDArray[np.float64]
    """Share of the gain over no matching, ``(value - identity) / (optimum - identity)``: undefined where there is
    nothing to gain. Negative if worse than no matching."""
    loss: NDArray[np.float64]
    """``(optimum - value) / (||z_i|| ||z_j||)``, on the cosine scale: undefined where a norm is zero."""


def judge_matches(
    value: ArrayLike, identity: ArrayLike, optimum: ArrayLike, norms: ArrayLike, accuracy: float = 0.0
) -> MatchQuality:
    """Compare matched inner products with the best and with those of no matching, all of shape (R, K).

    Parameters
    ----------
    value, identity, optimum
        Inner products after matching, position by position, and of the best matching.
    norms
        ``||z_i|| ||z_j||``.
    accuracy
        How far the optimum may be off, relative to the norms. A gain or an optimum no larger counts as none.
    """
    value, identity, optimum, norms = (np.asarray(a, np.float64) for a in (value, identity, optimum, norms))
    least = max(accuracy, ROUNDING) * norms
    gain = optimum - identity
    with np.errstate(divide="ignore", invalid="ignore"):
        return MatchQuality(
            np.where(optimum > least, value / optimum, np.nan),
            np.where(gain > least, (value - identity) / gain, np.nan),
            np.where(norms > 0.0, (optimum - value) / norms, np.nan),
        )


def mean_over_pairs(values: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the mean over the pairs of two disjoint sets of images, with an interval from resampling both sets.

    `values` (R, K) are one per pair of a row image and a column image; NaN, for pairs without a value, is left out. A
    single pair has no interval.
    """
    table = np.asarray(values, np.float64)
    defined = ~np.isnan(table)
    if not defined.any():
        return Interval(np.nan, np.nan, np.nan, CONFIDENCE)
    if np.count_nonzero(defined) == 1:
        return Interval(float(table[defined].mean()), np.nan, np.nan, CONFIDENCE)
    rows = draw_counts(table.shape[0], resamples=resamples, seed=seed)
    columns = draw_counts(table.shape[1], resamples=resamples, seed=seed + 1)
    total = np.einsum("bk,bk->b", rows @ np.where(defined, table, 0.0), columns)
    weight = np.einsum("bk,bk->b", rows @ defined.astype(np.float64), columns)
    with np.errstate(invalid="ignore"):
        replicates = total / weight
    return percentile_interval(float(table[defined].mean()), replicates)


def pareto_front(cost: ArrayLike, quality: ArrayLike) -> NDArray[np.bool_]:
    """Return which candidates (n,) are Pareto-optimal: no other is as good in both and better in one; NaN never is.

    Smaller cost and larger quality are better.
    """
    cost, quality = np.asarray(cost, np.float64), np.asarray(quality, np.float64)
    cheaper = cost[None, :] <= cost[:, None]
    better = quality[None, :] >= quality[:, None]
    strictly = (cost[None, :] < cost[:, None]) | (quality[None, :] > quality[:, None])
    beaten = (cheaper & better & strictly).any(axis=1)
    front: NDArray[np.bool_] = ~beaten & ~np.isnan(cost) & ~np.isnan(quality)
    return front

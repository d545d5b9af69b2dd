"""What a quantity measured per image depends on: linear regression with a bootstrap over images.

Where some images are near-duplicates of each other, whole groups are resampled. With many slopes, some are far from
zero by chance: `holm` adjusts their p-values so that the probability of any false discovery stays below the level.

S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from semrsm_dist.evaluation.bootstrap import CONFIDENCE, Interval, draw_counts, percentile_interval

Values = NDArray[np.float64]

RESAMPLES_AT_ONCE = 500


@dataclass(frozen=True, slots=True, eq=False)
class Slopes:
    """Slopes of P predictors, each for a change by one standard deviation with the others held fixed."""

    values: Values
    """(P,); NaN for a predictor that is constant, or the same as others together."""
    replicates: Values
    """(R, P) values of the resamples."""
    n: int
    """Images that were used."""
    n_resampled: int
    """Images, or clusters of them, that were resampled."""

    def interval(self, predictor: int, confidence: float = CONFIDENCE) -> Interval:
        """Return the bootstrap percentile interval of one slope."""
        return percentile_interval(float(self.values[predictor]), self.replicates[:, predictor], confidence)

    def p_values(self) -> Values:
        """Return the two-sided bootstrap p-value (P,) of each slope against zero."""
        return bootstrap_p_values(self.replicates, self.n_resampled)


def fit_slopes(
    predictors: Values,
    outcome: Values,
    *,
    clusters: NDArray[np.intp] | None = None,
    resamples: int,
    seed: int = 0,
) -> Slopes:
    """Regress an outcome on standardised predictors by least squares.

    Parameters
    ----------
    predictors : (N, P)
    outcome : (N,)
        Images with NaN in either are left out.
    clusters : (N,)
        Which images are resampled together, as codes; by default each on its own.
    resamples, seed
        Of the bootstrap.
    """
    kept = ~(np.isnan(predictors).any(axis=1) | np.isnan(outcome))
    x, y = predictors[kept], outcome[kept]
    n, n_predictors = x.shape
    codes = np.arange(n) if clusters is None else np.unique(clusters[kept], return_inverse=True)[1]
    nothing = np.full(n_predictors, np.nan)
    if n <= n_predictors + 1:
        return Slopes(nothing, np.full((resamples, n_predictors), np.nan), n, 0)
    spread = x.std(axis=0)
    design = np.column_stack(
        [np.ones(n), np.divide(x - x.mean(axis=0), spread, out=np.zeros_like(x), where=spread > 0)]
    )
    rank = int(np.linalg.matrix_rank(design))
    undetermined = _undetermined(design, rank)
    products = (design[:, :, None] * design[:, None, :]).reshape(n, -1)
    counts = draw_counts(int(codes.max()) + 1, resamples=resamples, seed=seed)
    replicates = np.empty((resamples, n_predictors))
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        part = slice(start, start + RESAMPLES_AT_ONCE)
        weights = counts[part][:, codes].astype(np.float64)
        squares = (weights @ products).reshape(len(weights), *2 * (design.shape[1],))
        replicates[part] = _solve(squares, weights @ (design * y[:, None]), rank)
    values = _solve(products.sum(axis=0).reshape(1, *2 * (design.shape[1],)), (y @ design)[None], rank)[0]
    values[undetermined], replicates[:, undetermined] = np.nan, np.nan
    return Slopes(values, replicates, n, counts.shape[1])


def _undetermined(design: Values, rank: int) -> NDArray[np.bool_]:
    """Return which predictors (P,), after the intercept, take part in what the rows of a design do not determine."""
    null = np.linalg.svd(design)[2][rank:]
    found: NDArray[np.bool_] = (np.abs(null) > np.sqrt(np.finfo(np.float64).eps)).any(axis=0)[1:]
    return found


def _solve(squares: Values, moments: Values, rank: int) -> Values:
    """Return the slopes (R, P) without the intercept, NaN where a resample determines fewer than all images do."""
    solved = (np.linalg.pinv(squares, hermitian=True) @ moments[..., None])[..., 0]
    solved[np.linalg.matrix_rank(squares, hermitian=True) < rank] = np.nan
    slopes: Values = solved[:, 1:]
    return slopes


def bootstrap_p_values(replicates: Values, n: int) -> Values:
    """Return two-sided p-values (P,) against zero of quantities with replicates (R, P), of n that were resampled.

    A p-value is twice the share of replicates on the rarer side of zero. It is at least 2 / (R + 1), and 2^(1 - n), the
    chance that n signs are alike: replicates of few images that are all on one side show no more. It is NaN where more
    than half of the replicates are NaN, as an interval is.
    """
    defined = np.count_nonzero(~np.isnan(replicates), axis=0)
    rarer = np.minimum(np.count_nonzero(replicates <= 0, axis=0), np.count_nonzero(replicates >= 0, axis=0))
    p_values = np.clip(2.0 * (1 + rarer) / (1 + defined), 2.0 ** (1 - n), 1.0)
    result: Values = np.where(2 * defined >= max(len(replicates), 1), p_values, np.nan)
    return result


def holm(p_values: ArrayLike) -> Values:
    """Return p-values (P,) adjusted for their number by Holm's method; NaN counts as no test."""
    given = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(given.shape, np.nan)
    tests = np.flatnonzero(~np.isnan(given))
    order = tests[np.argsort(given[tests], kind="stable")]
    factors = np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(given[order] * factors))
    return adjusted

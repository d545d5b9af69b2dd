"""Centred kernel alignment (CKA) of two similarity matrices: how similarly two layers relate images.

CKA is the correlation of two matrices after removing the contributions of single images. With RSMs in place of kernels
it is that of Kornblith et al. (2019), section 3. Semantic RSMs need not be positive definite, and nothing here requires
it.

- The biased CKA removes the means of rows and columns from the whole matrix. It counts each image's similarity with
  itself, and is too large when there are few images.
- The debiased CKA uses only pairs of different images i, j, and removes the best fit ``a_i + a_j``. It is the estimator
  of L. Song et al. (Feature selection via dependence maximization, JMLR 13 (2012), equation 5), used for CKA by
  T. Nguyen et al. (ICLR 2021, section 3): its centred matrix is the residual of this fit (G. Székely and M. Rizzo,
  Annals of Statistics 42 (2014), section 2). The fit has a meaning with weights too, which a bootstrap needs.

Only one block of rows of a matrix is in memory at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.errors import InputError
from semrsm_dist.evaluation.entries import ROUNDING, Entries, is_constant

Values = NDArray[np.float64]

FEWEST = 4
"""Minimum images of a debiased CKA: with three, ``a_i + a_j`` fits everything."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """CKA for one or several resamples of the images, and how many images were used and left out.

    A value is NaN where a matrix is constant but for its diagonal, or a sum ``a_i + a_j`` of what belongs to single
    images, or there are fewer than four different images. Debiased ones can be negative.
    """

    values: Values
    n_images: int
    n_left_out: int


def cka(matrices: Entries, *, debiased: bool = True, counts: NDArray[np.int64] | None = None) -> Alignment:
    """Return the CKA of two symmetric matrices.

    Raises InputError if an entry between two images with a defined diagonal is NaN.

    Parameters
    ----------
    matrices
        The matrices, their diagonals included. An image with NaN on the diagonal of either is left out.
    debiased
        Use only pairs of different images, which makes no difference when there are many images.
    counts : (R, N)
        How often each image is drawn in each of R resamples; by default each once. A pair of images weighs as much as
        the product of their counts. The debiased CKA leaves out pairs of an image with its own copy. For the biased
        one a copy is as similar as an image to itself; that raises it, so its resamples make no interval.
    """
    n = matrices.n_rows
    survey = _survey(matrices)
    weights = np.ones((n, 1)) if counts is None else counts.T.astype(np.float64)
    weights = weights * survey.defined[:, None]
    n_defined = int(survey.defined.sum())
    if survey.is_constant or n_defined < FEWEST:
        return Alignment(np.full(weights.shape[1], np.nan), n_defined, n - n_defined)
    sums_x, sums_y = np.empty_like(weights), np.empty_like(weights)
    products = {name: np.zeros(weights.shape[1]) for name in ("xy", "xx", "yy")}
    for rows in matrices.row_slices():
        own = np.arange(rows.start, rows.stop)
        # A constant in all entries changes nothing; without the mean, fewer digits cancel.
        x, y = (
            np.where(np.outer(survey.defined[rows], survey.defined), read(rows) - mean, 0.0)
            for read, mean in zip((matrices.read_x, matrices.read_y), survey.means, strict=True)
        )
        _require_whole(x, y)
        if debiased:
            x[own - rows.start, own] = y[own - rows.start, own] = 0.0
        sums_x[rows], sums_y[rows] = x @ weights, y @ weights
        for name, product in (("xy", x * y), ("xx", x * x), ("yy", y * y)):
            products[name] += (weights[rows] * (product @ weights)).sum(axis=0)
    centred = _without_fit if debiased else _without_means
    across = centred(products["xy"], sums_x, sums_y, weights)
    left = centred(products["xx"], sums_x, sums_x, weights)
    right = centred(products["yy"], sums_y, sums_y, weights)
    # What is left of a matrix without anything that belongs to two images, not one, is rounding of its squares.
    varies = (left > ROUNDING * products["xx"]) & (right > ROUNDING * products["yy"])
    enough = ((weights > 0).sum(axis=0) >= FEWEST) & varies
    values = np.full(len(across), np.nan)
    np.divide(across, np.sqrt(np.where(enough, left * right, 1.0)), out=values, where=enough)
    return Alignment(values, n_defined, n - n_defined)


def _without_means(product: Values, sums_x: Values, sums_y: Values, weights: Values) -> Values:
    """Return the weighted inner product of two matrices without the means of rows and columns.

    From the (R,) ``sum_ij w_i w_j x_ij y_ij``, the (N, R) ``sum_j w_j x_ij`` and the same of y, and w (N, R).
    """
    total = weights.sum(axis=0)
    totals = (weights * sums_x).sum(axis=0) * (weights * sums_y).sum(axis=0) / total**2
    result: Values = product - 2 * (weights * sums_x * sums_y).sum(axis=0) / total + totals
    return result


def _without_fit(product: Values, sums_x: Values, sums_y: Values, weights: Values) -> Values:
    """Return the same over i != j without the weighted least-squares fit ``a_i + a_j`` of x.

    From ``sum_{j != i} w_j (x_ij - a_i - a_j) = 0`` follows ``a_i = (sums_i - A) / (W - 2 w_i)`` with A the weighted
    sum of a; summing it up gives A. One matrix without its fit is enough, as a residual is orthogonal to any fit.
    """
    total = weights.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        # NaN where one image is half of all that were drawn: there the fit is not unique.
        shares = np.where(2 * weights < total, 1.0 / (total - 2 * weights), np.nan)
    sum_of_a = (weights * sums_x * shares).sum(axis=0) / (1 + (weights * shares).sum(axis=0))
    a = (sums_x - sum_of_a) * shares
    result: Values = product - 2 * (weights * a * sums_y).sum(axis=0)
    return result


@dataclass(frozen=True, slots=True, eq=False)
class _Survey:
    """Which images are defined, about the mean entries of both matrices, and whether either is constant."""

    defined: NDArray[np.bool_]
    means: Values
    is_constant: bool


def _survey(matrices: Entries) -> _Survey:
    defined = np.ones(matrices.n_rows, dtype=bool)
    low, high, total, count = np.full(2, np.inf), np.full(2, -np.inf), np.zeros(2), np.zeros(2)
    for rows in matrices.row_slices():
        own = np.arange(rows.start, rows.stop)
        for which, read in enumerate((matrices.read_x, matrices.read_y)):
            block = read(rows).copy()
            defined[rows] &= ~np.isnan(block[own - rows.start, own])
            block[own - rows.start, own] = np.nan
            values = block[~np.isnan(block)]
            if values.size:
                low[which], high[which] = min(low[which], values.min()), max(high[which], values.max())
                total[which] += values.sum()
                count[which] += values.size
    constant = any(is_constant(*ends) for ends in zip(low, high, strict=True))
    return _Survey(defined, total / np.maximum(count, 1), constant)


def _require_whole(*blocks: Values) -> None:
    if any(np.isnan(block).any() for block in blocks):
        raise InputError(
            "the similarity of two images is undefined although each one's to itself is not, as position by position "
            "where numbers of tokens differ; CKA cannot be taken of such a matrix: leave images out until all have as "
            "many tokens"
        )

"""Kernels from matched inner products and squared norms.

A permutation keeps norms, so with m = <Z_i, P Z_j> and n = ||Z||^2 the aligned pair has

    linear  m
    cosine  m / sqrt(n_i n_j)
    rbf     exp(-d2 / (2 sigma^2)),  d2 = n_i + n_j - 2 m

and one matching gives every kernel, with any sigma. All of them grow with m: a certified interval of m
is mapped end by end (`kernel_gap`). Everything is float64, because d2 cancels. NaN in `matched` (pairs
that are not solved) stays NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from semrsm_dist.errors import InputError, require_known
from semrsm_dist.fields import Positive
from semrsm_dist.matching.arguments import argument

Matrix = NDArray[np.float64]

_ROUNDING = 1e-12
"""Squared distances below this share of the squared norms are zero up to cancellation."""


def linear(matched: ArrayLike, n_i: ArrayLike, n_j: ArrayLike) -> Matrix:
    """Return the inner products themselves, (n, m) float64."""
    return _checked(matched, n_i, n_j)[0].copy()


def cosine(matched: ArrayLike, n_i: ArrayLike, n_j: ArrayLike) -> Matrix:
    """Return ``m / sqrt(n_i n_j)``, (n, m) float64 in [-1, 1].

    NaN where a representation is zero: it has no direction.
    """
    values, rows, columns = _checked(matched, n_i, n_j)
    return cosine_of_pairs(values, rows[:, None], columns[None, :])


def cosine_of_pairs(matched: Matrix, n_i: Matrix, n_j: Matrix) -> Matrix:
    """Return `cosine` of any pairs, to the last bit: of arrays that broadcast to the shape of `matched`."""
    # Even powers of two taken out of the norms keep their product in range, and are put back into the result without
    # rounding. The square root of n * n is n, so that an image is exactly as similar to itself as 1.
    mantissas_i, exponents_i = even_exponents(n_i)
    mantissas_j, exponents_j = even_exponents(n_j)
    norms = np.sqrt(mantissas_i * mantissas_j)
    result = np.full(matched.shape, np.nan)
    np.divide(matched, norms, out=result, where=norms > 0)
    np.ldexp(result, -(exponents_i + exponents_j), out=result)
    return np.clip(result, -1.0, 1.0, out=result)


def even_exponents(squared_norms: Matrix) -> tuple[Matrix, NDArray[np.intc]]:
    """Return (m, e) with n = m * 4**e and m in [0.5, 2), so that sqrt(n) = sqrt(m) * 2**e; m is 0 where n is."""
    mantissas, exponents = np.frexp(squared_norms)
    halves = exponents // 2
    return np.ldexp(mantissas, exponents - 2 * halves), halves


def squared_distances(matched: ArrayLike, n_i: ArrayLike, n_j: ArrayLike) -> Matrix:
    """Return ``n_i + n_j - 2 m``, (n, m) float64, never negative.

    A distance that is zero up to rounding is set to zero.
    """
    values, rows, columns = _checked(matched, n_i, n_j)
    return _distances_of_pairs(values, rows[:, None], columns[None, :])


def _distances_of_pairs(matched: Matrix, n_i: Matrix, n_j: Matrix) -> Matrix:
    sums = n_i + n_j
    distances: Matrix = sums - 2.0 * matched
    distances[distances <= _ROUNDING * sums] = 0.0
    return distances


def median_width(matched: ArrayLike, n_i: ArrayLike, n_j: ArrayLike) -> float:
    """Return ``sqrt(median of the non-zero squared distances)``, the paper's choice of sigma.

    All entries of the matrix count, except those that are zero or NaN. The diagonal of a symmetric matrix
    (equal norms on both sides and ``matched`` equal to its transpose) never counts: it compares images with
    themselves. If no entry is left, all images coincide, any sigma gives the same kernel, and
    1 is returned.
    """
    values, rows, columns = _checked(matched, n_i, n_j)
    distances = squared_distances(values, rows, columns)
    if np.array_equal(rows, columns) and np.array_equal(values, values.T, equal_nan=True):
        np.fill_diagonal(distances, 0.0)
    counted = distances[distances > 0.0]  # also leaves out NaN
    return math.sqrt(float(np.median(counted))) if counted.size else 1.0


def rbf(matched: ArrayLike, n_i: ArrayLike, n_j: ArrayLike, sigma: float | None = None) -> Matrix:
    """Return ``exp(-d2 / (2 sigma^2))``, (n, m) float64 in [0, 1].

    Raises ConfigError if `sigma` is not a positive number.

    Parameters
    ----------
    matched : array_like, (n, m)
        Matched inner products.
    n_i, n_j : array_like, (n,), (m,)
        Squared norms.
    sigma : float, optional
        Width, positive. By default `median_width` of this matrix; give it when a matrix is derived block by
        block.
    """
    sigma = median_width(matched, n_i, n_j) if sigma is None else argument("sigma", sigma, Positive)
    return _rbf_of_distances(squared_distances(matched, n_i, n_j), sigma)


def _rbf_of_distances(distances: Matrix, sigma: float) -> Matrix:
    with np.errstate(over="ignore"):  # infinitely far for this width
        return np.exp(-0.5 * distances / sigma / sigma)


KERNELS: Mapping[str, Callable[..., Matrix]] = MappingProxyType(
    {"linear": linear, "cosine": cosine, "rbf": rbf}
)
"""Every kernel by its name in configurations."""


def derive(
    kernel: str, matched: ArrayLike, n_i: ArrayLike, n_j: ArrayLike, sigma: float | None = None
) -> Matrix:
    """Return a kernel's similarities from matched inner products.

    Parameters
    ----------
    kernel : str
        ``linear``, ``cosine`` or ``rbf``.
    matched : array_like, (n, m)
        Matched inner products, of a whole matrix or, with `sigma` given for ``rbf``, of a block.
    n_i, n_j : array_like, (n,), (m,)
        Squared norms of the representations of rows and columns.
    sigma : float, optional
        Width of ``rbf``; the other kernels do not use it.

    Returns
    -------
    ndarray of float64, (n, m)

    Raises
    ------
    ConfigError
        Unknown kernel, or a sigma that is not positive.
    InputError
        Shapes that do not fit together.
    """
    require_known("kernel", kernel, KERNELS)
    return rbf(matched, n_i, n_j, sigma) if kernel == "rbf" else KERNELS[kernel](matched, n_i, n_j)


def derive_pairs(
    kernel: str, matched: Matrix, n_i: Matrix, n_j: Matrix, sigma: float | None = None
) -> Matrix:
    """Return `derive` of any pairs: of arrays that broadcast to the shape of `matched`; ``rbf`` needs its width."""
    require_known("kernel", kernel, KERNELS)
    if kernel == "rbf":
        width = argument("sigma", sigma, Positive)
        return _rbf_of_distances(_distances_of_pairs(matched, n_i, n_j), width)
    return cosine_of_pairs(matched, n_i, n_j) if kernel == "cosine" else matched.copy()


def kernel_gap(
    kernel: str,
    matched: ArrayLike,
    upper_bound: ArrayLike,
    n_i: ArrayLike,
    n_j: ArrayLike,
    sigma: float | None = None,
) -> Matrix:
    """Return how far each similarity can be below that of the best permutation, (n, m) float64.

    Kernels grow with the matched inner product, so the bound maps to a bound. For ``rbf``, sigma is by default that
    of `matched`, and taken as exact.
    """
    if kernel == "rbf" and sigma is None:
        sigma = median_width(matched, n_i, n_j)
    return derive(kernel, upper_bound, n_i, n_j, sigma) - derive(kernel, matched, n_i, n_j, sigma)


def _checked(matched: ArrayLike, n_i: ArrayLike, n_j: ArrayLike) -> tuple[Matrix, Matrix, Matrix]:
    values = np.asarray(matched, dtype=np.float64)
    rows = np.asarray(n_i, dtype=np.float64)
    columns = np.asarray(n_j, dtype=np.float64)
    if rows.ndim != 1 or columns.ndim != 1 or values.shape != (rows.size, columns.size):
        raise InputError(
            "expected matched inner products (n, m) with squared norms (n,) and (m,), found "
            f"{values.shape}, {rows.shape} and {columns.shape}"
        )
    return values, rows, columns

"""Conditions that stored numbers meet, whatever the images: pure functions of arrays.

Tolerances are shares of the product of two images' norms: what arithmetic in float32 may add or lose.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from semrsm_dist.results.verification.report import Kind

ROUNDING = 2e-6
"""What results may contradict each other by: twice what a run accepts of a matcher, as they are rounded when stored."""

GAP_ROUNDING = 2.0**-4
"""Share by which stored gaps are rounded up at most."""


class Problem(NamedTuple):
    """A condition that some numbers do not meet."""

    kind: Kind
    message: str


class Numbers(NamedTuple):
    """What is stored of pairs, three arrays of one shape, float64."""

    matched: NDArray[np.float64]
    """Inner products after matching."""
    identity: NDArray[np.float64]
    """Inner products position by position."""
    gap: NDArray[np.float64]
    """How far the best permutation's can be above `matched`."""


class Certificate(NamedTuple):
    """What a matcher promises."""

    tolerance: float | None
    """Largest gap on the cosine scale; None where only the product of the norms bounds it."""
    certified: bool
    """Whether it promises that `matched` is at least `identity`."""


def check_pairs(
    numbers: Numbers,
    norms: NDArray[np.float64],
    comparable: NDArray[np.bool_],
    certificate: Certificate,
    names: Any,
) -> Iterator[Problem]:
    """Yield what is wrong with the numbers of some pairs.

    Parameters
    ----------
    numbers
        The numbers.
    norms
        Products of the norms of the pairs' images.
    comparable
        Whether the images of a pair have equal numbers of tokens: only then is `identity` defined.
    certificate
        What the matcher promises.
    names
        A function that returns the name of the pair at an index of the arrays.
    """
    matched, identity, gap = numbers
    slack = ROUNDING * norms
    most = norms + slack
    limit = most - matched if certificate.tolerance is None else certificate.tolerance * norms + slack
    own = np.where(comparable, identity, matched)
    above = matched if certificate.certified else matched + gap
    with np.errstate(invalid="ignore"):
        conditions = (
            (
                Kind.NOT_FINITE,
                "NaN or infinite",
                ~(np.isfinite(matched) & np.isfinite(gap) & np.isfinite(own)),
            ),
            (Kind.NOT_FINITE, "identity of unequal numbers of tokens", ~comparable & ~np.isnan(identity)),
            (
                Kind.NORMS,
                "an inner product above the product of the norms",
                np.maximum(abs(matched), abs(own)) > most,
            ),
            (Kind.IDENTITY, "identity above matched", own > above + slack),
            (Kind.GAP, "a negative gap", gap < 0),
            (Kind.GAP, "a gap above what the matcher certifies", gap > limit * (1 + GAP_ROUNDING) + slack),
        )
    for kind, text, wrong in conditions:
        if wrong.any():
            first = tuple(int(place) for place in np.argwhere(wrong)[0])
            values = ", ".join(
                f"{name} {float(array[first])!r}"
                for name, array in zip(Numbers._fields, numbers, strict=True)
            )
            count = f"{np.count_nonzero(wrong)} of {wrong.size} pairs"
            yield Problem(kind, f"{text}, for {count}, the first {names(*first)}: {values}")


def check_diagonal(tile: Numbers, squared_norms: NDArray[np.float64]) -> Iterator[Problem]:
    """Yield what is wrong with a tile (R, R) of images with themselves: its symmetry and its diagonal."""
    for name, values in zip(Numbers._fields, tile, strict=True):
        same = (values == values.T) | (np.isnan(values) & np.isnan(values.T))
        if not same.all():
            row, column = np.argwhere(~same)[0]
            yield Problem(
                Kind.ASYMMETRIC,
                f"{name} of pair ({row}, {column}) within the tile is {float(values[row, column])!r}, but "
                f"{float(values[column, row])!r} the other way round",
            )
    for name in ("matched", "identity"):
        found = np.diagonal(getattr(tile, name))
        wrong = abs(found - squared_norms) > ROUNDING * squared_norms
        if wrong.any():
            image = int(np.flatnonzero(wrong)[0])
            yield Problem(
                Kind.NORMS,
                f"{name} of image {image} within the tile with itself is {float(found[image])!r}, but its squared norm "
                f"is {float(squared_norms[image])!r}",
            )


def check_features(
    z: NDArray[np.floating[Any]],
    token_counts: NDArray[np.int64],
    squared_norms: NDArray[np.float64],
    pooled: NDArray[np.floating[Any]],
) -> Iterator[tuple[str, Problem]]:
    """Yield what is wrong with features (T, S, C) and what is derived of them, each with the name of its array."""
    if not ((token_counts >= 1) & (token_counts <= z.shape[1])).all():
        yield "token_count", Problem(Kind.FEATURES, f"a number of tokens that is not from 1 to {z.shape[1]}")
        return
    wide = z.astype(np.float64)
    beyond = np.arange(z.shape[1]) >= token_counts[:, None]
    if not np.isfinite(wide).all():
        image = int(np.argwhere(~np.isfinite(wide))[0, 0])
        yield "features", Problem(Kind.NOT_FINITE, f"image {image} of the chunk")
        return
    if (wide[beyond] != 0).any():
        yield "features", Problem(Kind.FEATURES, "numbers beyond an image's last token, where zeros belong")
    norms = np.einsum("tsc,tsc->t", wide, wide)
    means = wide.sum(axis=1) / token_counts[:, None]
    wrong_norms = ~(abs(squared_norms - norms) <= 1e-12 * norms)
    wrong_means = ~(abs(pooled - means) <= 1e-6 * np.sqrt(norms)[:, None]).all(axis=1)
    both = wrong_norms & wrong_means  # then it is most likely the features that have changed
    for name, kind, text, wrong in (
        ("features", Kind.FEATURES, "neither squared norm nor mean is that of the features", both),
        ("squared_norm", Kind.NORMS, "not the squared norm of the features", wrong_norms & ~both),
        ("pooled", Kind.NORMS, "not the mean of the features over the tokens", wrong_means & ~both),
    ):
        if wrong.any():
            yield name, Problem(kind, f"{text}, for image {int(np.flatnonzero(wrong)[0])} of the chunk")


def check_match(
    z_i: NDArray[np.floating[Any]], z_j: NDArray[np.floating[Any]], stored: tuple[float, float, float]
) -> Iterator[Problem]:
    """Yield what is wrong with the stored `matched`, `identity` and `gap` of two images (S_i, C), (S_j, C).

    The best permutation is found by scipy, in float64: by none of the code that the run uses.
    """
    matched, identity, gap = stored
    left, right = z_i.astype(np.float64), z_j.astype(np.float64)
    norms = float(np.linalg.norm(left) * np.linalg.norm(right))
    slack = ROUNDING * norms
    optimum = best_inner_product(left @ right.T)
    if not matched - slack <= optimum <= matched + gap + slack:
        yield Problem(
            Kind.CERTIFICATE,
            f"the best permutation has {optimum!r}, outside of matched {matched!r} to matched + gap {matched + gap!r}",
        )
    if len(left) == len(right):
        own = float(np.einsum("sc,sc->", left, right))
        if not abs(identity - own) <= slack:
            yield Problem(Kind.IDENTITY, f"{identity!r} is stored, but the features have {own!r}")


def best_inner_product(affinity: NDArray[np.float64]) -> float:
    """Return the largest sum of min(S_i, S_j) entries of (S_i, S_j), of which no two share a row or a column."""
    rows, columns = linear_sum_assignment(affinity, maximize=True)
    return float(affinity[rows, columns].sum())


def draw_pairs(
    n_rows: int, n_columns: int, count: int, rng: np.random.Generator, *, symmetric: bool
) -> NDArray[np.int64]:
    """Return about `count` different random pairs (n, 2), sorted; all of them, if there are no more.

    Of a symmetric matrix, those above the diagonal.
    """
    total = n_rows * (n_rows - 1) // 2 if symmetric else n_rows * n_columns
    if total <= count:
        grid = np.ones((n_rows, n_columns), bool)
        return np.argwhere(np.triu(grid, 1) if symmetric else grid)
    drawn = np.stack([rng.integers(0, n_rows, 4 * count), rng.integers(0, n_columns, 4 * count)], axis=1)
    if symmetric:
        drawn = np.sort(drawn[drawn[:, 0] != drawn[:, 1]], axis=1)
    _, first = np.unique(drawn, axis=0, return_index=True)
    chosen: NDArray[np.int64] = drawn[np.sort(first)[:count]]
    return chosen[np.lexsort(chosen.T[::-1])]

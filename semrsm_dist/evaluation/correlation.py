"""How two matrices order and scale the same pairs of images: Pearson, Spearman and Kendall, exact for any N.

All three look at the entries above the diagonal. Nothing of size N x N is held in memory: Pearson streams the rows
twice; the rank correlations sort the pairs in arrays that the caller provides, which may lie in files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.evaluation.merge_sort import BLOCK, sort_counting
from semrsm_dist.evaluation.pairs import Pairs, is_constant
from semrsm_dist.matching.compiled.jit import compiled

Allocate = Callable[[int], NDArray[np.float64]]


def allocate_in_memory(length: int) -> NDArray[np.float64]:
    """Return an array of so many numbers, in memory."""
    return np.empty(length)


@dataclass(frozen=True, slots=True)
class Correlation:
    """A correlation over the pairs of images.

    Attributes
    ----------
    value
        In [-1, 1]; NaN with fewer than two pairs, or where either matrix is constant and so orders nothing.
    n_pairs
        Pairs that it is made of.
    n_left_out
        Pairs without a value in either matrix.
    """

    value: float
    n_pairs: int
    n_left_out: int


def pearson(pairs: Pairs) -> Correlation:
    """Return the linear correlation, in two passes: the means first, so that no digits are lost to large ones."""
    n, sums = 0, np.zeros(2)
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for both in map(np.stack, pairs.blocks()):
        if both.shape[1]:
            n, sums = n + both.shape[1], sums + both.sum(axis=1)
            low, high = np.minimum(low, both.min(axis=1)), np.maximum(high, both.max(axis=1))
    left_out = pairs.n_all - n
    if n < 2 or any(is_constant(*ends) for ends in zip(low, high, strict=True)):
        return Correlation(math.nan, n, left_out)
    means, products, rest = sums / n, np.zeros((2, 2)), np.zeros(2)
    for both in map(np.stack, pairs.blocks()):
        centred = both - means[:, None]
        products, rest = products + centred @ centred.T, rest + centred.sum(axis=1)
    products -= np.outer(rest, rest) / n  # what rounding left of the means
    return Correlation(_ratio(products[0, 1], products[0, 0], products[1, 1]), n, left_out)


def rank_correlations(
    pairs: Pairs, *, allocate: Allocate = allocate_in_memory, block: int = BLOCK
) -> dict[str, Correlation]:
    """Return Spearman's rho (average ranks of ties) and Kendall's tau-a, both exact, by name.

    tau-a is (concordant - discordant) / all choices of two pairs; ties count for neither. Time grows as n log n in the
    n = N (N - 1) / 2 pairs.

    Parameters
    ----------
    pairs
        The pairs.
    allocate
        Returns an array of so many numbers; called four times. Where n is large, arrays in files
        (`semrsm_dist.store.scratch`).
    block
        Numbers to hold in memory at once.
    """
    arrays = [allocate(pairs.n_all) for _ in range(4)]
    n = 0
    for block_x, block_y in pairs.blocks():
        arrays[0][n : n + block_x.size], arrays[1][n : n + block_y.size] = block_x, block_y
        n += block_x.size
    x, y, *spare = (np.asarray(array[:n]) for array in arrays)
    left_out = pairs.n_all - n
    workspace = (spare[0], spare[1])
    nothing_varies = n < 2 or any(is_constant(float(each.min()), float(each.max())) for each in (x, y))
    sort_counting(x, y, workspace, block=block)
    tied_x, tied_both = _count_ties(x, y)
    _rank_in_place(x)
    discordant = sort_counting(y, x, workspace, block=block)  # by y; equal ones keep the order of x
    tied_y, _ = _count_ties(y, x)
    _rank_in_place(y)
    choices = n * (n - 1) // 2
    if nothing_varies or choices in (tied_x, tied_y):
        return {name: Correlation(math.nan, n, left_out) for name in ("spearman", "kendall")}
    concordance = choices - int(tied_x) - int(tied_y) + int(tied_both) - 2 * discordant
    return {
        "spearman": Correlation(_rank_product(x, y, block), n, left_out),
        "kendall": Correlation(concordance / choices, n, left_out),
    }


def _rank_product(x: NDArray[np.float64], y: NDArray[np.float64], block: int) -> float:
    """Return the linear correlation of two lists of ranks, whose mean is known."""
    middle, products = (len(x) + 1) / 2, np.zeros((2, 2))
    for start in range(0, len(x), block):
        centred = np.stack([x[start : start + block], y[start : start + block]]) - middle
        products += centred @ centred.T
    return _ratio(products[0, 1], products[0, 0], products[1, 1])


def _ratio(product: float, square_x: float, square_y: float) -> float:
    return float(np.clip(product / (math.sqrt(square_x) * math.sqrt(square_y)), -1.0, 1.0))


@compiled
def _count_ties(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[int, int]:
    """Return, for sorted pairs, how many choices of two are equal in the first number, and how many in both."""
    ties = both = 0
    run = run_both = 0
    for i in range(1, len(first)):
        run = run + 1 if first[i] == first[i - 1] else 0
        run_both = run_both + 1 if run > 0 and second[i] == second[i - 1] else 0
        ties += run
        both += run_both
    return ties, both


@compiled
def _rank_in_place(values: NDArray[np.float64]) -> None:
    """Replace sorted numbers by their ranks from 1, equal ones by the mean of theirs."""
    n = len(values)
    start = 0
    while start < n:
        stop = start + 1
        while stop < n and values[stop] == values[start]:
            stop += 1
        values[start:stop] = (start + 1 + stop) / 2
        start = stop

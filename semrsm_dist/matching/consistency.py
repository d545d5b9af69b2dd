"""Whether the result of a tile contradicts itself or the norms of its images, whatever matcher it is of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.compiled.jit import compiled
from semrsm_dist.matching.panel import Panel, prepare_panel
from semrsm_dist.matching.result import UNMATCHED, Match, TileResult

ROUNDING = 1e-6
"""Share of the product of the norms by which results may contradict each other, so that float32 arithmetic may."""

SAMPLE = 4
"""Pairs of a tile whose identity is computed again: computing all would cost as much as a product."""

FAULTS = (
    "an upper bound that is not finite",
    "a value that is not finite, or above the norms",
    "a value above its upper bound",
    "a value of the identity although numbers of tokens differ",
    "a value of the identity that is not finite, or above the norms",
    "an upper bound below the value of the identity",
    "an upper bound above its {limit}",
    "a wrong value of the identity",
)
"""What can be wrong with a pair; the last is looked for in a sample alone."""

LIMIT, IDENTITY = 6, 7
"""Places of the last two."""


def find_fault(tile: TileResult, rows: Panel, columns: Panel, tolerance: float | None) -> str | None:
    """Return in words what is wrong with pairs of a tile, and with how many; None if nothing is.

    `tolerance` is what the matcher certifies, relative to the product of the norms; None if only that product bounds
    it.
    """
    counts, places = np.zeros(len(FAULTS), np.int64), np.zeros((len(FAULTS), 2), np.int64)
    norms = np.sqrt(rows.squared_norms), np.sqrt(columns.squared_norms)
    limit = -1.0 if tolerance is None else float(tolerance)
    arrays = tile.matched, tile.upper_bound, tile.identity
    _count_faults(*arrays, *norms, rows.token_counts, columns.token_counts, limit, counts, places)
    for r, c in _sample(rows, columns) if not counts.any() else ():
        product = norms[0][r] * norms[1][c]
        if not abs(tile.identity[r, c] - inner_product(rows.raw[r], columns.raw[c])) <= ROUNDING * product:
            places[IDENTITY] = (r, c) if counts[IDENTITY] == 0 else places[IDENTITY]
            counts[IDENTITY] += 1
    if not counts.any():
        return None
    fault = int(np.flatnonzero(counts)[0])
    r, c = places[fault]
    value, bound, own = (float(array[r, c]) for array in arrays)
    what = FAULTS[fault].format(limit="norms" if tolerance is None else "tolerance")
    return (
        f"{what}, for {counts[fault]} of {tile.matched.size} pairs, the first with value {value!r}, upper bound "
        f"{bound!r}, identity {own!r} and product of the norms {float(norms[0][r] * norms[1][c])!r}"
    )


def find_match_fault(match: Match, rows: Panel, columns: Panel) -> str | None:
    """Return in words why a match of one image each is none: for its permutation, or its value; None if it is one."""
    z_i, z_j, partners = rows.tokens(0), columns.tokens(0), match.permutation
    fewest, matched = min(len(z_i), len(z_j)), partners != UNMATCHED
    used = np.unique(partners[matched])
    if not (
        partners.shape == (len(z_i),)
        and partners.dtype.kind == "i"
        and used.size == np.count_nonzero(matched) == fewest
        and used[0] >= 0
        and used[-1] < len(z_j)
    ):
        return (
            f"the permutation {partners!r}, which does not give each of {fewest} tokens a partner of its own"
        )
    value = inner_product(z_i[matched], z_j[partners[matched]])
    norms = math.sqrt(rows.squared_norms[0]) * math.sqrt(columns.squared_norms[0])
    if not abs(match.value - value) <= ROUNDING * norms:
        return f"the value {match.value!r} with a permutation of value {value!r}"
    return None


def as_tile(match: Match, rows: Panel, columns: Panel) -> TileResult:
    """Return a match of one image each as the result of a tile."""
    z_i, z_j = rows.tokens(0), columns.tokens(0)
    identity = inner_product(z_i, z_j) if len(z_i) == len(z_j) else math.nan
    found, bound, own = (np.full((1, 1), n) for n in (match.value, match.upper_bound, identity))
    return TileResult(found, bound, own)


def compile_check() -> None:
    """Compile what `find_fault` needs."""
    panel, one = prepare_panel(np.ones((1, 1, 1))), np.ones((1, 1))
    find_fault(TileResult(one, one, one), panel, panel, None)


def inner_product(z_i: NDArray[Any], z_j: NDArray[Any]) -> float:
    """Return the inner product of two representations (S, C) in float64, by other code than the matchers use."""
    return float(np.einsum("sc,sc->", z_i.astype(np.float64), z_j.astype(np.float64)))


def _sample(rows: Panel, columns: Panel) -> list[tuple[int, int]]:
    """Return a few pairs of images with equal numbers of tokens, from all over a tile."""
    shape = rows.n_images, columns.n_images
    equal: Any
    if np.ptp(rows.token_counts) == np.ptp(columns.token_counts) == 0:
        # The usual case, which needs no array of all pairs.
        is_equal = rows.token_counts[0] == columns.token_counts[0]
        equal = range(math.prod(shape) if is_equal else 0)
    else:
        equal = np.flatnonzero(rows.token_counts[:, None] == columns.token_counts)
    chosen = np.linspace(0, len(equal) - 1, min(SAMPLE, len(equal))).astype(np.intp)
    return [divmod(int(equal[place]), shape[1]) for place in chosen]


@compiled
def _count_faults(
    matched: NDArray[np.float64],
    upper_bound: NDArray[np.float64],
    identity: NDArray[np.float64],
    row_norms: NDArray[np.float64],
    column_norms: NDArray[np.float64],
    row_counts: NDArray[np.int64],
    column_counts: NDArray[np.int64],
    tolerance: float,
    counts: NDArray[np.int64],
    places: NDArray[np.int64],
) -> None:
    """Count pairs by the first fault of each, and note the first pair of each fault; a tolerance below 0 is none."""
    for r in range(matched.shape[0]):
        for c in range(matched.shape[1]):
            product = row_norms[r] * column_norms[c]
            slack = ROUNDING * product
            most = product + slack
            value, bound, own = matched[r, c], upper_bound[r, c], identity[r, c]
            is_equal = row_counts[r] == column_counts[c]
            if not np.isfinite(bound):
                fault = 0
            elif not abs(value) <= most:
                fault = 1
            elif value > bound + slack:
                fault = 2
            elif not is_equal and not np.isnan(own):
                fault = 3
            elif is_equal and not abs(own) <= most:
                fault = 4
            elif is_equal and own > bound + slack:
                fault = 5
            elif bound > (most if tolerance < 0 else value + tolerance * product + slack):
                fault = LIMIT
            else:
                continue
            if counts[fault] == 0:
                places[fault, 0], places[fault, 1] = r, c
            counts[fault] += 1

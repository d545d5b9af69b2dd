"""The product of a pair, longest tokens first, until a bound decides the pair.

Let p be any prices of the columns. Whatever the permutation, the matched affinities sum to at most
``sum_j p_j + sum_i max_j (A_ij - p_j)`` (weak duality of the assignment problem). A row i that is not multiplied yet
adds at most ``max_j (|a_i| |b_j| - p_j)`` to the second sum (Cauchy-Schwarz). Most of that excess lies in the
longest tokens, so that with usual prices two fifths of the rows often prove what all of them would.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.bounds import rounded_up
from semrsm_dist.matching.compiled.jit import compiled
from semrsm_dist.matching.compiled.lane_bids import copy_row, raise_maxima, row_max
from semrsm_dist.matching.compiled.lanes import LANES
from semrsm_dist.matching.compiled.product import multiply_packed, padded
from semrsm_dist.matching.panel import empty_aligned

BAND = 32
"""Rows that are multiplied between two checks of the bound, a multiple of the lanes."""

_LENGTH_ROUNDING = 1.0 + 1e-11  # more than float64 rounding can take from the length of a token


class LongestFirst(NamedTuple):
    """The tokens of one image by descending length, and memory for some of their affinities."""

    held: NDArray[np.int64]  # the image, and how many of its tokens are sorted; -1 if none is
    order: NDArray[np.intp]  # the tokens, the longest first
    lengths: NDArray[np.float64]  # in this order, centred and scaled
    packed: NDArray[np.float32]  # in this order, see `semrsm_dist.matching.compiled.product`
    affinity: NDArray[np.float32]  # (BAND * padded(S),) of the rows that were last multiplied
    rest: NDArray[np.float64]  # what the rows of each band and of all later ones can add


def make_longest_first(n_tokens: int, n_channels: int) -> LongestFirst:
    """Return memory for images of at most `n_tokens` tokens."""
    width = padded(n_tokens)
    return LongestFirst(
        np.full(2, -1),
        np.empty(n_tokens, np.intp),
        np.empty(n_tokens),
        empty_aligned((width * n_channels,), np.float32),
        empty_aligned((BAND * width,), np.float32),
        np.empty(width // BAND + 2),
    )


@compiled
def sort_tokens(
    packed: NDArray[np.float32], lengths: NDArray[np.float64], image: int, n_tokens: int, to: LongestFirst
) -> None:
    """Write the first tokens of an image, packed with as many or more, to `to`, unless it already holds them."""
    if to.held[0] == image and to.held[1] == n_tokens:
        return
    to.held[0], to.held[1] = image, n_tokens
    n_channels = to.packed.size // padded(to.order.size)
    order = np.argsort(-lengths[:n_tokens], kind="mergesort")
    for s in range(padded(n_tokens)):
        start = s // LANES * LANES * n_channels + s % LANES
        if s < n_tokens:
            to.order[s], to.lengths[s] = order[s], lengths[order[s]]
            origin = order[s] // LANES * LANES * n_channels + order[s] % LANES
            for c in range(n_channels):
                to.packed[start + c * LANES] = packed[origin + c * LANES]
        else:
            for c in range(n_channels):
                to.packed[start + c * LANES] = 0.0


@compiled
def multiply_while_open(
    rows: LongestFirst,
    columns: NDArray[np.float32],
    lengths: NDArray[np.float64],
    n_tokens: int,
    prices: NDArray[np.float32],
    floor: float,
    lowered: NDArray[np.float32],
    affinity: NDArray[np.float32],
) -> bool:
    """Multiply rows until no sum of the affinities can reach `floor`, and return whether that is proved.

    `rows` are as `sort_tokens` leaves them, `columns` packed with their `lengths`, `prices` +inf beyond column S, and
    `lowered` is workspace. Float32 errors of the affinities are the caller's. If nothing is proved, `affinity` receives
    them all, rows in the order of the image.
    """
    width = padded(n_tokens)
    n_channels = columns.size // width
    bound_rest(rows.lengths[:n_tokens], lengths[:n_tokens], prices, rows.rest)
    total, rounded, size = 0.0, 0.0, 0.0
    for j in range(n_tokens):
        total += np.float64(prices[j])
        size += abs(np.float64(prices[j]))
    for j in range(width):
        lowered[j] = -np.inf
    taken = 0.0
    for first in range(0, n_tokens, BAND):
        n_rows = min(BAND, n_tokens - first)
        band = rows.packed[first * n_channels : (first + padded(n_rows)) * n_channels]
        multiply_packed(band, columns, n_channels, n_rows, n_tokens, rows.affinity)
        for i in range(n_rows):
            best = row_max(rows.affinity, i * width, prices, width // LANES)
            raise_maxima(rows.affinity, i * width, best, lowered, width // LANES)
            taken += np.float64(best)
            rounded += abs(np.float64(best))
            copy_row(rows.affinity, i * width, affinity, rows.order[first + i] * width, width // LANES)
        rest = rows.rest[first // BAND + 1]
        if rounded_up(total + taken + rest, rounded, size + abs(rest), n_tokens) < floor:
            return True
    total, size, rounded = taken, rounded, 0.0
    for j in range(n_tokens):  # with all rows, the column prices may be lowered: see bounds.tighten_prices
        total += np.float64(lowered[j])
        rounded += abs(np.float64(lowered[j]))
    return rounded_up(total, rounded, size, n_tokens) < floor


@compiled
def bound_rest(
    lengths_i: NDArray[np.float64],
    lengths_j: NDArray[np.float64],
    prices: NDArray[np.float32],
    rest: NDArray[np.float64],
) -> None:
    """Write to `rest` what the rows of each band and of all later ones can add, and 0 at its end.

    The most that a row can add is convex in its length, so between two lengths it is at most what lies on the chord.
    """
    n_tokens = lengths_i.size
    n_bands = -(-n_tokens // BAND)
    rest[n_bands] = 0.0
    shortest = lengths_i[n_tokens - 1]
    least = _most_added(shortest, lengths_j, prices)
    for band in range(n_bands - 1, -1, -1):
        longest = lengths_i[band * BAND]
        most = _most_added(longest, lengths_j, prices)
        total, size = 0.0, 0.0
        for i in range(band * BAND, min((band + 1) * BAND, n_tokens)):
            share = (lengths_i[i] - shortest) / (longest - shortest) if longest > shortest else 1.0
            total += least + share * (most - least)
            size += abs(least) + abs(most)
        rest[band] = rest[band + 1] + total + size * (BAND + n_bands) * 2.0**-51
        shortest, least = longest, most


@compiled
def _most_added(length: float, lengths: NDArray[np.float64], prices: NDArray[np.float32]) -> float:
    """Return ``max_j (length * lengths[j] - prices[j])``, rounded up."""
    most = -np.inf
    length *= _LENGTH_ROUNDING
    for j in range(lengths.size):
        most = max(most, length * lengths[j] - np.float64(prices[j]))
    return most + abs(most) * 2.0**-52

"""Upper bounds on the value of every permutation, and how far rounding can move them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.compiled.jit import compiled, inlined
from semrsm_dist.matching.compiled.lane_bids import mask_above, raise_maxima, row_max
from semrsm_dist.matching.compiled.lane_sums import aligned_dots, dot, dot_of_differences
from semrsm_dist.matching.compiled.lanes import LANES
from semrsm_dist.matching.compiled.product import FLOAT32_UNIT, padded
from semrsm_dist.matching.panel import Panel


@compiled
def float64_rounding(n_tokens: int, n_channels: int) -> float:
    """Return e such that a float64 value differs from the exact one by at most e ||Z_i|| ||Z_j||."""
    return (n_tokens + n_channels + 16.0) * 2.0**-52


@inlined
def rounded_up(total: float, rounded: float, size: float, n_tokens: int) -> float:
    """Return the bound `total` that prices prove, plus what rounding can have taken from it.

    `rounded` sums the absolute values of the terms rounded to float32, half a unit in the last place each; `size` those
    of the others.
    """
    return total + rounded * FLOAT32_UNIT + (size + rounded) * n_tokens * 2.0**-52


@compiled
def tighten_prices(
    affinity: NDArray[np.float32],
    n_tokens: int,
    prices: NDArray[np.float32],
    lowered: NDArray[np.float32],
    bests: NDArray[np.float32],
) -> float:
    """Lower the prices as far as possible without weakening their bound, and return the bound.

    With ``u_i = max_j (A_ij - p_j)``, any prices q with ``A_ij <= u_i + q_j`` prove that no assignment is
    worth more than ``sum_i u_i + sum_j q_j`` (weak duality of the assignment problem). The smallest are
    ``q_j = max_i (A_ij - u_i)``. An auction overshoots its prices by up to eps a column, so that q proves a
    gap two to six times smaller than p does. Rounded subtraction keeps the order: the exact maximum
    exceeds the rounded one by half a unit in the last place at most, which is added.

    `affinity` is flat, in rows of padded(S). `prices`, +inf beyond column S, become q, with `lowered` as workspace;
    `bests` receives u, which lowering the prices leaves as it is.
    """
    step = padded(n_tokens)
    for j in range(step):
        lowered[j] = -np.inf
    total = 0.0
    size = 0.0
    for i in range(n_tokens):
        best = row_max(affinity, i * step, prices, step // LANES)
        bests[i] = best
        raise_maxima(affinity, i * step, best, lowered, step // LANES)
        total += np.float64(best)
        size += abs(np.float64(best))
    rounded = 0.0
    for j in range(n_tokens):
        prices[j] = lowered[j]
        total += np.float64(prices[j])
        rounded += abs(np.float64(prices[j]))
    return rounded_up(total, rounded, size, n_tokens)


class Assignment(NamedTuple):
    """What an auction leaves."""

    affinity: NDArray[np.float32]  # flat, in rows of padded(S)
    prices: NDArray[np.float32]  # of each column
    columns: NDArray[np.int32]  # of each row


class Factors(NamedTuple):
    """What the affinities of a pair are computed from."""

    z_i: NDArray[np.float32]  # (S, C) as given or, if `double`, the bytes of float64, (S, 2 C)
    z_j: NDArray[np.float32]
    double: bool
    mean_i: NDArray[np.float64]  # what z_i is centred by
    lengths_i: NDArray[np.float64]  # norms of the tokens of z_i, centred and scaled
    longest_j: float  # the largest of z_j


@compiled
def distance_from_optimum(assignment: Assignment, factors: Factors, scale: float, rounding: float) -> float:
    """Return how far an assignment can be from the optimum, more exactly than float32 affinities can prove.

    No assignment is worth more than this one plus ``sum_i max_k (A_ik - p_k) - (A_ic - p_c)``, with c the
    column of row i. Only columns k that float32 rounding allows to be better than c count, usually one
    or two of a row; their ``A_ik - A_ic`` is computed from the representations, in float64. `scale` is the unit of the
    affinity and of the result. A float32 affinity is off by at most ``rounding * lengths_i[i] * longest_j``.
    """
    affinity, prices, columns = assignment
    z_i, z_j, double, mean_i, lengths_i, longest_j = factors
    n_tokens, n_channels = z_i.shape[0], mean_i.size
    flat_i, flat_j = z_i.ravel(), z_j.ravel()
    step = padded(n_tokens)
    n_blocks = step // LANES
    rounding64 = float64_rounding(1, n_channels)
    total = 0.0
    for i in range(n_tokens):
        c = np.int64(columns[i])
        unit = lengths_i[i] * longest_j
        held = np.float64(affinity[i * step + c]) - np.float64(prices[c])
        # Rounding of affinities, and of the subtraction and the threshold in float32.
        threshold = np.float32(held - 2.0 * rounding * unit - 4.0 * FLOAT32_UNIT * abs(held))
        worst = 0.0
        for block in range(n_blocks):
            above = mask_above(affinity, i * step, prices, block, threshold)
            if block == c // LANES:
                above &= ~(1 << c % LANES)
            k = block * LANES
            while above != 0:
                if above & 1:
                    places = k * n_channels, c * n_channels, n_channels
                    if double:
                        a, b = flat_i.view(np.float64), flat_j.view(np.float64)
                        gain = dot_of_differences(a, i * n_channels, mean_i, b, *places)
                    else:
                        gain = dot_of_differences(flat_i, i * n_channels, mean_i, flat_j, *places)
                    price = np.float64(prices[k]) - np.float64(prices[c])
                    worst = max(worst, gain / scale - price + rounding64 * unit)
                above >>= 1
                k += 1
        total += worst
    return total


def norm_bound(rows: Panel, r: int, columns: Panel, c: int) -> float:
    """Return an upper bound from norms alone: no affinity is needed.

    Of equal numbers of tokens, ``S mu_i . mu_j`` plus the inner product of the sorted norms of the centred tokens
    (Cauchy-Schwarz for each pair of tokens, then the rearrangement inequality). Of unequal ones,
    ``||Z_i|| ||Z_j||``. With float64 rounding added.
    """
    norms = float(np.sqrt(rows.squared_norms[r]) * np.sqrt(columns.squared_norms[c]))
    count = rows.token_counts[r]
    rounding = norms * float(float64_rounding(max(count, columns.token_counts[c]), rows.n_channels))
    if count != columns.token_counts[c]:
        return norms + rounding
    common = count * inner_product(rows.means[r], columns.means[c])
    spread = inner_product(rows.token_norms[r, :count], columns.token_norms[c, :count])
    return float(common + spread + rounding)


@compiled
def matched_value(
    z_i: NDArray[np.floating[Any]], z_j: NDArray[np.floating[Any]], permutation: NDArray[np.integer[Any]]
) -> float:
    """Return ``sum_s <z_i[s], z_j[permutation[s]]>`` in float64, for (S_i, C) and (S_j, C) representations.

    A negative partner means none.
    """
    n_tokens, n_channels = z_i.shape
    flat_i, flat_j = z_i.ravel(), z_j.ravel()
    total = 0.0
    for s in range(n_tokens):
        if permutation[s] >= 0:
            total += dot(flat_i, s * n_channels, flat_j, permutation[s] * n_channels, n_channels)
    return total


@compiled
def identity_and_matched_value(
    z_i: NDArray[np.float32],
    z_j: NDArray[np.float32],
    double: bool,
    permutation: NDArray[np.integer[Any]],
) -> tuple[float, float]:
    """Return ``sum_s <z_i[s], z_j[s]>`` and the `matched_value` of a whole permutation, both in float64.

    Representations are (S, C) or, if they are `double`, the bytes of float64, (S, 2 C). Both sums take their terms
    in the same order: they are equal where the permutation changes nothing.
    """
    values: tuple[float, float]
    if double:
        values = aligned_dots(z_i.view(np.float64), z_j.view(np.float64), permutation, z_i.shape[1] // 2)
    else:
        values = aligned_dots(z_i, z_j, permutation, z_i.shape[1])
    return values


@compiled
def inner_product(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> float:
    """Return the inner product of two contiguous arrays of equal shape, summed in float64."""
    value: float = dot(a, 0, b, 0, a.size)
    return value


@compiled
def squared_token_norms(z: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the squared norms (S,) of the tokens of z (S, C); equal tokens have exactly equal norms."""
    n_tokens, n_channels = z.shape
    flat = z.ravel()
    squares = np.empty(n_tokens)
    for s in range(n_tokens):
        squares[s] = dot(flat, s * n_channels, flat, s * n_channels, n_channels)
    return squares

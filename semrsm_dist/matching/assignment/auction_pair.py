"""One pair of images by auction: the compiled part of the matcher `auction`.

Images may differ in their number of tokens. Zero tokens fill the smaller image up to the larger, which changes no
value: whatever of the larger image is matched with them stays without a partner. Centring goes through: with a and
b the tokens minus their image's mean (zero tokens become the negative mean), every permutation P of S_i <= S_j
tokens has ``<Z_i, P Z_j> = S_i mu_i . mu_j + <A, P B>``, as B sums to zero.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.assignment.augment import assign_exactly
from semrsm_dist.matching.assignment.bidding import Market, make_market, run_auction
from semrsm_dist.matching.bounds import (
    Assignment,
    Factors,
    distance_from_optimum,
    float64_rounding,
    identity_and_matched_value,
    inner_product,
)
from semrsm_dist.matching.compiled.jit import compiled, inlined
from semrsm_dist.matching.compiled.lanes import read_cycles
from semrsm_dist.matching.compiled.product import multiply_packed, pack, padded
from semrsm_dist.matching.panel import PackedPanel, Panel, empty_aligned, read_only
from semrsm_dist.matching.result import TileResult

EXACT = 1e-6
"""The accuracy that tolerance 0 requests: that of float32, on the cosine scale."""

_FINEST = 3e-7  # gap, relative to the centred norms, that an auction in float32 can still close
_PACKING = 2.0**-22  # more than rounding both representations to float32 changes an affinity
# Share of the allowed gap that the auction may leave where float32 proves too little. The rest is for its
# rounding, which took less than a hundredth on photographs and digit scenes.
_MARGIN = 0.9


class Images(NamedTuple):
    """The arrays of a `PackedPanel`, in a form that compiled code takes.

    If the representations are `double`, `raw` holds the bytes of float64, (T, S, 2 C): so there is one type of images,
    and all that is large is compiled once.
    """

    raw: NDArray[np.float32]
    token_counts: NDArray[np.int64]
    squared_norms: NDArray[np.float64]
    means: NDArray[np.float64]
    token_norms: NDArray[np.float64]
    packed: NDArray[np.float32]
    scales: NDArray[np.float64]
    centred_norms: NDArray[np.float64]
    rounding_norms: NDArray[np.float64]
    filling_norms: NDArray[np.float64]
    filling_rounding_norms: NDArray[np.float64]
    lengths: NDArray[np.float64]
    double: bool


class Workspace(NamedTuple):
    """Memory for one pair, used again for the next."""

    affinity: NDArray[np.float32]
    market: Market
    permutation: NDArray[np.intp]
    cycles: NDArray[np.int64]  # spent in products and in matching


def images_of(rows: Panel, columns: Panel) -> tuple[Images, Images]:
    """Return the arrays of two packed panels for compiled code; if one is in float64, both are."""
    double = np.float64 in (rows.raw.dtype, columns.raw.dtype)
    images = images_of_panel(rows, double)
    return images, images if columns is rows else images_of_panel(columns, double)


def images_of_panel(panel: Panel, double: bool) -> Images:
    """Return the arrays of a packed panel for compiled code, in float64 if they are `double`."""
    packed = cast(PackedPanel, panel)
    raw = packed.raw.astype(np.float64 if double else np.float32, copy=False).view(np.float32)
    others = [field for field in Images._fields if field not in ("raw", "double")]
    arrays = {field: read_only(getattr(packed, field)) for field in others}
    return Images(raw=read_only(raw), double=double, **arrays)


def make_workspace(n_tokens: int) -> Workspace:
    """Return memory for pairs of at most `n_tokens` tokens."""
    width = padded(n_tokens)
    return Workspace(
        empty_aligned((width * width,), np.float32),
        make_market(width),
        np.empty(n_tokens, np.intp),
        np.zeros(2, np.int64),
    )


@inlined
def conclude(
    rows: Images,
    r: int,
    columns: Images,
    c: int,
    proof: tuple[float, float],
    work: Workspace,
    results: TileResult,
) -> None:
    """Write the value of the permutation in `work`, and what a gap and an upper bound prove together."""
    count = max(rows.token_counts[r], columns.token_counts[c])
    trace, value = identity_and_matched_value(
        rows.raw[r, :count], columns.raw[c, :count], rows.double, work.permutation[:count]
    )
    bound = min(proof[1], value + proof[0])
    if rows.token_counts[r] != columns.token_counts[c]:
        trace = np.nan  # there is no position by position
    elif value < trace:  # never worse than no matching
        value = trace
        _set_identity(work.permutation)
    results.identity[r, c] = trace
    results.matched[r, c] = value
    results.upper_bound[r, c] = max(bound, value)


@compiled
def _pack_in_float64(
    raw: NDArray[np.float32], double: bool, mean: NDArray[np.float64], scale: float, out: NDArray[np.float64]
) -> None:
    if double:
        pack(raw.view(np.float64), mean, scale, out)
    else:
        pack(raw, mean, scale, out)


@inlined
def _set_identity(permutation: NDArray[np.intp]) -> None:
    for s in range(permutation.size):
        permutation[s] = s


@inlined
def match_pair(
    rows: Images, r: int, columns: Images, c: int, tolerance: float, rounding: float, work: Workspace
) -> tuple[float, float]:
    """Write a permutation within the tolerance to `work`, and return a gap and an upper bound; see `bid_for_pair`."""
    pair = frame_pair(rows, r, columns, c, tolerance, rounding)
    if is_flat(pair):
        return settle_flat(pair, work)
    multiply_pair(rows, r, columns, c, pair, work)
    return bid_for_pair(rows, r, columns, c, pair, -np.inf, work)


class Pair(NamedTuple):
    """What is known of a pair before its product.

    Affinities are those of the centred, scaled representations: a value is ``common + scale * (sum of its
    affinities)``. The product's float32 errors move such a sum by at most `slack`, float64 rounding moves the
    result by at most `margin`.
    """

    n_tokens: int
    allowed: float  # gap between bound and value
    common: float  # what all matchings share, and centring takes out
    scale: float
    size_i: float  # norms of the scaled images
    size_j: float
    spread: float  # no matching is worth more than this beyond what is common; see bounds.norm_bound
    slack: float
    margin: float
    rounding: float  # a float32 affinity is off by at most this times the lengths of its tokens


@inlined
def frame_pair(rows: Images, r: int, columns: Images, c: int, tolerance: float, rounding: float) -> Pair:
    """Return what the norms and means of two images imply for their matchings."""
    count_i, count_j = rows.token_counts[r], columns.token_counts[c]
    n_tokens, fewest = max(count_i, count_j), min(count_i, count_j)
    norms = np.sqrt(rows.squared_norms[r]) * np.sqrt(columns.squared_norms[c])
    scale = rows.scales[r] * columns.scales[c]
    missing_i, missing_j = n_tokens - count_i, n_tokens - count_j
    size_i = norm_when_filled(rows.centred_norms[r], rows.filling_norms[r], missing_i)
    size_j = norm_when_filled(columns.centred_norms[c], columns.filling_norms[c], missing_j)
    lost_i = norm_when_filled(rows.rounding_norms[r], rows.filling_rounding_norms[r], missing_i)
    lost_j = norm_when_filled(columns.rounding_norms[c], columns.filling_rounding_norms[c], missing_j)
    if count_i == count_j:
        spread = inner_product(rows.token_norms[r, :n_tokens], columns.token_norms[c, :n_tokens])
    else:
        spread = scale * (size_i + lost_i) * (size_j + lost_j)
    return Pair(
        n_tokens,
        (tolerance if tolerance > 0.0 else EXACT) * norms,
        fewest * inner_product(rows.means[r], columns.means[c]),
        scale,
        size_i,
        size_j,
        spread,
        rounding * (size_i * size_j) + lost_i * (size_j + lost_j) + lost_j * size_i,
        float64_rounding(n_tokens, rows.means.shape[1]) * norms,
        rounding,
    )


@inlined
def is_flat(pair: Pair) -> bool:
    """Return whether every matching of a pair is within the tolerance, because its images vary too little."""
    return pair.n_tokens == 1 or 2.0 * (pair.spread + pair.margin) <= pair.allowed


@inlined
def settle_flat(pair: Pair, work: Workspace) -> tuple[float, float]:
    """Write the identity to `work`, and return a gap and an upper bound."""
    _set_identity(work.permutation)
    return 0.0 if pair.n_tokens == 1 else np.inf, pair.common + pair.spread + pair.margin


@inlined
def multiply_pair(rows: Images, r: int, columns: Images, c: int, pair: Pair, work: Workspace) -> None:
    """Write the affinities of a pair to `work`."""
    n, n_channels = pair.n_tokens, rows.means.shape[1]
    width = padded(n)
    part = width * n_channels
    began = read_cycles()
    affinity = work.affinity[: width * width]
    multiply_packed(rows.packed[r, :part], columns.packed[c, :part], n_channels, n, n, affinity)
    work.cycles[0] += read_cycles() - began


@inlined
def bid_for_pair(
    rows: Images, r: int, columns: Images, c: int, pair: Pair, floor: float, work: Workspace
) -> tuple[float, float]:
    """Write a permutation within the tolerance to `work`, whose affinities are there; return a gap and an upper bound.

    One of both can be infinity; both are if no such permutation was found. A gap of -infinity says that there
    is none because the bound, which then comes with it, fell below `floor`.
    """
    began = read_cycles()
    n_tokens, size, scale = pair.n_tokens, pair.size_i * pair.size_j, pair.scale
    affinity, market = work.affinity[: padded(n_tokens) ** 2], work.market
    # Both the value found and the bound may be off by the slack and the margin.
    target = (pair.allowed - 2.0 * pair.margin) / scale - 2.0 * pair.slack
    certifiable = target > 2.0 * pair.slack
    if not certifiable:
        target = max(_MARGIN * pair.allowed / scale, _FINEST * size)
    finished, dual = run_auction(
        affinity, n_tokens, size, target, market, affinity_floor(pair, floor, pair.slack)
    )
    if not finished and dual < np.inf:
        work.cycles[1] += read_cycles() - began
        return -np.inf, bound_of_dual(pair, dual, pair.slack)
    gap = np.inf
    if finished and not certifiable:
        longest = max(columns.token_norms[c, 0] / columns.scales[c], columns.lengths[c, n_tokens - 1])
        gap = scale * distance_from_optimum(
            Assignment(affinity, market.prices, market.columns),
            Factors(
                rows.raw[r, :n_tokens],
                columns.raw[c, :n_tokens],
                rows.double,
                rows.means[r],
                rows.lengths[r],
                longest,
            ),
            scale,
            pair.rounding + _PACKING,
        )
    work.cycles[1] += read_cycles() - began
    if not finished or not (certifiable or gap + pair.margin <= pair.allowed):
        return np.inf, np.inf
    for s in range(n_tokens):
        work.permutation[s] = market.columns[s]
    bound = pair.common + pair.spread + pair.margin
    return gap + pair.margin, min(bound, bound_of_dual(pair, dual, pair.slack)) if certifiable else bound


@inlined
def bound_of_dual(pair: Pair, dual: float, slack: float) -> float:
    """Return the upper bound on all values that one on the sums of affinities gives, which may be off by `slack`."""
    return pair.common + pair.scale * (dual + slack) + pair.margin


@inlined
def affinity_floor(pair: Pair, floor: float, slack: float) -> float:
    """Return what all sums of affinities must be below for `bound_of_dual` to be below `floor`."""
    return (floor - pair.common - pair.margin) / pair.scale - slack


@inlined
def norm_when_filled(norm: float, filling: float, missing: int) -> float:
    """Return the norm of an image with this many filling tokens added."""
    return norm if missing == 0 else math.sqrt(norm**2 + missing * filling**2)


@compiled
def finish_exactly(
    rows: Images, r: int, columns: Images, c: int, work: Workspace, results: TileResult
) -> None:
    """Match one pair to the optimum in float64, from the prices in `work`."""
    began = read_cycles()
    n_channels = rows.means.shape[1]
    n_tokens = max(rows.token_counts[r], columns.token_counts[c])
    width = padded(n_tokens)
    packed_i = np.empty(width * n_channels)
    packed_j = np.empty(width * n_channels)
    affinity = np.empty((width, width))
    _pack_in_float64(rows.raw[r, :n_tokens], rows.double, rows.means[r], rows.scales[r], packed_i)
    _pack_in_float64(columns.raw[c, :n_tokens], columns.double, columns.means[c], columns.scales[c], packed_j)
    multiply_packed(packed_i, packed_j, n_channels, n_tokens, n_tokens, affinity.ravel())
    multiplied = read_cycles()
    prices = np.empty(n_tokens)
    for j in range(n_tokens):
        prices[j] = work.market.prices[j]
    best, dual = assign_exactly(affinity, n_tokens, prices)
    for s in range(n_tokens):
        work.permutation[s] = best[s]
    work.cycles[0] += multiplied - began
    work.cycles[1] += read_cycles() - multiplied
    scale = rows.scales[r] * columns.scales[c]
    norms = np.sqrt(rows.squared_norms[r]) * np.sqrt(columns.squared_norms[c])
    fewest = min(rows.token_counts[r], columns.token_counts[c])
    common = fewest * inner_product(rows.means[r], columns.means[c])
    bound = common + scale * dual + float64_rounding(n_tokens, n_channels) * norms
    conclude(rows, r, columns, c, (np.inf, bound), work, results)

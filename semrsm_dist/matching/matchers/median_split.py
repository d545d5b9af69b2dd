"""The matcher `median-split`: exact inside leaves that follow both images' own variation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from semrsm_dist.fields import Count, Tolerance
from semrsm_dist.matching.assignment.auction_pair import EXACT
from semrsm_dist.matching.assignment.augment import assign_exactly
from semrsm_dist.matching.assignment.bidding import make_market, run_auction
from semrsm_dist.matching.bounds import matched_value, norm_bound
from semrsm_dist.matching.compiled.jit import compiled
from semrsm_dist.matching.compiled.lane_sums import dot
from semrsm_dist.matching.compiled.product import multiply_packed, pack, padded
from semrsm_dist.matching.matcher import Limits, Matcher, PairMatch, product_seconds
from semrsm_dist.matching.panel import Panel

POWER_STEPS = 12
"""Steps of the power iteration: the split needs a good direction, not an accurate one."""

_CONVERGED = 1.0 - 1e-4  # cosine of the angle between two steps, squared
_LEAST = 1e-290  # of a sum of squares: below, its inverse overflows
_FINEST = 3e-7  # gap, relative to the centred norms, that an auction in float32 can still close


class MedianSplit(Matcher):
    """Split both images' tokens at their medians, again and again; match exactly inside the leaves.

    Each split is along the direction in which the tokens of both images vary most: the first principal
    component of the sum of their covariances, each of trace 1 (a matching depends neither on the images' means
    nor on their scales). The lower half of one image goes with the lower half of the other, until no
    part has more than `window` tokens. For S tokens this takes at most ``S * window`` affinities, none of them
    kept beyond its leaf: for images whose S x S affinity is too much. A window of S or more gives the optimum.
    The bound comes from norms alone.
    """

    name: ClassVar[str] = "median-split"
    version: ClassVar[int] = 2

    window: Annotated[Count, Limits("tokens")] = 128
    """Largest number of tokens of a leaf."""
    tolerance: Tolerance = 0.0
    """How far the leaves may be below their optimum, on the cosine scale; 0 is exact in float32 (1e-6)."""

    @override
    def compile(self) -> None:
        super(MedianSplit, MedianSplit(window=1)).compile()  # the few tokens it tries are split, too

    @override
    def pair_seconds(self, n_tokens: int, n_channels: int) -> float:
        size = min(self.window, n_tokens)
        product = product_seconds(n_tokens, size, n_channels)
        return product + 3e-9 * n_tokens * math.pow(size, 0.9) + 2e-8 * n_tokens * n_channels

    @override
    def workspace_bytes(self, n_tokens: int, n_channels: int) -> int:
        width = padded(min(self.window, n_tokens))
        return 12 * width**2 + 24 * width * n_channels + 64 * (width + n_tokens) + 64 * n_channels

    @override
    def match_prepared(self, rows: Panel, r: int, columns: Panel, c: int) -> PairMatch:
        z_i, z_j = rows.raw[r], columns.raw[c]
        tolerance = max(self.tolerance, 0.5 * EXACT)
        permutation = np.empty(rows.n_tokens, np.intp)
        for part_i, part_j in _leaves(z_i, z_j, self.window):
            permutation[part_i] = part_j[_match_leaf(z_i[part_i], z_j[part_j], tolerance)]
        value = matched_value(z_i, z_j, permutation)
        return value, max(value, norm_bound(rows, r, columns, c)), permutation


def _leaves(
    z_i: NDArray[np.floating[Any]], z_j: NDArray[np.floating[Any]], window: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield the tokens of both images (S, C) leaf by leaf."""
    parts = [(np.arange(len(z_i)), np.arange(len(z_j)))]
    while parts:
        part_i, part_j = parts.pop()
        if part_i.size <= window:
            yield part_i, part_j
            continue
        places_i, places_j = _places(z_i, part_i, z_j, part_j)
        part_i, part_j = (
            part[np.argsort(places, kind="stable")]
            for part, places in ((part_i, places_i), (part_j, places_j))
        )
        middle = part_i.size // 2
        parts += [(part_i[:middle], part_j[:middle]), (part_i[middle:], part_j[middle:])]


@compiled
def _places(
    z_i: NDArray[np.floating[Any]],
    part_i: NDArray[np.intp],
    z_j: NDArray[np.floating[Any]],
    part_j: NDArray[np.intp],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where tokens `part_i` of z_i and `part_j` of z_j lie along the direction in which both vary most.

    The direction comes from a power iteration. Both images are treated alike, to the last bit, and the
    sign is fixed: the largest component is positive.
    """
    n_channels = z_i.shape[1]
    mean_i, variances, weight_i = _moments(z_i, part_i)
    mean_j, variances_j, weight_j = _moments(z_j, part_j)
    for c in range(n_channels):
        variances[c] += variances_j[c]
    direction = np.zeros(n_channels)
    direction[np.argmax(variances)] = 1.0
    for _ in range(POWER_STEPS):
        step = _apply_covariance(z_i, part_i, mean_i, weight_i, direction)
        step_j = _apply_covariance(z_j, part_j, mean_j, weight_j, direction)
        for c in range(n_channels):
            step[c] += step_j[c]
        length = np.sqrt(dot(step, 0, step, 0, n_channels))
        if not length > 0.0:  # no variation
            break
        for c in range(n_channels):
            step[c] /= length
        cosine = dot(step, 0, direction, 0, n_channels)
        direction = step
        if cosine * cosine > _CONVERGED:
            break
    largest = 0
    for c in range(n_channels):
        if abs(direction[c]) > abs(direction[largest]):
            largest = c
    if direction[largest] < 0.0:
        for c in range(n_channels):
            direction[c] = -direction[c]
    return _project(z_i, part_i, direction), _project(z_j, part_j, direction)


@compiled
def _moments(
    z: NDArray[np.floating[Any]], part: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return the mean of some tokens, their variances scaled to sum 1, and the scale, 0 without variation."""
    n_channels = z.shape[1]
    mean, variances = np.zeros(n_channels), np.zeros(n_channels)
    for s in part:
        for c in range(n_channels):
            mean[c] += z[s, c]
    for c in range(n_channels):
        mean[c] /= part.size
    for s in part:
        for c in range(n_channels):
            variances[c] += (z[s, c] - mean[c]) ** 2
    total = 0.0
    for c in range(n_channels):
        total += variances[c]
    weight = 1.0 / total if total > _LEAST else 0.0
    for c in range(n_channels):
        variances[c] *= weight
    return mean, variances, weight


@compiled
def _apply_covariance(
    z: NDArray[np.floating[Any]],
    part: NDArray[np.intp],
    mean: NDArray[np.float64],
    weight: float,
    direction: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the covariance of some tokens, of trace 1, times `direction`."""
    n_channels = z.shape[1]
    flat = z.ravel()
    middle = dot(mean, 0, direction, 0, n_channels)
    result, total = np.zeros(n_channels), 0.0
    for s in part:
        along = weight * (dot(flat, s * n_channels, direction, 0, n_channels) - middle)
        total += along
        for c in range(n_channels):
            result[c] += along * z[s, c]
    for c in range(n_channels):
        result[c] -= total * mean[c]
    return result


@compiled
def _project(
    z: NDArray[np.floating[Any]], part: NDArray[np.intp], direction: NDArray[np.float64]
) -> NDArray[np.float64]:
    n_channels = z.shape[1]
    flat = z.ravel()
    places = np.empty(part.size)
    for k in range(part.size):
        places[k] = dot(flat, part[k] * n_channels, direction, 0, n_channels)
    return places


@compiled
def _match_leaf(
    z_i: NDArray[np.floating[Any]], z_j: NDArray[np.floating[Any]], tolerance: float
) -> NDArray[np.intp]:
    """Return the best permutation of a leaf's tokens (n, C), as exact as affinities in float32 are."""
    n, n_channels = z_i.shape
    width = padded(n)
    packed_i, size_i, tokens_i = _pack_leaf(z_i, width)
    packed_j, size_j, tokens_j = _pack_leaf(z_j, width)
    size = size_i * size_j
    if n == 1 or not size > 0.0:
        return np.arange(n)
    affinity = np.empty(width * width, np.float32)
    multiply_packed(packed_i, packed_j, n_channels, n, n, affinity)
    target = max(tolerance * tokens_i * tokens_j, _FINEST * size)
    market = make_market(width)
    finished, _ = run_auction(affinity, n, size, target, market)
    if finished:
        return market.columns[:n].astype(np.intp)
    prices = market.prices[:n].astype(np.float64)
    return assign_exactly(affinity.reshape(width, width).astype(np.float64), n, prices)[0]


@compiled
def _pack_leaf(z: NDArray[np.floating[Any]], width: int) -> tuple[NDArray[np.float32], float, float]:
    """Return tokens (n, C) centred, scaled and packed, and the scaled norms after and before centring."""
    n, n_channels = z.shape
    flat = z.ravel()
    mean = np.zeros(n_channels)
    for s in range(n):
        for c in range(n_channels):
            mean[c] += z[s, c]
    largest = 0.0
    for c in range(n_channels):
        mean[c] /= n
        for s in range(n):
            largest = max(largest, abs(z[s, c] - mean[c]))
    scale = math.ldexp(1.0, math.frexp(largest)[1])
    packed = np.empty(width * n_channels, np.float32)
    pack(z, mean, scale, packed)
    centred = np.float64(0.0)
    for value in packed:
        centred += np.float64(value) ** 2
    return packed, np.sqrt(centred), np.sqrt(dot(flat, 0, flat, 0, flat.size)) / scale

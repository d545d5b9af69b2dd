"""Partial matching: only some of the tokens are matched, so that what has no partner, as background, counts nothing.

Images are scaled to norm 1. With A (S_i, S_j) the affinities of their tokens and l the lengths of these:

- *dustbin*: the most that a permutation p has above a threshold t on the cosine, ``sum_s max(A_sp - t l_s l_p, 0)``. A
  pair below the threshold is left apart, both tokens in the dustbin. No term is negative, so this is an assignment
  problem with affinities ``max(A - t l l', 0)``, and the auction's prices certify it.
- *best share*: of the best permutation, the sum of its largest affinities, a share of them, k rounded up. Other k pairs
  may be worth more, but not more than the k largest ``u_s`` plus the k largest ``p_j`` of any prices with
  ``A_sj <= u_s + p_j`` (weak duality). The prices of the permutation give this bound.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.assignment.augment import assign_exactly
from semrsm_dist.matching.assignment.bidding import Market, make_market, run_auction
from semrsm_dist.matching.compiled.jit import compiled
from semrsm_dist.matching.compiled.product import (
    FLOAT32_UNIT,
    multiply_packed,
    pack,
    padded,
    rounding_of_product,
)
from semrsm_dist.matching.panel import empty_aligned

_ROUNDED = 8.0 * FLOAT32_UNIT  # more than what rounding tokens, lengths and thresholded affinities can change


class UnitImages(NamedTuple):
    """Images (T, S, C) scaled to norm 1, packed for the product."""

    packed: NDArray[np.float32]
    """(T, padded(S) * C) the tokens; see `semrsm_dist.matching.compiled.product`."""
    lengths: NDArray[np.float32]
    """(T, S) their norms."""
    counts: NDArray[np.int64]
    """(T,) tokens that each image has; 0 for an image of zeros, which cannot be scaled."""
    n_channels: int
    """C."""

    @property
    def n_images(self) -> int:
        """T."""
        return len(self.counts)


class PartialMatches(NamedTuple):
    """Scores of R images with K others, (P, R, K), on the cosine scale, and how far below the best they can be.

    The first P are the shares, the others the thresholds of the dustbin. NaN for images of zeros.
    """

    scores: NDArray[np.float64]
    gaps: NDArray[np.float64]


def pack_unit_images(z: NDArray[np.floating[Any]], token_counts: NDArray[np.int64]) -> UnitImages:
    """Scale images (T, S, C) to norm 1 and pack them; they are zero beyond their own tokens."""
    n_images, n_tokens, n_channels = z.shape
    packed = empty_aligned((n_images, padded(n_tokens) * n_channels), np.float32)
    lengths = np.empty((n_images, n_tokens), np.float32)
    counts = token_counts.copy()
    nowhere = np.zeros(n_channels)
    for t, image in enumerate(z):
        wide = image.astype(np.float64)
        norm = np.linalg.norm(wide)
        if norm > 0:
            wide /= norm
        else:
            counts[t] = 0
        pack(wide, nowhere, 1.0, packed[t])
        lengths[t] = np.linalg.norm(wide, axis=1)
    return UnitImages(packed, lengths, counts, n_channels)


def match_partially(
    rows: UnitImages,
    columns: UnitImages,
    shares: NDArray[np.float64],
    thresholds: NDArray[np.float64],
    tolerance: float,
) -> PartialMatches:
    """Match each image of `rows` (R) with each of `columns` (K), all tokens once and some of them for each threshold.

    Parameters
    ----------
    rows, columns
        From `pack_unit_images`, with room for equal numbers of tokens. If both are the same object, each pair is
        matched once.
    shares
        Of the matches, 0 < share <= 1.
    thresholds
        On the cosine, at least 0.
    tolerance
        Gap, on the cosine scale, to which permutations and dustbins are certified; not below what float32 affinities
        can prove, which is about 1e-5.
    """
    shape = (len(shares) + len(thresholds), rows.n_images, columns.n_images)
    found = PartialMatches(np.full(shape, np.nan), np.full(shape, np.nan))
    width = padded(rows.lengths.shape[1])
    work = _Workspace(
        empty_aligned((width * width,), np.float32),
        empty_aligned((width * width,), np.float32),
        make_market(width),
        np.empty(width, np.intp),
        np.empty(width),
        np.empty(width),
    )
    slack = rounding_of_product(rows.n_channels) + _ROUNDED
    settings = _Settings(shares, thresholds, tolerance, slack)
    for r in range(rows.n_images):  # short enough a call for an interrupt to wait for
        first = r if rows is columns else 0
        _match_row(rows, r, columns, first, settings, work, found)
    if rows is columns:
        lower = np.tril_indices(rows.n_images, -1)
        for values in found:
            values[:, lower[0], lower[1]] = values[:, lower[1], lower[0]]
    return found


class _Settings(NamedTuple):
    shares: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    tolerance: float
    slack: float  # what rounding to float32 can change in the sum of the affinities of a permutation


class _Workspace(NamedTuple):
    affinity: NDArray[np.float32]
    thresholded: NDArray[np.float32]
    market: Market
    permutation: NDArray[np.intp]
    prices: NDArray[np.float64]  # of columns, and of rows: no affinity exceeds their sum
    row_prices: NDArray[np.float64]


@compiled
def _match_row(
    rows: UnitImages,
    r: int,
    columns: UnitImages,
    first: int,
    settings: _Settings,
    work: _Workspace,
    found: PartialMatches,
) -> None:
    """Match image r with the columns from `first` on."""
    shares, thresholds, tolerance, slack = settings
    n_channels, n_i = rows.n_channels, rows.counts[r]
    for c in range(first, columns.counts.size):
        n_j = columns.counts[c]
        if n_i == 0 or n_j == 0:
            continue
        n = max(n_i, n_j)
        part = padded(n) * n_channels
        affinity = work.affinity[: padded(n) ** 2]
        multiply_packed(rows.packed[r, :part], columns.packed[c, :part], n_channels, n, n, affinity)
        if shares.size > 0:
            _assign(affinity, n, tolerance, work)
            _keep_best(
                affinity, n, (n_i, n_j), shares, slack, work, found.scores[:, r, c], found.gaps[:, r, c]
            )
        for k in range(thresholds.size):
            lengths = rows.lengths[r], columns.lengths[c]
            value, bound = _fill_dustbin(affinity, n, lengths, thresholds[k], tolerance, work)
            found.scores[shares.size + k, r, c] = value
            found.gaps[shares.size + k, r, c] = max(bound - value, 0.0) + 2.0 * slack * (1.0 + thresholds[k])


@compiled
def _assign(affinity: NDArray[np.float32], n: int, tolerance: float, work: _Workspace) -> float:
    """Write the permutation of largest value and prices that prove it to `work`; return their upper bound."""
    if n > 1:
        finished, bound = run_auction(affinity, n, 1.0, tolerance, work.market)
        if finished:
            for s in range(n):
                work.permutation[s] = work.market.columns[s]
                work.prices[s] = work.market.prices[s]
                work.row_prices[s] = work.market.bests[s]
            return bound
    else:
        work.market.prices[0] = 0.0
    step = padded(n)
    wide = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            wide[i, j] = affinity[i * step + j]
    prices = np.empty(n)
    for j in range(n):
        prices[j] = work.market.prices[j]
    permutation, bound = assign_exactly(wide, n, prices)
    for i in range(n):
        work.permutation[i] = permutation[i]
        work.prices[i] = prices[i]
        work.row_prices[i] = (wide[i] - prices).max()
    return bound


@compiled
def _keep_best(
    affinity: NDArray[np.float32],
    n: int,
    counts: tuple[int, int],
    shares: NDArray[np.float64],
    slack: float,
    work: _Workspace,
    scores: NDArray[np.float64],
    gaps: NDArray[np.float64],
) -> None:
    """Write the sums of the best shares of the matches in `work`, and how far they can be from the best k pairs."""
    n_i, n_j = counts
    step, fewest = padded(n), min(n_i, n_j)
    products = np.empty(fewest)
    n_matched = 0
    for s in range(n_i):
        if work.permutation[s] < n_j:  # otherwise with zeros, which are no token
            products[n_matched] = affinity[s * step + work.permutation[s]]
            n_matched += 1
    products.sort()
    row_prices, prices = np.sort(work.row_prices[:n_i]), np.sort(work.prices[:n_j])
    rounded = FLOAT32_UNIT * (np.abs(row_prices).sum() + np.abs(prices).sum())
    for k in range(shares.size):
        kept = math.ceil(shares[k] * fewest)
        value = products[fewest - kept :].sum()
        bound = row_prices[n_i - kept :].sum() + prices[n_j - kept :].sum() + rounded
        scores[k] = value
        gaps[k] = max(bound - value, 0.0) + 2.0 * slack


@compiled
def _fill_dustbin(
    affinity: NDArray[np.float32],
    n: int,
    lengths: tuple[NDArray[np.float32], NDArray[np.float32]],
    threshold: float,
    tolerance: float,
    work: _Workspace,
) -> tuple[float, float]:
    """Return the most that a pairing has above the threshold, and an upper bound."""
    step = padded(n)
    above = work.thresholded[: step * step]
    left, right = lengths
    largest = np.float32(0.0)
    for i in range(n):
        factor = np.float32(threshold) * left[i]
        for j in range(n):
            value = max(affinity[i * step + j] - factor * right[j], np.float32(0.0))
            above[i * step + j] = value
            largest = max(largest, value)
        for j in range(n, step):
            above[i * step + j] = 0.0
    if largest == 0.0:
        return 0.0, 0.0
    bound = _assign(above, n, tolerance, work)
    value = 0.0
    for s in range(n):
        value += np.float64(above[s * step + work.permutation[s]])
    return value, bound

"""The matcher `greedy`: the largest affinity first."""

from __future__ import annotations

import heapq
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from semrsm_dist.matching.bounds import float64_rounding, matched_value, norm_bound
from semrsm_dist.matching.compiled.jit import compiled
from semrsm_dist.matching.compiled.product import multiply_packed, pack, padded
from semrsm_dist.matching.matcher import Matcher, PairMatch, product_seconds
from semrsm_dist.matching.panel import Panel
from semrsm_dist.matching.result import UNMATCHED


class Greedy(Matcher):
    """Match the pair of tokens with the largest affinity, then the largest of the rest, and so on.

    Equal affinities are taken by the lower token of z_i, then by the lower token of z_j.
    """

    name: ClassVar[str] = "greedy"
    takes_unequal: ClassVar[bool] = True

    @override
    def pair_seconds(self, n_tokens: int, n_channels: int) -> float:
        return product_seconds(n_tokens, n_tokens, n_channels) + 4e-8 * n_tokens**2

    @override
    def workspace_bytes(self, n_tokens: int, n_channels: int) -> int:
        width = padded(n_tokens)
        return 8 * width**2 + 16 * width * n_channels + 128 * n_tokens

    @override
    def match_prepared(self, rows: Panel, r: int, columns: Panel, c: int) -> PairMatch:
        z_i, z_j = rows.tokens(r), columns.tokens(c)
        affinity = _affinity(z_i, z_j)
        permutation = self._begin(z_i, z_j, affinity)
        _assign_greedily(affinity, permutation)
        value = matched_value(z_i, z_j, permutation)
        return value, max(value, _bound(affinity, rows, r, columns, c)), permutation

    def _begin(self, z_i: NDArray[Any], z_j: NDArray[Any], affinity: NDArray[np.float64]) -> NDArray[np.intp]:
        """Return the partners of the tokens that are matched first, `UNMATCHED` for all others."""
        return np.full(len(z_i), UNMATCHED, np.intp)


def _affinity(z_i: NDArray[np.floating[Any]], z_j: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return ``z_i @ z_j.T`` (S_i, S_j) in float64; equal tokens have exactly equal affinities."""
    height, width = padded(len(z_i)), padded(len(z_j))
    affinity = np.empty(height * width)
    _fill_affinity(z_i, z_j, affinity)
    return affinity.reshape(height, width)[: len(z_i), : len(z_j)]


def _bound(affinity: NDArray[np.float64], rows: Panel, r: int, columns: Panel, c: int) -> float:
    """Return the smallest of the sums of row and of column maxima and the bound from norms.

    An affinity (S_i, S_j) matches min(S_i, S_j) pairs: of the longer side, only that many of the largest maxima count.
    """
    fewest = min(affinity.shape)
    maxima = [affinity.max(axis=axis) for axis in (0, 1)]
    sums = [float((side if side.size == fewest else np.sort(side)[-fewest:]).sum()) for side in maxima]
    norms = float(np.sqrt(rows.squared_norms[r]) * np.sqrt(columns.squared_norms[c]))
    rounding = float64_rounding(max(affinity.shape), rows.n_channels) * norms
    return min(min(sums) + rounding, norm_bound(rows, r, columns, c))


@compiled
def _fill_affinity(
    z_i: NDArray[np.floating[Any]], z_j: NDArray[np.floating[Any]], out: NDArray[np.float64]
) -> None:
    n_tokens, n_channels = z_i.shape
    packed_i = np.empty(-(-n_tokens // 16) * 16 * n_channels)
    packed_j = np.empty(-(-z_j.shape[0] // 16) * 16 * n_channels)
    nowhere = np.zeros(n_channels)
    pack(z_i, nowhere, 1.0, packed_i)
    pack(z_j, nowhere, 1.0, packed_j)
    multiply_packed(packed_i, packed_j, n_channels, n_tokens, z_j.shape[0], out)


@compiled
def _assign_greedily(affinity: NDArray[np.float64], columns: NDArray[np.intp]) -> None:
    """Give each row without a column that of greedy matching, while there are columns.

    The heap holds the best free column of each row;
    an entry whose column was taken meanwhile is looked up again, which gives the same order as sorting
    all S^2 affinities.
    """
    n_rows, n_left = affinity.shape
    taken = np.zeros(n_left, np.bool_)
    for i in range(n_rows):
        if columns[i] != UNMATCHED:
            taken[columns[i]] = True
            n_left -= 1
    heap = [(0.0, 0, 0) for _ in range(0)]
    for i in range(n_rows):
        if columns[i] == UNMATCHED and n_left > 0:
            j = _best_free(affinity, i, taken)
            heap.append((-affinity[i, j], i, j))
    heapq.heapify(heap)
    while len(heap) > 0 and n_left > 0:
        _, i, j = heapq.heappop(heap)
        if taken[j]:
            j = _best_free(affinity, i, taken)
            heapq.heappush(heap, (-affinity[i, j], i, j))
        else:
            taken[j] = True
            n_left -= 1
            columns[i] = j


@compiled
def _best_free(affinity: NDArray[np.float64], i: int, taken: NDArray[np.bool_]) -> int:
    best, place = -np.inf, 0
    for j in range(taken.size):
        if not taken[j] and affinity[i, j] > best:
            best, place = affinity[i, j], j
    return place

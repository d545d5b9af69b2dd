"""The matcher `topk-greedy`: the tokens of largest norm exactly, the rest greedily."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from semrsm_dist.fields import Count
from semrsm_dist.matching.assignment.augment import assign_exactly
from semrsm_dist.matching.bounds import matched_value, squared_token_norms
from semrsm_dist.matching.compiled.product import padded
from semrsm_dist.matching.matcher import Limits, Matcher, PairMatch, product_seconds
from semrsm_dist.matching.matchers.greedy import FREE, affinity_float64, assign_greedily, greedy_bound
from semrsm_dist.matching.panel import Panel


class TopKGreedy(Matcher):
    """Match the k tokens of largest norm of both images with each other exactly, all others greedily.

    As in the authors' code, the k tokens of z_i that weigh most find their partners among the k of z_j
    that weigh most (a k x k assignment). Equal norms count by the lower token; k >= S is the optimum.
    """

    name: ClassVar[str] = "topk-greedy"
    version: ClassVar[int] = 2

    k: Annotated[Count, Limits("tokens")] = 64
    """How many tokens of each image are matched exactly."""

    @override
    def pair_seconds(self, n_tokens: int, n_channels: int) -> float:
        return product_seconds(n_tokens, n_tokens, n_channels) + 4e-8 * n_tokens**2

    @override
    def workspace_bytes(self, n_tokens: int, n_channels: int) -> int:
        width = padded(n_tokens)
        return 16 * width**2 + 16 * width * n_channels + 128 * n_tokens

    @override
    def match_prepared(self, rows: Panel, r: int, columns: Panel, c: int) -> PairMatch:
        z_i, z_j = rows.raw[r], columns.raw[c]
        affinity = affinity_float64(z_i, z_j)
        largest_i, largest_j = (self._largest(z) for z in (z_i, z_j))
        part = np.ascontiguousarray(affinity[np.ix_(largest_i, largest_j)])
        permutation = np.full(rows.n_tokens, FREE, np.intp)
        permutation[largest_i] = largest_j[assign_exactly(part, largest_i.size, np.zeros(largest_j.size))[0]]
        assign_greedily(affinity, permutation)
        value = matched_value(z_i, z_j, permutation)
        return value, max(value, greedy_bound(affinity, rows, r, columns, c)), permutation

    def _largest(self, z: NDArray[Any]) -> NDArray[np.intp]:
        return np.sort(np.argsort(-squared_token_norms(z), kind="stable")[: self.k])

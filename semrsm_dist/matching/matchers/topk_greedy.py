"""The matcher `topk-greedy`: the tokens of largest norm exactly, the rest greedily."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from semrsm_dist.fields import Count
from semrsm_dist.matching.assignment.augment import assign_exactly
from semrsm_dist.matching.bounds import squared_token_norms
from semrsm_dist.matching.compiled.product import padded
from semrsm_dist.matching.matcher import Limits
from semrsm_dist.matching.matchers.greedy import Greedy


class TopKGreedy(Greedy):
    """Match the k tokens of largest norm of both images with each other exactly, all others greedily.

    As in the authors' code, the k tokens of z_i that weigh most find their partners among the k of z_j
    that weigh most (a k x k assignment). Equal norms count by the lower token; k >= S is the optimum.
    """

    name: ClassVar[str] = "topk-greedy"
    version: ClassVar[int] = 2
    takes_unequal: ClassVar[bool] = False

    k: Annotated[Count, Limits("tokens")] = 64
    """How many tokens of each image are matched exactly."""

    @override
    def workspace_bytes(self, n_tokens: int, n_channels: int) -> int:
        return super().workspace_bytes(n_tokens, n_channels) + 8 * padded(n_tokens) ** 2

    @override
    def _begin(self, z_i: NDArray[Any], z_j: NDArray[Any], affinity: NDArray[np.float64]) -> NDArray[np.intp]:
        permutation = super()._begin(z_i, z_j, affinity)
        largest_i, largest_j = (self._largest(z) for z in (z_i, z_j))
        part = np.ascontiguousarray(affinity[np.ix_(largest_i, largest_j)])
        permutation[largest_i] = largest_j[assign_exactly(part, largest_i.size, np.zeros(largest_j.size))[0]]
        return permutation

    def _largest(self, z: NDArray[Any]) -> NDArray[np.intp]:
        return np.sort(np.argsort(-squared_token_norms(z), kind="stable")[: self.k])

"""The matcher `topk-greedy`: the tokens of largest norm exactly, the rest greedily."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from semrsm_dist.matching.augment import assign_exactly
from semrsm_dist.matching.bounds import matched_value, squared_token_norms
from semrsm_dist.matching.greedy import FREE, affinity_float64, assign_greedily, greedy_bound
from semrsm_dist.matching.matcher import Matcher, PairMatch, check_count
from semrsm_dist.matching.panel import Panel
from semrsm_dist.matching.product import padded


class TopKGreedy(Matcher):
    """Match the k tokens of z_i with the largest norms exactly, then all other tokens greedily.

    The paper does not say against which tokens of z_j the k are matched exactly. Here it is all of them
    (a k x S assignment): the k tokens that weigh most get the best partners there are, and k >= S
    is the optimum. Equal norms count by the lower token.

    Parameters
    ----------
    k : int
        How many tokens are matched exactly.
    """

    name: ClassVar[str] = "topk-greedy"

    def __init__(self, k: int = 64) -> None:
        self.k = check_count(self.name, "k", k)

    @property
    def parameters(self) -> dict[str, int | float]:
        """What alters the numbers, by name."""
        return {"k": self.k}

    def workspace_bytes(self, n_tokens: int, n_channels: int) -> int:
        """Return the memory that matching one pair takes beside the panels, in bytes."""
        width = padded(n_tokens)
        return 16 * width**2 + 16 * width * n_channels + 128 * n_tokens

    def match_prepared(self, rows: Panel, r: int, columns: Panel, c: int) -> PairMatch:
        """Match image r of `rows` with image c of `columns`; see `Matcher.match_prepared`."""
        z_i, z_j = rows.raw[r], columns.raw[c]
        affinity = affinity_float64(z_i, z_j)
        largest = np.sort(np.argsort(-squared_token_norms(z_i), kind="stable")[: self.k])
        permutation = np.full(rows.n_tokens, FREE, np.intp)
        permutation[largest] = assign_exactly(affinity[largest], largest.size, np.zeros(rows.n_tokens))[0]
        assign_greedily(affinity, permutation)
        value = matched_value(z_i, z_j, permutation)
        return value, max(value, greedy_bound(affinity, rows, r, columns, c)), permutation

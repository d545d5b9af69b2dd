"""The matcher `hungarian`: scipy's exact solver on float64 affinities, the reference for all others."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from typing_extensions import override

from semrsm_dist.matching.bounds import float64_rounding, matched_value
from semrsm_dist.matching.matcher import Matcher, PairMatch, product_seconds
from semrsm_dist.matching.panel import Panel
from semrsm_dist.matching.result import UNMATCHED


class Hungarian(Matcher):
    """Match exactly with `scipy.optimize.linear_sum_assignment`. The bound adds float64 rounding."""

    name: ClassVar[str] = "hungarian"
    certified: ClassVar[bool] = True
    takes_unequal: ClassVar[bool] = True

    @override
    def pair_seconds(self, n_tokens: int, n_channels: int) -> float:
        return product_seconds(n_tokens, n_tokens, n_channels) + 6e-10 * math.pow(n_tokens, 2.9)

    @override
    def workspace_bytes(self, n_tokens: int, n_channels: int) -> int:
        return 16 * n_tokens**2 + 16 * n_tokens * n_channels + 64 * n_tokens

    @override
    def match_prepared(self, rows: Panel, r: int, columns: Panel, c: int) -> PairMatch:
        from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - slow to load, for other matchers too

        z_i, z_j = rows.tokens(r), columns.tokens(c)
        affinity = z_i.astype(np.float64) @ z_j.astype(np.float64).T
        permutation = np.full(len(z_i), UNMATCHED, np.intp)
        matched, partners = linear_sum_assignment(affinity, maximize=True)
        permutation[matched] = partners
        value = matched_value(z_i, z_j, permutation)
        norms = float(np.sqrt(rows.squared_norms[r]) * np.sqrt(columns.squared_norms[c]))
        return value, value + float64_rounding(max(affinity.shape), rows.n_channels) * norms, permutation

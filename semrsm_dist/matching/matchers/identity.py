"""The matcher `identity`: no matching, position by position (the spatio-semantic similarity)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from typing_extensions import override

from semrsm_dist.matching.bounds import inner_product, norm_bound
from semrsm_dist.matching.matcher import Matcher, PairMatch
from semrsm_dist.matching.panel import Panel


class Identity(Matcher):
    """Leave every token in its place. The bound comes from norms alone."""

    name: ClassVar[str] = "identity"

    @override
    def pair_seconds(self, n_tokens: int, n_channels: int) -> float:
        return 1e-9 * n_tokens * n_channels + 2e-6

    @override
    def workspace_bytes(self, n_tokens: int, n_channels: int) -> int:
        return 8 * n_tokens

    @override
    def match_prepared(self, rows: Panel, r: int, columns: Panel, c: int) -> PairMatch:
        value = inner_product(rows.raw[r], columns.raw[c])
        bound = max(value, norm_bound(rows, r, columns, c))
        return value, bound, np.arange(rows.n_tokens)

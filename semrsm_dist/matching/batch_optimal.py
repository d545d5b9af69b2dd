"""The matcher `batch-optimal`: exact inside windows of tokens of similar norm."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.augment import assign_exactly
from semrsm_dist.matching.bounds import matched_value, norm_bound
from semrsm_dist.matching.greedy import affinity_float64
from semrsm_dist.matching.matcher import Matcher, PairMatch, check_count
from semrsm_dist.matching.panel import Panel
from semrsm_dist.matching.product import padded


class BatchOptimal(Matcher):
    """Sort the tokens of both images by norm, cut them into windows, match exactly inside each.

    Norms descend, equal norms keep their order, the last window may be shorter. A window of S or more
    gives the optimum. The bound comes from norms alone.

    Parameters
    ----------
    window : int
        Tokens per window (b in the paper, which uses 512).
    """

    name: ClassVar[str] = "batch-optimal"

    def __init__(self, window: int = 512) -> None:
        self.window = check_count(self.name, "window", window)

    @property
    def parameters(self) -> dict[str, int | float]:
        """What alters the numbers, by name."""
        return {"window": self.window}

    def workspace_bytes(self, n_tokens: int, n_channels: int) -> int:
        """Return the memory that matching one pair takes beside the panels, in bytes."""
        width = padded(min(self.window, n_tokens))
        return 8 * width**2 + 32 * width * n_channels + 128 * n_tokens

    def _match_pair(self, rows: Panel, r: int, columns: Panel, c: int) -> PairMatch:
        z_i, z_j = rows.raw[r], columns.raw[c]
        order_i, order_j = _by_norm(z_i), _by_norm(z_j)
        permutation = np.empty(rows.n_tokens, np.intp)
        for start in range(0, rows.n_tokens, self.window):
            window_i, window_j = order_i[start : start + self.window], order_j[start : start + self.window]
            affinity = affinity_float64(z_i[window_i], z_j[window_j])
            places, _ = assign_exactly(affinity, window_i.size, np.zeros(window_i.size))
            permutation[window_i] = window_j[places]
        value = matched_value(z_i, z_j, permutation)
        return value, max(value, norm_bound(rows, r, columns, c)), permutation


def _by_norm(z: NDArray[Any]) -> NDArray[np.intp]:
    squares = np.einsum("sc,sc->s", z, z, dtype=np.float64)
    return np.argsort(-squares, kind="stable")

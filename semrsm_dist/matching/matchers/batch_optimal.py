"""The matcher `batch-optimal`: exact inside windows of tokens of similar norm."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from semrsm_dist.fields import Count
from semrsm_dist.matching.assignment.windows import WindowedMatcher
from semrsm_dist.matching.bounds import squared_token_norms
from semrsm_dist.matching.matcher import Limits, product_seconds


class BatchOptimal(WindowedMatcher):
    """Sort the tokens of both images by norm, cut them into windows, match exactly inside each.

    Norms ascend and the last window may be shorter, as in the authors' code; equal norms keep their order.
    A window of S or more gives the optimum. The bound comes from norms alone.
    """

    name: ClassVar[str] = "batch-optimal"
    version: ClassVar[int] = 4

    window: Annotated[Count, Limits("tokens")] = 512
    """Tokens per window (b in the paper, which uses 512)."""

    @override
    def pair_seconds(self, n_tokens: int, n_channels: int) -> float:
        size = min(self.window, n_tokens)
        return product_seconds(n_tokens, size, n_channels) + 6e-10 * n_tokens * math.pow(size, 1.9)

    def order(self, image: NDArray[Any]) -> NDArray[np.intp]:
        """Return the tokens of an image (S, C) by ascending norm, equal norms in their order."""
        return np.argsort(squared_token_norms(image), kind="stable")

    def sizes(self, n_tokens: int) -> list[int]:
        """Return the number of tokens of each window."""
        return [min(self.window, n_tokens - start) for start in range(0, n_tokens, self.window)]

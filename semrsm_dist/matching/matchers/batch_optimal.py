"""The matcher `batch-optimal`: exact inside windows of tokens of similar norm."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.assignment.windows import WindowedMatcher
from semrsm_dist.matching.bounds import squared_token_norms
from semrsm_dist.matching.matcher import check_count


class BatchOptimal(WindowedMatcher):
    """Sort the tokens of both images by norm, cut them into windows, match exactly inside each.

    Norms ascend and the last window may be shorter, as in the authors' code; equal norms keep their order.
    A window of S or more gives the optimum. The bound comes from norms alone.

    Parameters
    ----------
    window : int
        Tokens per window (b in the paper, which uses 512).
    tolerance : float
        What the windows may lose against their optimum, on the cosine scale; 0 is exact in float32 (1e-6).
    """

    name: ClassVar[str] = "batch-optimal"
    version: ClassVar[int] = 4

    def __init__(self, window: int = 512, tolerance: float = 0.0) -> None:
        super().__init__(tolerance)
        self.window = check_count(self.name, "window", window)

    @property
    def parameters(self) -> dict[str, int | float]:
        """What alters the numbers, by name."""
        return {"window": self.window, "tolerance": self.tolerance}

    def order(self, image: NDArray[Any]) -> NDArray[np.intp]:
        """Return the tokens of an image (S, C) by ascending norm, equal norms in their order."""
        return np.argsort(squared_token_norms(image), kind="stable")

    def sizes(self, n_tokens: int) -> list[int]:
        """Return the number of tokens of each window."""
        return [min(self.window, n_tokens - start) for start in range(0, n_tokens, self.window)]

"""The matcher `subsample`: a random sample of tokens exactly, all others position by position."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.assignment.windows import WindowedMatcher
from semrsm_dist.matching.matcher import check_count, check_seed


class Subsample(WindowedMatcher):
    """Match a random sample of positions among themselves; every other token stays in its place.

    The sample is drawn without replacement, from the number of tokens and the seed alone: it is the same for all
    images, and a larger sample holds the smaller ones. So the value is never below that of no matching, and
    does not fall when the sample grows. A sample's value scaled up to S tokens would come nearer to the
    optimum, but no permutation attains it. A `sample` of S or more gives the optimum. The bound comes from
    norms alone.

    Parameters
    ----------
    sample : int
        How many tokens of each image are matched.
    seed : int
        Of the draw.
    tolerance : float
        What the sample may lose against its optimum, on the cosine scale; 0 is exact in float32 (1e-6).
    """

    name: ClassVar[str] = "subsample"

    def __init__(self, sample: int = 256, seed: int = 0, tolerance: float = 0.0) -> None:
        super().__init__(tolerance)
        self.sample = check_count(self.name, "sample", sample)
        self.seed = check_seed(self.name, seed)

    @property
    def parameters(self) -> dict[str, int | float]:
        """What alters the numbers, by name."""
        return {"sample": self.sample, "seed": self.seed, "tolerance": self.tolerance}

    def order(self, image: NDArray[Any]) -> NDArray[np.intp]:
        """Return the sampled positions of an image (S, C), then the others."""
        drawn = np.random.default_rng(self.seed).permutation(len(image))
        return np.concatenate([np.sort(drawn[: self.sample]), np.sort(drawn[self.sample :])])

    def sizes(self, n_tokens: int) -> list[int]:
        """Return the number of tokens of the only window."""
        return [min(self.sample, n_tokens)]

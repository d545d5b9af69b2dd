"""The matcher `subsample`: a random sample of tokens exactly, all others position by position."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from semrsm_dist.fields import Count, Seed
from semrsm_dist.matching.assignment.windows import WindowedMatcher
from semrsm_dist.matching.matcher import Limits, product_seconds


class Subsample(WindowedMatcher):
    """Match a random sample of positions among themselves; every other token stays in its place.

    The sample is drawn without replacement, from the number of tokens and the seed alone: it is the same for all
    images, and a larger sample holds the smaller ones. So the value is never below that of no matching, and
    does not fall when the sample grows. A sample's value scaled up to S tokens would come nearer to the
    optimum, but no permutation attains it. A `sample` of S or more gives the optimum. The bound comes from
    norms alone.
    """

    name: ClassVar[str] = "subsample"

    sample: Annotated[Count, Limits("tokens")] = 256
    """How many tokens of each image are matched."""
    seed: Seed = 0
    """Seed of the random sample."""

    @override
    def pair_seconds(self, n_tokens: int, n_channels: int) -> float:
        size = min(self.sample, n_tokens)
        return (
            product_seconds(size, size, n_channels)
            + 3e-9 * math.pow(size, 1.9)
            + 1e-9 * n_tokens * n_channels
        )

    def order(self, image: NDArray[Any]) -> NDArray[np.intp]:
        """Return the sampled positions of an image (S, C), then the others."""
        drawn = np.random.default_rng(self.seed).permutation(len(image))
        return np.concatenate([np.sort(drawn[: self.sample]), np.sort(drawn[self.sample :])])

    def sizes(self, n_tokens: int) -> list[int]:
        """Return the number of tokens of the only window."""
        return [min(self.sample, n_tokens)]

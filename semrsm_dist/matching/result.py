"""Results of matchers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

UNMATCHED = -1
"""The partner of a token that has none, because the other image has fewer tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """The match of one pair of representations z_i (S_i, C) and z_j (S_j, C).

    Attributes
    ----------
    value : float
        ``<Z_i, P Z_j>`` of the permutation below, in float64.
    upper_bound : float
        No permutation has a value above this: no choice of min(S_i, S_j) pairs, where the numbers of tokens differ.
    permutation : ndarray of intp, (S_i,)
        Row s of z_i goes with row ``permutation[s]`` of z_j; -1 where z_j has fewer tokens and none is left.
    matcher : str
        Name of the matcher that found it.
    """

    value: float
    upper_bound: float
    permutation: NDArray[np.intp]
    matcher: str

    @property
    def gap(self) -> float:
        """How far `value` can be below the optimum: ``upper_bound - value``, never negative."""
        return self.upper_bound - self.value


class TileResult(NamedTuple):
    """The matches of R images with K images; arrays are (R, K) float64."""

    matched: NDArray[np.float64]
    """As `Match.value`, pair by pair."""
    upper_bound: NDArray[np.float64]
    """As `Match.upper_bound`, pair by pair."""
    identity: NDArray[np.float64]
    """``<Z_i, Z_j>`` position by position: the value without any matching."""
    products: float = 0.0
    """Seconds spent in affinity products; 0 if the matcher does not measure them."""
    solving: float = 0.0
    """Seconds spent in matching; 0 likewise."""

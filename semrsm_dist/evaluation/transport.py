"""Optimal transport between the tokens of two images: soft assignments in place of a permutation.

Each image is a distribution over its tokens, with masses a and b. Of all plans P >= 0, entropic transport takes the one
that maximises

    sum(P * A) - entropy * KL(P | a b') - relaxation * (KL(P 1 | a) + KL(P' 1 | b)),

with A the affinities of the tokens. With an infinite `relaxation`, the plan has the marginals a and b; with uniform
masses and no entropy, the best such plan is a permutation, and this is matching. With a finite one, transport is
unbalanced: tokens without a good partner move little mass, as background should.

M. Cuturi, Sinkhorn distances: lightspeed computation of optimal transport, NeurIPS 2013.
L. Chizat, G. Peyré, B. Schmitzer and F.-X. Vialard, Scaling algorithms for unbalanced optimal transport problems,
Mathematics of Computation 87 (2018).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.errors import ConfigError
from semrsm_dist.evaluation.late_interaction import PRODUCT_BYTES, affinity_blocks

LEAST_ENTROPY = 0.03
"""Below, the kernel of two opposite tokens, exp(-2 / entropy), is too small for float32."""


@dataclass(frozen=True, slots=True)
class Transport:
    """The parameters of entropic transport between tokens of length at most 1.

    Raises ConfigError if one of them is too small.
    """

    entropy: float = 0.1
    """Weight of the entropy, at least `LEAST_ENTROPY`: large values spread every token's mass over all tokens."""
    relaxation: float = math.inf
    """Weight of the marginals; infinite for balanced transport."""
    iterations: int = 50
    """Sinkhorn iterations. Their number is fixed, so that the numbers of a pair depend on that pair alone."""

    def __post_init__(self) -> None:
        if not (self.entropy >= LEAST_ENTROPY and self.relaxation > 0 and self.iterations >= 1):
            raise ConfigError(
                f"transport needs an entropy of at least {LEAST_ENTROPY}, a positive relaxation and at least one "
                f"iteration, found {self.entropy}, {self.relaxation} and {self.iterations}"
            )

    def similarities(
        self,
        queries: NDArray[np.float32],
        database: NDArray[np.float32],
        masses: tuple[NDArray[np.float64], NDArray[np.float64]],
        *,
        product_bytes: int = PRODUCT_BYTES,
    ) -> NDArray[np.float64]:
        """Return the affinity that the best plan transports, sum(P * A), between all images of two sets, (A, B).

        Parameters
        ----------
        queries, database : (A, S, C) and (B, T, C)
            Tokens, of length at most 1: see `unit_tokens`.
        masses : (A, S) and (B, T)
            Of the tokens, each image's with sum 1; 0 for places that hold no token. See `token_masses`.
        product_bytes
            Memory for affinities; at least one pair of images is always held.
        """
        left, right = (np.ascontiguousarray(z, dtype=np.float32) for z in (queries, database))
        a, b = (mass.astype(np.float32) for mass in masses)
        found = np.empty((len(left), len(right)))
        for block, affinities in affinity_blocks(left, right, product_bytes):
            pairs = np.ascontiguousarray(affinities.transpose(0, 2, 1, 3))
            found[block] = self._transport(pairs, a[block[0], None, :], b[None, block[1], :])
        return found

    def _transport(
        self, affinities: NDArray[np.float32], a: NDArray[np.float32], b: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Return what the plan diag(a u) K diag(b v) transports, K = exp((A - 1) / entropy), for pairs (A, B, S, T)."""
        kernel = np.exp((affinities - np.float32(1.0)) / np.float32(self.entropy))
        power = np.float32(1.0 / (1.0 + self.entropy / self.relaxation))
        v = np.ones((*kernel.shape[:2], kernel.shape[3]), np.float32)
        for _ in range(self.iterations):
            u = (kernel @ (b * v)[..., None])[..., 0] ** -power
            v = ((a * u)[..., None, :] @ kernel)[..., 0, :] ** -power
        kernel *= affinities
        moved = ((a * u)[..., None, :] @ kernel)[..., 0, :]
        total: NDArray[np.float64] = np.sum(moved * (b * v), axis=-1, dtype=np.float64)
        return total


def token_masses(
    z: NDArray[np.floating[Any]], token_counts: NDArray[np.int64], *, by_norm: bool = False
) -> NDArray[np.float64]:
    """Return the masses (N, S) of the tokens of images (N, S, C), each image's with sum 1.

    Parameters
    ----------
    z
        Tokens; zeros beyond an image's own.
    token_counts : (N,)
        Tokens that each image has.
    by_norm
        Give each token a mass in proportion to its norm instead of an equal one. An image of zeros gets equal ones.
    """
    is_token = np.arange(z.shape[1]) < token_counts[:, None]
    masses = is_token.astype(np.float64)
    if by_norm:
        norms = np.linalg.norm(np.asarray(z, dtype=np.float64), axis=2) * is_token
        has_norm = norms.any(axis=1)
        masses[has_norm] = norms[has_norm]
    result: NDArray[np.float64] = masses / masses.sum(axis=1, keepdims=True)
    return result

"""Similarities of centred tokens, from those of the tokens as they are.

Subtract a vector a from all S tokens of one image and b from those of the other. With the mean tokens p and q,

    <Z - 1 a', P (Y - 1 b')> = <Z, P Y> - S p.b - S a.q + S a.b        for every permutation P,

because a permutation leaves sums over tokens as they are. So centring changes no matching: the best permutation is the
same, and what the matching has found gives the similarities of centred tokens, with the mean of the data set (a = b) or
of each image (a = p, b = q) alike. The certified gap of the inner product stays too; norms become smaller, and with
them the gap on the cosine scale larger.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.errors import InputError

Matrix = NDArray[np.float64]


class Centring:
    """What is subtracted from the tokens of some images, and what that changes.

    Parameters
    ----------
    pooled : (N, C)
        Mean token of each image.
    offsets : (C,) or (N, C)
        What to subtract from each token: one vector for all images, or one for each.
    n_tokens
        S.
    """

    def __init__(
        self, pooled: NDArray[np.floating[Any]], offsets: NDArray[np.floating[Any]], n_tokens: int
    ) -> None:
        self._pooled = np.asarray(pooled, dtype=np.float64)
        if np.shape(offsets) not in (self._pooled.shape, self._pooled.shape[1:]):
            raise InputError(
                f"expected offsets (C,) or (N, C) for mean tokens {self._pooled.shape}, found {np.shape(offsets)}"
            )
        self._offsets = np.broadcast_to(np.asarray(offsets, dtype=np.float64), self._pooled.shape)
        self._n_tokens = n_tokens

    def squared_norms(self, norms: Matrix) -> Matrix:
        """Return the squared norms (N,) of the centred representations from those as they are."""
        cross = np.einsum("nc,nc->n", 2.0 * self._pooled - self._offsets, self._offsets)
        return _without_rounding(norms - self._n_tokens * cross, norms)

    def inner(self, inner: Matrix, other: Centring, rows: slice) -> Matrix:
        """Return inner products (B, M) of centred representations: rows of these images, columns of the other's."""
        pooled, offsets = self._pooled[rows], self._offsets[rows]
        shift = (pooled - offsets) @ other._offsets.T + offsets @ other._pooled.T
        return inner - self._n_tokens * shift


def _without_rounding(centred: Matrix, norms: Matrix) -> Matrix:
    """Set to zero what rounding (means are float32) leaves of the norm of an image whose tokens are all alike."""
    return np.where(centred > 1e-6 * norms, centred, 0.0)

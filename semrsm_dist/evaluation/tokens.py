"""Common normalisations of tokens before they are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Tokens = NDArray[np.floating[Any]]


def unit_vectors(
    vectors: Tokens, *, zero: float = np.nan, least: float | np.floating[Any] = 0.0
) -> NDArray[np.float64]:
    """Return (..., C) vectors scaled to length 1 in float64, in which those of float32 neither overflow nor vanish.

    Those no longer than `least` have no direction, and become `zero`.
    """
    wide = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(wide, axis=-1, keepdims=True)
    result = np.full_like(wide, zero)
    np.divide(wide, norms, out=result, where=norms > least)
    return result


def unit_tokens(z: Tokens) -> NDArray[np.float32]:
    """Return (..., S, C) tokens, each scaled to length 1; zero tokens, which have no direction, stay zero."""
    return unit_vectors(z, zero=0.0).astype(np.float32)


def centred_tokens(z: Tokens, mean: ArrayLike) -> NDArray[np.float32]:
    """Return (..., S, C) tokens less a mean (C,) or one for each image (..., 1, C), subtracted in float64."""
    return (np.asarray(z, dtype=np.float64) - np.asarray(mean, dtype=np.float64)).astype(np.float32)

"""Common normalisations of tokens before they are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Tokens = NDArray[np.floating[Any]]


def unit_tokens(z: Tokens) -> NDArray[np.float32]:
    """Return (..., S, C) tokens, each scaled to length 1; zero tokens, which have no direction, stay zero.

    Lengths are taken in float64, in which those of float32
    tokens neither overflow nor vanish.
    """
    wide = np.array(z, dtype=np.float64)
    norms = np.linalg.norm(wide, axis=-1, keepdims=True)
    np.divide(wide, norms, out=wide, where=norms > 0)
    return wide.astype(np.float32)


def centred_tokens(z: Tokens, mean: ArrayLike) -> NDArray[np.float32]:
    """Return (..., S, C) tokens less a mean (C,) or one for each image (..., 1, C), subtracted in float64."""
    return (np.asarray(z, dtype=np.float64) - np.asarray(mean, dtype=np.float64)).astype(np.float32)

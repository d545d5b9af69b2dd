"""The number of tokens of each image of ready-made features, if images differ in it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.errors import InputError
from semrsm_dist.features.arrays import map_npy
from semrsm_dist.matching.panel import check_token_counts


def load_token_counts(path: Path | None, n_images: int, n_tokens: int) -> NDArray[np.int64]:
    """Return the (N,) token counts of a `.npy` file, or S for all images if there is none.

    Parameters
    ----------
    path
        The file, or None.
    n_images, n_tokens
        N and S of the features that the counts belong to.

    Raises
    ------
    InputError
        If the file cannot be read, or does not hold N whole numbers from 1 to S.
    """
    if path is None:
        return np.full(n_images, n_tokens, np.int64)
    try:
        return check_token_counts(np.array(map_npy(path)), n_images, n_tokens)
    except InputError as error:
        raise type(error)(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def hash_token_counts(token_counts: NDArray[np.int64]) -> str:
    """Return the SHA-256 of (N,) token counts, in hexadecimal digits."""
    return hashlib.sha256(token_counts.tobytes()).hexdigest()

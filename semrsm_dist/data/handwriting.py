"""Handwritten digits: the 1 797 that scikit-learn ships, in a fixed split into training and evaluation."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Split = Literal["training", "evaluation"]

DIGIT_SIDE = 8
"""Pixels of a digit as scikit-learn ships it."""

N_CLASSES = 10
EVALUATION_SHARE = 0.3
_SPLIT_SEED = 1797  # never to be changed: the shipped weights must not have seen an evaluation digit


@lru_cache(maxsize=1)
def _digit_images() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return scikit-learn's digits (1797, 8, 8), brightness 0 to 255, and their classes."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - slow to import

    images, classes = load_digits(return_X_y=True)
    side = (DIGIT_SIDE, DIGIT_SIDE)
    return (images.reshape(-1, *side) * (255 / 16)).astype(np.float32), classes.astype(np.int64)


@lru_cache(maxsize=2)
def digit_sources(split: Split) -> tuple[NDArray[np.int64], ...]:
    """Return, for each class 0 to 9, which of scikit-learn's digits belong to the split.

    The split is fixed and stratified: `EVALUATION_SHARE` of each class is held out for evaluation.
    """
    rng = np.random.default_rng(_SPLIT_SEED)
    classes = _digit_images()[1]
    chosen = []
    for digit in range(N_CLASSES):
        members = rng.permutation(np.flatnonzero(classes == digit))
        n_evaluation = round(EVALUATION_SHARE * len(members))
        chosen.append(np.sort(members[:n_evaluation] if split == "evaluation" else members[n_evaluation:]))
    return tuple(chosen)


@lru_cache(maxsize=65536)
def enlarge(source: int, size: int) -> NDArray[np.uint8]:
    """Return digit number `source` as `size` x `size` pixels."""
    digit = Image.fromarray(_digit_images()[0][source]).resize((size, size), Image.Resampling.BICUBIC)
    return to_bytes(np.asarray(digit))


def to_bytes(brightness: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return brightness rounded to whole numbers from 0 to 255."""
    pixels: NDArray[np.uint8] = np.clip(np.rint(brightness), 0, 255).astype(np.uint8)
    return pixels

"""Handwritten digits: the 1 797 that scikit-learn ships, in a fixed split into training and evaluation."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semrsm_dist.errors import InputError

Split = Literal["training", "evaluation"]

DIGIT_SIDE = 8
"""Pixels of a digit as scikit-learn ships it."""

N_CLASSES = 10
EVALUATION_SHARE = 0.3
_SPLIT_SEED = 1797  # never to be changed: the shipped weights must not have seen an evaluation digit


@lru_cache(maxsize=1)
def _digit_images() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return scikit-learn's digits (1797, 8, 8), brightness 0 to 255, and their classes."""
    # Read as `sklearn.datasets.load_digits` does, whose import takes longer than all the rest of a finished run.
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the digits come with scikit-learn, which is not installed; install scikit-learn")
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(path, delimiter=",")
    images = table[:, :-1].reshape(-1, DIGIT_SIDE, DIGIT_SIDE)
    return (images * (255 / 16)).astype(np.float32), table[:, -1].astype(np.int64)


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

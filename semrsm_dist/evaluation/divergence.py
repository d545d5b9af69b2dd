"""The Jensen-Shannon divergence of a classifier's outputs: a distance-like number, large where outputs differ.

It is taken in nats: 0 for equal outputs, ln 2 at most. Wald et al. (2024) hold RSMs against it: images that look alike
to the model should be classified alike, so the more negative their correlation with the divergence, the better.

J. Lin, Divergence measures based on the Shannon entropy, IEEE Trans. Inf. Theory 37 (1991), equation 4.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr, expit, softmax

from semrsm_dist.errors import InputError

LARGEST = float(np.log(2.0))
"""Divergence in nats of outputs that exclude each other."""

SUM_TOLERANCE = 1e-3
"""By how much given probabilities may miss a sum of one: what half precision leaves."""

TERMS_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What a model says about each image, as one or several probability distributions."""

    probabilities: NDArray[np.float64]
    """(N, M) the probabilities of all distributions of an image, side by side."""
    n_distributions: int = 1
    """How many distributions a row holds: 1 for a classifier that names one of M classes; L for one that says yes or no
    to each of L labels, with M = 2 L."""

    def divergence_rows(self) -> Callable[[slice], NDArray[np.float64]]:
        """Return a function from a slice of images to their divergences from all images, (n, N) in nats."""
        return lambda rows: _divergence(self.probabilities[rows], self.probabilities, self.n_distributions)


def outputs_of_classes(logits: NDArray[np.floating[Any]]) -> Outputs:
    """Return the outputs of a classifier that names one of K classes, from its (N, K) logits."""
    return Outputs(softmax(logits.astype(np.float64), axis=1))


def outputs_of_labels(logits: NDArray[np.floating[Any]]) -> Outputs:
    """Return the outputs of a network that says yes or no to each of L labels, from its (N, L) logits.

    The divergence is then the mean over the labels of that of yes and no: within [0, ln 2] whatever L.
    """
    wide = logits.astype(np.float64)
    # expit(-x) and not 1 - expit(x), which loses what is left of a sure yes
    return Outputs(np.concatenate([expit(wide), expit(-wide)], axis=1), n_distributions=wide.shape[1])


def outputs_from_probabilities(probabilities: ArrayLike, *, where: str = "probabilities") -> Outputs:
    """Return outputs from ready-made (N, K) probabilities of K classes; each row is divided by its sum.

    Raises InputError if they are not such an array: negative, not finite, or rows that do not sum to one.
    """
    values = np.asarray(probabilities)
    if values.ndim != 2 or 0 in values.shape or not np.issubdtype(values.dtype, np.floating):
        raise InputError(
            f"{where}: expected real numbers of shape (images, classes), found {values.dtype} of shape {values.shape}"
        )
    values = values.astype(np.float64)
    sums = values.sum(axis=1)
    bad = np.flatnonzero(~((np.abs(sums - 1.0) <= SUM_TOLERANCE) & (values >= 0.0).all(axis=1)))
    if bad.size:
        raise InputError(
            f"{where}: {bad.size} rows are no probabilities, such as row {bad[0]}, which sums to {sums[bad[0]]:g}: no "
            "divergence is defined for them; give numbers from 0 that sum to 1 in each row, such as a softmax"
        )
    return Outputs(values / sums[:, None])


def _divergence(
    left: NDArray[np.float64], right: NDArray[np.float64], n_distributions: int
) -> NDArray[np.float64]:
    """Return (n, m) divergences, the mean over the distributions of a row; a bounded part of the (n, m, K) terms."""
    entropy_left, entropy_right = entr(left).sum(axis=1), entr(right).sum(axis=1)
    result = np.empty((len(left), len(right)))
    columns = max(1, TERMS_AT_ONCE // right.shape[1])
    for start in range(0, len(right), columns):
        part = slice(start, start + columns)
        for index, row in enumerate(left):
            mixed = entr((row + right[part]) / 2).sum(axis=1)
            result[index, part] = mixed - (entropy_left[index] + entropy_right[part]) / 2
    result /= n_distributions
    return np.clip(result, 0.0, LARGEST, out=result)  # rounding may leave a little below or above

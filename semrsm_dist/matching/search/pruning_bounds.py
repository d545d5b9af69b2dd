"""Upper bounds for many pairs at once, without their affinities or with only a few of their channels.

Both are bounds on ``<Z_i, P Z_j> = S mu_i . mu_j + <Zc_i, P Zc_j>`` for every permutation P (Zc: centred).

*Sorted channels.* ``<Zc_i, P Zc_j>`` is a sum over channels. Were each channel free to choose a permutation of its
own, it would pair its values by rank (rearrangement inequality), so the inner product of the sorted channels
bounds the sum. Sorting is done once per image; a block of bounds is then one matrix product of S C terms
per pair, where the affinities take S^2 C. It is tightest where few tokens share a channel, as after a ReLU.

*Sketches.* Let U (C, d) be orthonormal. A token is ``a = U y + e`` with ``y = U^T a`` and e orthogonal to U, so
``<a, b> <= <y_a, y_b> + |e_a| |e_b|``: the affinity of vectors ``(y, |e|)`` with d + 1 channels. An auction on
those bounds the optimum for (d + 1) / C of the price of the product. U are the leading principal directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.bounds import float64_rounding
from semrsm_dist.matching.compiled.product import FLOAT32_UNIT, pack, padded, rounding_of_product
from semrsm_dist.matching.panel import PackedPanel, empty_aligned, read_only

SMALLEST_NORMS = 1e-280
"""Products of norms below this are so close to underflow that float64 rounding is not relative: nothing is pruned."""

SUMMED_AT_ONCE = 8192  # values of sorted channels; more would round more, fewer would multiply slower
_SAMPLED = 2048  # tokens to find principal directions from
# Channels of a sketch: no more than leave out this share of the norms, an eighth of the channels at most, and no
# sketch at all if these leave out too much or if the product costs less than the auction. On photographs through
# networks with random weights and on digit scenes the valley is flat: half or double of the first and the third
# changed the time after the first bounds by less than a fifth.
_ENOUGH_LEFT_OUT = 0.01
MOST_LEFT_OUT = 0.1
LEAST_SAVING = 8
_LEAST_TOKENS = 16


def sort_channels(panel: PackedPanel) -> NDArray[np.float32]:
    """Return the centred, scaled values of each image, each channel in ascending order: (T, C * S).

    Zero tokens that fill an image up are centred like all others.
    """
    n_images, n_tokens, n_channels = panel.raw.shape
    result = np.empty((n_images, n_channels, n_tokens), np.float32)
    for t in range(n_images):
        result[t] = centred_and_scaled(panel, t).T
    result.sort(axis=2)
    return result.reshape(n_images, -1)


def centred_and_scaled(panel: PackedPanel, t: int) -> NDArray[np.float64]:
    """Return the tokens (S, C) of image t that its affinities are computed from, before rounding to float32."""
    centred: NDArray[np.float64] = (panel.raw[t] - panel.means[t]) / panel.scales[t]
    return centred


def sorted_channel_bounds(
    rows: PackedPanel,
    sorted_rows: NDArray[np.float32],
    columns: PackedPanel,
    sorted_columns: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Return upper bounds (R, K) on the matched inner products of all pairs, from what `sort_channels` returns.

    They include rounding, and are infinite where norms are too small to bound anything.
    """
    n_values = sorted_rows.shape[1]
    total = np.zeros((rows.n_images, columns.n_images))
    for start in range(0, n_values, SUMMED_AT_ONCE):
        part = slice(start, start + SUMMED_AT_ONCE)
        total += sorted_rows[:, part] @ sorted_columns[:, part].T
    # Whatever order a BLAS adds in (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), and
    # rounding to float32 before.
    chain = min(n_values, SUMMED_AT_ONCE) + 1
    rounding = chain * FLOAT32_UNIT / (1.0 - chain * FLOAT32_UNIT)
    size_i, lost_i = _norms_when_filled(rows)
    size_j, lost_j = _norms_when_filled(columns)
    total += (
        rounding * np.outer(size_i, size_j) + np.outer(lost_i, size_j + lost_j) + np.outer(size_i, lost_j)
    )
    norms = np.outer(np.sqrt(rows.squared_norms), np.sqrt(columns.squared_norms))
    with np.errstate(over="ignore", invalid="ignore"):
        # Both images filled up to S: pairs of zeros change no value, and leave more permutations to bound.
        shared = np.add.outer(rows.token_counts, columns.token_counts) - rows.n_tokens
        bounds = shared * (rows.means @ columns.means.T)
        scales = np.outer(rows.scales, columns.scales)
        bounds += scales * total
        # Rounding of the parts that add up (means can exceed the norms where many tokens are missing), and of values.
        parts = norms + scales * np.outer(size_i, size_j)
        parts += rows.n_tokens * np.outer(_lengths(rows.means), _lengths(columns.means))
        bounds += 2.0 * float64_rounding(rows.n_tokens, rows.n_channels) * parts
    bounds[~(bounds < np.inf) | (norms < SMALLEST_NORMS)] = np.inf
    return bounds


def _norms_when_filled(panel: PackedPanel) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return `centred_norms` and `rounding_norms` (T,) of images filled up to S tokens."""
    missing = panel.n_tokens - panel.token_counts
    size = np.sqrt(panel.centred_norms**2 + missing * panel.filling_norms**2)
    return size, np.sqrt(panel.rounding_norms**2 + missing * panel.filling_rounding_norms**2)


def _lengths(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.linalg.norm(vectors, axis=1)
    return lengths


@dataclass(frozen=True, slots=True, eq=False)
class Sketches:
    """Images with d + 1 channels in place of many, packed for the product; the last holds the norm of what is left out.

    The affinity of two tokens, plus `rounding` times their norms, is not below the exact affinity.
    """

    packed: NDArray[np.float32]
    n_channels: int  # d + 1; 0 where there is no sketch
    rounding: float


def principal_directions(panel: PackedPanel) -> NDArray[np.float64]:
    """Return the directions (C, d), orthonormal, that sketches take; d = 0 where sketches would not pay.

    Any directions give valid bounds. These are the leading principal directions of tokens from all over the panel:
    as few as leave a small remainder, at most an eighth of the channels, and none if that leaves much.
    """
    from scipy.linalg import eigh  # noqa: PLC0415 - slow to load, and only searches need it

    n_tokens, n_channels = panel.raw.shape[1:]
    most = n_channels // LEAST_SAVING
    if most == 0 or n_tokens < _LEAST_TOKENS:
        return np.zeros((n_channels, 0))
    sample = _sample_tokens(panel)
    covariance = sample.T @ sample
    variances, directions = eigh(covariance, subset_by_index=[n_channels - most, n_channels - 1])
    left_out = np.trace(covariance) - np.cumsum(variances[::-1])  # by the leading direction, by two, ...
    if left_out[-1] > MOST_LEFT_OUT:
        return np.zeros((n_channels, 0))
    enough = np.flatnonzero(left_out <= _ENOUGH_LEFT_OUT)
    n_kept = int(enough[0]) + 1 if enough.size else most
    kept: NDArray[np.float64] = directions[:, most - n_kept :].astype(np.float64)
    return kept


def _sample_tokens(panel: PackedPanel) -> NDArray[np.float32]:
    """Return centred tokens (n, C) from all over a panel, scaled so that squares sum to their share of the norms."""
    n_images, n_tokens = panel.raw.shape[:2]
    images = np.unique(np.linspace(0, n_images - 1, min(n_images, _SAMPLED // 8)).astype(np.intp))
    tokens = np.unique(np.linspace(0, n_tokens - 1, min(n_tokens, _SAMPLED // images.size)).astype(np.intp))
    sample = panel.raw[images[:, None], tokens] - panel.means[images, None]
    norms = np.sqrt(panel.squared_norms[images] * (images.size * tokens.size / n_tokens))[:, None, None]
    np.divide(sample, norms, out=sample, where=norms > 0.0)
    return sample.reshape(-1, panel.n_channels).astype(np.float32)


def sketch(panel: PackedPanel, directions: NDArray[np.float64]) -> Sketches:
    """Return the images of a panel with the channels `directions` (C, d), orthonormal, and their remainder."""
    n_kept = directions.shape[1]
    if n_kept == 0:
        return Sketches(read_only(np.zeros((panel.n_images, 0), np.float32)), 0, 0.0)
    packed = empty_aligned((panel.n_images, padded(panel.n_tokens) * (n_kept + 1)), np.float32)
    origin = read_only(np.zeros(n_kept + 1))
    tokens = np.empty((panel.n_tokens, n_kept + 1), np.float32)
    for t in range(panel.n_images):
        exact = centred_and_scaled(panel, t)
        tokens[:, :n_kept] = exact @ directions
        remainder = exact - tokens[:, :n_kept].astype(np.float64) @ directions.T
        lengths = np.sqrt(np.einsum("sc,sc->s", remainder, remainder))
        tokens[:, n_kept] = np.nextafter(lengths.astype(np.float32), np.float32(np.inf))
        pack(read_only(tokens), origin, 1.0, packed[t])
    # With y rounded to float32 and U^T U = I + D, the remainder is orthogonal to U but for (unit + |D|) |y|, which
    # counts for both tokens, and <U y_a, U y_b> differs from <y_a, y_b> by |D| |y_a| |y_b|. Float64 rounds far less.
    skew = float(np.linalg.norm(directions.T @ directions - np.eye(n_kept)))
    rounding = 1.001 * (rounding_of_product(n_kept + 1) + 4.0 * FLOAT32_UNIT + 3.0 * skew)
    return Sketches(read_only(packed), n_kept + 1, rounding)

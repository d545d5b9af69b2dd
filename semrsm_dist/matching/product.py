"""The affinity matrix of one pair of images, in single or double precision.

Representations are packed so that one load brings the same channel of 16 tokens:
``packed[(block * n_channels + channel) * 16 + lane]``, absent tokens being zero. Every entry of the
product is summed in the same order whatever its place, so duplicated tokens get equal affinities, the
affinities of (j, i) are exactly the transposed ones of (i, j), and the bits depend on nothing
but the two images (a BLAS gives none of these).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

from semrsm_dist.matching.jit import compiled
from semrsm_dist.matching.lane_products import (
    PRODUCT_ROWS,
    PRODUCT_VECTORS,
    multiply_one,
    multiply_three,
    multiply_two,
)
from semrsm_dist.matching.lanes import LANES

CHANNEL_BLOCK = 128
"""Channels summed in one chain: keeps both factors in the first cache and rounding errors small."""

FLOAT32_UNIT = 2.0**-24
"""What rounding to float32 can change, relative to the number."""


@register_jitable
def padded(n_tokens: int) -> int:
    """Return `n_tokens` rounded up to whole vectors."""
    return -(-n_tokens // LANES) * LANES


def rounding_of_product(n_channels: int) -> float:
    """Return g such that a float32 affinity differs from the exact one by at most g |a| |b|.

    The classical bound for inner products, n u / (1 - n u), with n the length of the longest
    chain of additions (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
    """
    chain = min(n_channels, CHANNEL_BLOCK) + -(-n_channels // CHANNEL_BLOCK) + 1
    return chain * FLOAT32_UNIT / (1.0 - chain * FLOAT32_UNIT)


@compiled
def inverse_factors(scale: float) -> tuple[float, float]:
    """Return two powers of two by which to multiply instead of dividing by a third, whose inverse may overflow."""
    exponent = math.frexp(scale)[1] - 1
    return math.ldexp(1.0, -(exponent // 2)), math.ldexp(1.0, exponent // 2 - exponent)


@compiled
def pack(
    z: NDArray[np.floating[Any]], mean: NDArray[np.float64], scale: float, out: NDArray[np.floating[Any]]
) -> None:
    """Write ``(z - mean) / scale`` for z (S, C) into `out` in the packed order; `scale` is a power of two."""
    n_tokens, n_channels = z.shape
    first, second = inverse_factors(scale)
    for block in range(out.size // (n_channels * LANES)):
        for lane in range(LANES):
            token = block * LANES + lane
            start = block * n_channels * LANES + lane
            for c in range(n_channels):
                value = (np.float64(z[token, c]) - mean[c]) * first * second if token < n_tokens else 0.0
                out[start + c * LANES] = value


@compiled
def multiply_packed(
    a: NDArray[np.floating[Any]],
    b: NDArray[np.floating[Any]],
    n_channels: int,
    n_rows: int,
    out: NDArray[np.floating[Any]],
) -> None:
    """Write the affinities of two packed images into `out`, flat, rows of ``padded(S)`` columns.

    `out` holds ``padded(S) ** 2`` entries; of its rows, at least the first `n_rows` are written.
    """
    n_blocks = b.size // (n_channels * LANES)
    step = n_blocks * LANES
    block_rows = PRODUCT_ROWS * 4 // a.itemsize
    for first in range(0, n_channels, CHANNEL_BLOCK):
        n = min(CHANNEL_BLOCK, n_channels - first)
        add = first > 0
        for block in range(0, n_blocks, PRODUCT_VECTORS):
            width = min(PRODUCT_VECTORS, n_blocks - block)
            b_at = (block * n_channels + first) * LANES
            b_step = n_channels * LANES
            for row in range(0, n_rows, block_rows):
                a_at = (row // LANES * n_channels + first) * LANES + row % LANES
                out_at = row * step + block * LANES
                if width == 3:
                    multiply_three(a, a_at, b, b_at, b_step, n, out, out_at, step, add)
                elif width == 2:
                    multiply_two(a, a_at, b, b_at, b_step, n, out, out_at, step, add)
                else:
                    multiply_one(a, a_at, b, b_at, b_step, n, out, out_at, step, add)

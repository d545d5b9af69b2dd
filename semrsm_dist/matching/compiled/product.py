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

from semrsm_dist.matching.compiled.jit import compiled
from semrsm_dist.matching.compiled.lane_products import HALF, ROWS_AT_ONCE, VECTORS_AT_ONCE, make_multiply
from semrsm_dist.matching.compiled.lanes import LANES

CHANNEL_BLOCK = 128
"""Channels summed in one chain: keeps both factors in the first cache and rounding errors small."""

FLOAT32_UNIT = 2.0**-24
"""What rounding to float32 can change, relative to the number."""


@register_jitable
def padded(n_tokens: int) -> int:
    """Return `n_tokens` rounded up to whole vectors."""
    return -(-n_tokens // LANES) * LANES


def rounding_of_product(n_channels: int, block: int = CHANNEL_BLOCK) -> float:
    """Return g such that a float32 affinity differs from the exact one by at most g |a| |b|.

    The classical bound for inner products, n u / (1 - n u), with n the length of the longest
    chain of additions (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1): that of a `block` of
    channels, then of the blocks.
    """
    chain = min(n_channels, block) + -(-n_channels // block) + 1
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


def _make_multiply_columns(n_vectors: int, width: int = LANES) -> Any:
    """Return the function that multiplies a packed image by a block of packed columns, for some of the channels."""
    many, few = ROWS_AT_ONCE
    multiply_many, multiply_few = make_multiply(many, n_vectors, width), make_multiply(few, n_vectors, width)

    @register_jitable
    def multiply_columns(
        a: NDArray[np.floating[Any]],
        b: NDArray[np.floating[Any]],
        n_channels: int,
        n_rows: int,
        column: int,
        first: int,
        n: int,
        out: NDArray[np.floating[Any]],
        out_width: int,
    ) -> None:
        at_once, at_least = many * 4 // a.itemsize, few * 4 // a.itemsize
        row = 0
        while row < n_rows:
            # Cut so that no row beyond the padded ones is written.
            left = n_rows - row
            if at_least < left <= at_once or left > 2 * at_least:
                multiply_many(a, b, n_channels, row, column, first, n, out, out_width, first > 0)
                row += at_once
            else:
                multiply_few(a, b, n_channels, row, column, first, n, out, out_width, first > 0)
                row += at_least

    return multiply_columns


_multiply_half = _make_multiply_columns(1, HALF)
_multiply_one = _make_multiply_columns(1)
_multiply_most = _make_multiply_columns(VECTORS_AT_ONCE) if VECTORS_AT_ONCE > 1 else _multiply_one


@compiled
def multiply_packed(
    a: NDArray[np.floating[Any]],
    b: NDArray[np.floating[Any]],
    n_channels: int,
    n_rows: int,
    n_columns: int,
    out: NDArray[np.floating[Any]],
) -> None:
    """Write the affinities of `n_rows` and `n_columns` packed tokens into `out`, flat, ``padded(n_columns)`` to a row.

    `out` has room for ``padded(n_rows)`` rows, of which at least `n_rows` are written.
    """
    out_width = padded(n_columns)
    for first in range(0, n_channels, CHANNEL_BLOCK):
        n = min(CHANNEL_BLOCK, n_channels - first)
        column = 0
        while column < n_columns:
            left = n_columns - column
            if VECTORS_AT_ONCE > 1 and left > (VECTORS_AT_ONCE - 1) * LANES:
                _multiply_most(a, b, n_channels, n_rows, column, first, n, out, out_width)
                column += VECTORS_AT_ONCE * LANES
            elif left > HALF:
                _multiply_one(a, b, n_channels, n_rows, column, first, n, out, out_width)
                column += LANES
            else:
                _multiply_half(a, b, n_channels, n_rows, column, first, n, out, out_width)
                column += LANES

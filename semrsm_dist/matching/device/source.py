"""The source of the kernels, as one program for images of up to a number of tokens."""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import Final

import numpy as np

FILES: Final = ("warp.cuh", "product.cu", "values.cu", "auction.cu")
CAPACITIES: Final = (64, 128, 256, 512, 1024, 2048, 4096)
"""Tokens that a program can be compiled for. Larger ones need more shared memory than some GPUs have for a block."""

MOST_SHARED_BYTES: Final = 99 * 1024
"""What every GPU has for a block that asks for it."""

# As in the kernels, where the comments are.
GROUP: Final = 16
SLICE: Final = 32
TILE_ROWS: Final = 128
TILE_COLUMNS: Final = 64
PRODUCT_THREADS: Final = 256
VALUE_THREADS: Final = 128
LANES: Final = 32
_MOST_SHARED_TILE: Final = 64

TASK: Final = np.dtype(
    [("row", "i4"), ("column", "i4"), ("n_tokens", "i4"), ("size", "f4"), ("target", "f4")]
)
OUTCOME: Final = np.dtype([("dual", "f8"), ("finished", "i4"), ("n_bids", "i4")])


@functools.cache
def kernel_source() -> str:
    """Return the program, which needs the macro CAPACITY."""
    folder = files(__package__) / "kernels"
    return "".join((folder / name).read_text(encoding="utf-8") for name in FILES)


def capacity_of(n_tokens: int) -> int:
    """Return the smallest capacity that holds images of so many tokens, which are at most `CAPACITIES[-1]`."""
    return next(capacity for capacity in CAPACITIES if capacity >= n_tokens)


def tile_is_shared(capacity: int) -> bool:
    """Return whether a pair's residuals lie in shared memory, not in scratch memory."""
    return capacity <= _MOST_SHARED_TILE


def auction_bytes(capacity: int) -> int:
    """Return the shared memory of a block of `match_pairs`: the struct Market, and the tile if it is there."""
    return 20 * capacity + (2 * capacity**2 if tile_is_shared(capacity) else 0)


def product_bytes() -> int:
    """Return the shared memory of a block of `multiply_panels`: the struct Slices."""
    return 4 * SLICE * (TILE_ROWS + TILE_COLUMNS + 2 * GROUP)

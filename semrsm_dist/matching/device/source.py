"""The source of the kernels: a program of products and values, and one of auctions in each form."""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import Final

import numpy as np

from semrsm_dist.matching.device.forms import Form

PRODUCTS: Final = ("warp.cuh", "product.cu", "halves.cu", "values.cu")
AUCTIONS: Final = ("warp.cuh", "auction.cu")

MOST_SHARED_BYTES: Final = 99 * 1024
"""What every GPU has for a block that asks for it."""

# As in the kernels, where the comments are.
GROUP: Final = 16
SLICE: Final = 32
TILE_ROWS: Final = 128
TILE_COLUMNS: Final = 64
PRODUCT_THREADS: Final = 256
STEP: Final = 16
SPLIT_THREADS: Final = 128
VALUE_THREADS: Final = 128
LANES: Final = 32
HALVES_TILE: Final = 128
_COPIED: Final = 32
_HALVES_PITCH: Final = 36
_HALVES_HEADER: Final = 4

TASK: Final = np.dtype(
    [("row", "i4"), ("column", "i4"), ("n_tokens", "i4"), ("size", "f4"), ("target", "f4")]
)
OUTCOME: Final = np.dtype([("dual", "f8"), ("finished", "i4"), ("n_bids", "i4")])


@functools.cache
def kernel_source(form: Form | None) -> str:
    """Return the program of auctions in a form; None is that of products and values."""
    folder = files(__package__) / "kernels"
    macros = "" if form is None else form.macros
    names = PRODUCTS if form is None else AUCTIONS
    return macros + "".join((folder / name).read_text(encoding="utf-8") for name in names)


def auction_bytes(form: Form, width: int) -> int:
    """Return the shared memory of a block of `match_pairs`: the struct Shared, and rows of `width` residuals."""
    return 20 * form.capacity + 32 * form.warps + 16 + 2 * width * form.rows_shared_of(width)


def product_bytes() -> int:
    """Return the shared memory of a block of `multiply_panels`: the struct Slices."""
    return 4 * SLICE * (TILE_ROWS + TILE_COLUMNS + 2 * GROUP)


def halves_bytes() -> int:
    """Return the shared memory of a block of `multiply_halves`: two of the struct Halves."""
    return 2 * 4 * _HALVES_PITCH * 2 * HALVES_TILE


def split_token_bytes(n_channels: int) -> int:
    """Return what `split_panel` writes of a token: its unit and its halves."""
    return 4 * (_HALVES_HEADER + -(-n_channels // _COPIED) * _COPIED)

"""How many panels a task spans, and bytes on disk. Pure functions of sizes."""

from __future__ import annotations

import math

RESULT_BYTES = 8
"""Bytes of one stored number of the result."""

RESULT_FIELDS = 3
"""Numbers stored per pair: matched, identity, gap."""


def choose_block_size(
    pair_seconds: float, tile_size: int, target_seconds: float, panel_bytes: int, budget: int
) -> int:
    """Choose how many row panels and column panels the block of a task spans.

    Parameters
    ----------
    pair_seconds
        Estimated seconds of one pair.
    tile_size
        Images of a panel.
    target_seconds
        Wanted duration of a task.
    panel_bytes, budget
        Memory of one loaded panel, and of a worker: a block's row panels and one column panel must fit, in bytes.
    """
    tiles = target_seconds / max(pair_seconds * tile_size * tile_size, 1e-9)
    by_time = math.isqrt(max(1, int(min(tiles, 1e12))))
    by_memory = max(1, budget // max(panel_bytes, 1) - 1)
    return max(1, min(by_time, by_memory))


def result_bytes(n_rows: int, n_columns: int, n_pairs: int, n_kernels: int) -> int:
    """Return the uncompressed size of a layer's blocks and final matrices, in bytes."""
    entries = n_rows * n_columns
    return RESULT_BYTES * (RESULT_FIELDS * n_pairs + (RESULT_FIELDS + 2 * n_kernels) * entries)


def feature_bytes(n_images: int, n_tokens: int, n_channels: int, itemsize: int) -> int:
    """Return the uncompressed size of a layer's features, in bytes."""
    return n_images * n_tokens * n_channels * itemsize

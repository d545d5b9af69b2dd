"""What a run costs: seconds a pair, bytes a panel, bytes on disk. Pure functions of sizes."""

from __future__ import annotations

import math

RESULT_BYTES = 8
"""Bytes of one stored number of the result."""

RESULT_FIELDS = 3
"""Numbers stored per pair: matched, identity, gap."""


def guess_pair_seconds(matcher: str, n_tokens: int, n_channels: int) -> float:
    """Estimate the seconds of one pair before anything was measured.

    The estimate only sizes and orders the tasks, so an order of magnitude is enough: the affinity product at
    60 GFLOP/s, and for matching a power of S fitted to photographs' features on one core.

    Parameters
    ----------
    matcher
        Name of the matcher.
    n_tokens, n_channels
        S and C.
    """
    others = min(n_tokens, {"batch-optimal": 512, "median-split": 128}.get(matcher, n_tokens))
    product = 2.0 * n_tokens * others * n_channels / 60e9
    square = float(n_tokens) * n_tokens
    matching = {
        "auction": 3e-9 * math.pow(n_tokens, 1.9),
        "hungarian": 6e-10 * math.pow(n_tokens, 2.9),
        "batch-optimal": 6e-10 * n_tokens * math.pow(min(n_tokens, 512), 1.9),
        "median-split": 3e-9 * n_tokens * math.pow(min(n_tokens, 128), 0.9) + 2e-8 * n_tokens * n_channels,
        "subsample": 3e-9 * math.pow(min(n_tokens, 256), 1.9) + 1e-9 * n_tokens * n_channels,
        "projection": 1e-8 * math.pow(n_tokens, 1.9),
        "topk-greedy": 4e-8 * square,
        "greedy": 4e-8 * square,
        "identity": 1e-9 * n_tokens * n_channels,
    }.get(matcher, 1e-8 * square)
    return product + matching + 2e-6


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
        Memory of one loaded panel and of a worker: a block's row panels and one column panel must fit.
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

"""Bytes on disk. Pure functions of sizes."""

from __future__ import annotations

RESULT_BYTES = 8
"""Bytes of one stored number of the result."""

RESULT_FIELDS = 3
"""Numbers stored per pair: matched, identity, gap."""


def result_bytes(n_rows: int, n_columns: int, n_pairs: int, n_kernels: int) -> int:
    """Return the uncompressed size of a layer's blocks and final matrices, in bytes."""
    entries = n_rows * n_columns
    return RESULT_BYTES * (RESULT_FIELDS * n_pairs + (RESULT_FIELDS + 2 * n_kernels) * entries)


def feature_bytes(n_images: int, n_tokens: int, n_channels: int, itemsize: int) -> int:
    """Return the uncompressed size of a layer's features, in bytes."""
    return n_images * n_tokens * n_channels * itemsize

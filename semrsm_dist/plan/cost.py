"""Bytes on disk. Pure functions of sizes."""

from __future__ import annotations

import math

CANDIDATE_FIELDS = 5
"""Numbers stored per candidate: its place in the tile, and those of a result."""

RESULT_FIELDS = 3
"""Numbers stored per pair: matched, identity, gap."""


def result_bytes(n_pairs: int, n_entries: int, n_kernels: int | None, itemsize: int) -> int:
    """Return the uncompressed size of a layer's tiles, and of its stored matrices, in bytes.

    Parameters
    ----------
    n_pairs, n_entries
        Pairs that are solved, and entries of the matrix.
    n_kernels
        Number of kernels whose matrices are stored; None stores no matrices.
    itemsize
        Bytes of one stored number.
    """
    stored = 0 if n_kernels is None else (RESULT_FIELDS + 2 * n_kernels) * n_entries
    return itemsize * (RESULT_FIELDS * n_pairs + stored)


def neighbour_bytes(n_rows: int, n_panels: int, k: int, itemsize: int) -> int:
    """Return about how many bytes the neighbours of a layer take, and the candidates that they are chosen from.

    In a random order, the m-th of the panels that an image is compared with adds k / m to the k best so far, and both
    images of a pair keep it.
    """
    candidates = 2 * k * (1 + math.log(n_panels)) * CANDIDATE_FIELDS * itemsize
    return int(n_rows * (candidates + k * (16 + 8 + RESULT_FIELDS * itemsize)))


def feature_bytes(n_images: int, n_tokens: int, n_channels: int, itemsize: int) -> int:
    """Return the uncompressed size of a layer's features, in bytes."""
    return n_images * n_tokens * n_channels * itemsize

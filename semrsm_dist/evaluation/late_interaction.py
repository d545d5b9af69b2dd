"""Late interaction: every token of one image takes its best partner in the other; partners may be shared.

Like matching it compares tokens wherever they are, but it is not a permutation: many tokens may share a partner, and
the result depends on the direction. It bounds the matched value from above, and costs the product alone.

O. Khattab and M. Zaharia, ColBERT: efficient and effective passage search via contextualized late interaction over
BERT, SIGIR 2020 (MaxSim).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.floating[Any]]

PRODUCT_BYTES = 2**20
"""Size of the affinities held at once, so that they are still in a core's cache when their maxima are taken."""


def max_similarities(
    queries: Tokens,
    database: Tokens,
    *,
    token_counts: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    product_bytes: int = PRODUCT_BYTES,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return MaxSim(query, database image), and MaxSim(database image, query), of all images of two sets: (A, B) each.

    MaxSim(Q, D) is the mean over the tokens q of Q of max_d <q, d> over the tokens d of D. ColBERT takes the sum,
    which ranks the images of a database in the same order.

    Parameters
    ----------
    queries : (A, S, C)
        Tokens, taken as they are: see `unit_tokens` for cosines.
    database : (B, T, C)
        Tokens.
    token_counts : (A,) and (B,)
        Tokens that each image of both sets has: what is beyond them is ignored. By default S and T for all.
    product_bytes
        Memory for affinities; at least one pair of images is always held.
    """
    left, right = (np.ascontiguousarray(z, dtype=np.float32) for z in (queries, database))
    is_full = True
    if token_counts is not None:
        beyond = [
            np.arange(z.shape[1]) >= n[:, None] for z, n in zip((left, right), token_counts, strict=True)
        ]
        is_full = not any(places.any() for places in beyond)
        if not is_full:  # NaN takes no part below
            left, right = (
                np.where(places[..., None], np.float32(np.nan), z)
                for z, places in zip((left, right), beyond, strict=True)
            )
    # What leaves out NaN is slower.
    largest, mean = (np.maximum, np.mean) if is_full else (np.fmax, np.nanmean)
    forward, backward = np.empty((len(left), len(right))), np.empty((len(left), len(right)))
    for block, affinities in affinity_blocks(left, right, product_bytes):
        forward[block] = mean(largest.reduce(affinities, axis=3), axis=1, dtype=np.float64)
        backward[block] = mean(largest.reduce(affinities, axis=1), axis=2, dtype=np.float64)
    return forward, backward


def affinity_blocks(
    left: NDArray[np.float32], right: NDArray[np.float32], product_bytes: int
) -> Iterator[tuple[tuple[slice, slice], NDArray[np.float32]]]:
    """Yield which images of both sets, and the inner products (A, S, B, T) of their tokens, given contiguous.

    They take at most `product_bytes`, but at least one pair of images is always yielded.
    """
    (n_left, n_tokens, n_channels), (n_right, n_others, _) = left.shape, right.shape
    pair_bytes = n_tokens * n_others * left.itemsize
    rows = max(1, min(n_left, product_bytes // pair_bytes))
    columns = max(1, min(n_right, product_bytes // (pair_bytes * rows)))
    for i in range(0, n_left, rows):
        flat = left[i : i + rows].reshape(-1, n_channels)
        for j in range(0, n_right, columns):
            others = right[j : j + columns]
            product = flat @ others.reshape(-1, n_channels).T
            block = slice(i, i + rows), slice(j, j + columns)
            yield block, product.reshape(-1, n_tokens, len(others), n_others)


def chamfer(forward: NDArray[np.float64], backward: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Chamfer similarity, the mean of MaxSim in both directions: symmetric in its two images."""
    return (forward + backward) / 2.0

"""VLAD: one vector per image, from the residuals of its tokens to the nearest of a few centroids.

H. Jégou, M. Douze, C. Schmid and P. Pérez, Aggregating local descriptors into a compact image representation, CVPR
2010; with the normalisation within centroids of R. Arandjelović and A. Zisserman, All about VLAD, CVPR 2013.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.errors import ConfigError
from semrsm_dist.evaluation.tokens import unit_vectors

Tokens = NDArray[np.floating[Any]]


def fit_centroids(tokens: Tokens, n_centroids: int, *, seed: int) -> NDArray[np.float64]:
    """Return k-means centroids of tokens.

    Parameters
    ----------
    tokens : (n, C)
        A sample; labels are not used.
    n_centroids
        How many; fewer are returned where the sample has fewer different tokens.
    seed
        Of the initial centroids.

    Returns
    -------
    (K, C) array

    Raises
    ------
    ConfigError
        If `n_centroids` is below 1.
    """
    from sklearn.cluster import KMeans  # noqa: PLC0415 - slow to import

    if n_centroids < 1:
        raise ConfigError(f"VLAD needs at least one centroid, found {n_centroids}")
    sample = np.asarray(tokens, dtype=np.float64)
    count = min(n_centroids, len(np.unique(sample, axis=0)))
    centroids: NDArray[np.float64] = KMeans(count, n_init=1, random_state=seed).fit(sample).cluster_centers_
    return centroids


def vlad(
    z: Tokens, centroids: NDArray[np.float64], token_counts: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Return the VLAD vectors of images.

    Each token adds its residual to its nearest centroid. The sum of each centroid is scaled to length 1, and then the
    whole vector. Centroids without tokens contribute zeros.

    Parameters
    ----------
    z : (N, S, C)
        Tokens of the images.
    centroids : (K, C)
        From `fit_centroids`.
    token_counts : (N,)
        Tokens that each image has: what `z` holds beyond them is ignored. By default S for all.

    Returns
    -------
    (N, K * C) array
        Length 1, or 0 for an image whose tokens are all centroids.
    """
    result = np.empty((len(z), centroids.size), dtype=np.float32)
    half_squares = 0.5 * np.einsum("kc,kc->k", centroids, centroids)
    counts = np.full(len(z), z.shape[1]) if token_counts is None else token_counts
    for index, (image, count) in enumerate(zip(z, counts, strict=True)):
        tokens = image[:count].astype(np.float64)
        nearest = np.argmax(tokens @ centroids.T - half_squares, axis=1)
        members = nearest == np.arange(len(centroids))[:, None]
        sums = members @ tokens - members.sum(axis=1, keepdims=True) * centroids
        # What rounding leaves of a residual of zero has no direction.
        residuals = unit_vectors(sums, zero=0.0, least=1e-12 * np.linalg.norm(tokens))
        result[index] = unit_vectors(residuals.ravel(), zero=0.0)
    return result

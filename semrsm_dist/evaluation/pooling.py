"""One vector per image: what retrieval compares if it does not compare tokens.

Average pooling discards positions, as matching does, and with them everything else that distinguishes the tokens of
an image. It is usually combined with principal components and whitening.

Max pooling takes the largest value of each channel, and the generalised mean (GeM) lies between: the mean of powers.

VLAD is made of the residuals of its tokens to the nearest of a few centroids.

H. Jégou and O. Chum, Negative evidences and co-occurences in image retrieval: the benefit of PCA and whitening,
ECCV 2012.
F. Radenović, G. Tolias and O. Chum, Fine-tuning CNN image retrieval with no human annotation, PAMI 2019 (GeM).
H. Jégou, M. Douze, C. Schmid and P. Pérez, Aggregating local descriptors into a compact image representation, CVPR
2010; with the normalisation within centroids of R. Arandjelović and A. Zisserman, All about VLAD, CVPR 2013.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.evaluation.entries import RowReader
from semrsm_dist.evaluation.tokens import unit_vectors

COLUMNS_AT_ONCE = 4096
"""Database vectors that are converted to float64 at once."""

Vectors = NDArray[np.floating[Any]]


def cosine_rows(queries: Vectors, database: Vectors) -> RowReader:
    """Return a row reader of the cosine similarity between (N, C) and (M, C) vectors.

    The vectors may be mapped from disk: they are read a block at a time. NaN where a vector is zero.
    """

    def read(rows: slice) -> NDArray[np.float64]:
        left = unit_vectors(queries[rows])
        result = np.empty((len(left), len(database)))
        for start in range(0, len(database), COLUMNS_AT_ONCE):
            columns = slice(start, start + COLUMNS_AT_ONCE)
            result[:, columns] = left @ unit_vectors(database[columns]).T
        return result

    return read


def pool_tokens(
    z: Vectors, token_counts: NDArray[np.int64] | None = None, *, power: float
) -> NDArray[np.float32]:
    """Return generalised means over the tokens of each image, channel by channel, (N, C).

    Raises ConfigError if the power is below 1.

    Parameters
    ----------
    z : (N, S, C)
        Vectors of the images.
    token_counts : (N,)
        Vectors that each image has: what `z` holds beyond them is ignored. By default S for all.
    power
        1 for the mean; larger ones weigh large values more, and infinity is the maximum. Powers keep the sign of a
        value, so that channels with negative values are not cut off.
    """
    if not power >= 1.0:
        raise ConfigError(f"the power of a generalised mean must be at least 1, found {power}")
    counts = np.full(len(z), z.shape[1]) if token_counts is None else token_counts
    pooled = np.empty((len(z), z.shape[2]), dtype=np.float32)
    for index, (image, count) in enumerate(zip(z, counts, strict=True)):
        tokens = image[:count].astype(np.float64)
        largest = np.abs(tokens).max(axis=0)  # of each channel: without it, powers overflow
        if np.isinf(power):
            pooled[index] = tokens.max(axis=0)
            continue
        scaled = np.divide(tokens, largest, out=np.zeros_like(tokens), where=largest > 0)
        mean = np.mean(np.sign(scaled) * np.abs(scaled) ** power, axis=0)
        pooled[index] = largest * np.sign(mean) * np.abs(mean) ** (1.0 / power)
    return pooled


class Whitening:
    """Projection on principal components, each scaled to variance 1.

    Parameters
    ----------
    vectors : (N, C)
        What the components are fitted to, without labels: usually the database. The sign of a vector matters, so
        they are scaled to length 1 first, as the vectors to be projected are; zero vectors are left out.
    variance : float
        Share of the variance that the components kept explain, in (0, 1]. Few images in many channels need less
        than 1: with N - 1 components every whitened image of the N would be equally far from every other.

    Attributes
    ----------
    n_components : int
        Components kept.

    Raises
    ------
    ConfigError
        If `variance` is not in (0, 1].
    InputError
        If fewer than two different vectors are left to fit to.
    """

    def __init__(self, vectors: Vectors, *, variance: float = 0.95) -> None:
        from sklearn.decomposition import PCA  # noqa: PLC0415 - slow to import

        if not 0.0 < variance <= 1.0:
            raise ConfigError(f"the share of variance to keep must lie in (0, 1], found {variance}")
        unit = unit_vectors(vectors)
        unit = unit[~np.isnan(unit).any(axis=1)]
        if len(unit) < 2 or not np.ptp(unit, axis=0).any():
            raise InputError(
                f"whitening is fitted to at least two different vectors, found {len(unit)} that are not zero"
                f"{' and all equal' if len(unit) > 1 else ''}; give more images"
            )
        # Components that rounding leaves beyond the rank would be blown up to variance 1.
        self._pca = PCA(n_components=min(variance, 1.0 - 1e-9), whiten=True, svd_solver="full").fit(unit)
        self.n_components = int(self._pca.n_components_)

    def __call__(self, vectors: Vectors) -> NDArray[np.float64]:
        """Return (N, n_components) whitened vectors; NaN for zero vectors."""
        unit = unit_vectors(vectors)
        whitened: NDArray[np.float64] = self._pca.transform(np.nan_to_num(unit))
        whitened[np.isnan(unit).any(axis=1)] = np.nan
        return whitened


def fit_centroids(tokens: Vectors, n_centroids: int, *, seed: int) -> NDArray[np.float64]:
    """Return k-means centroids of tokens, (K, C).

    Raises ConfigError if `n_centroids` is below 1.

    Parameters
    ----------
    tokens : (n, C)
        A sample; labels are not used.
    n_centroids
        How many; fewer are returned where the sample has fewer different tokens.
    seed
        Of the initial centroids.
    """
    from sklearn.cluster import KMeans  # noqa: PLC0415 - slow to import

    if n_centroids < 1:
        raise ConfigError(f"VLAD needs at least one centroid, found {n_centroids}")
    sample = np.asarray(tokens, dtype=np.float64)
    count = min(n_centroids, len(np.unique(sample, axis=0)))
    centroids: NDArray[np.float64] = KMeans(count, n_init=1, random_state=seed).fit(sample).cluster_centers_
    return centroids


def vlad(
    z: Vectors, centroids: NDArray[np.float64], token_counts: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Return the VLAD vectors of images, (N, K * C), of length 1, or 0 for an image whose tokens are all centroids.

    Each token adds its residual to its nearest centroid. The sum of each centroid is scaled to length 1, and then the
    whole vector. Centroids without tokens contribute zeros.

    Parameters
    ----------
    z : (N, S, C)
        Vectors of the images.
    centroids : (K, C)
        From `fit_centroids`.
    token_counts : (N,)
        Vectors that each image has: what `z` holds beyond them is ignored. By default S for all.
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

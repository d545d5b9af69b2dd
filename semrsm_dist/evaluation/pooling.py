"""One vector per image: what retrieval compares if it does not compare tokens.

Average pooling discards positions, as matching does, and with them everything else that distinguishes the tokens of
an image. It is usually combined with principal components and whitening.

H. Jégou and O. Chum, Negative evidences and co-occurences in image retrieval: the benefit of PCA and whitening,
ECCV 2012.
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

"""Pairs of images matched again, token by token: a run keeps the value of a permutation, not the permutation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.matcher import UNMATCHED
from semrsm_dist.matching.matchers import make_matcher
from semrsm_dist.results.run import Run
from semrsm_dist.store.features import FeatureStore

_ALIKE = 1e-6
"""By how much a cosine similarity that is computed again may differ from the stored one, in float32."""


@dataclass(frozen=True, eq=False)
class TokenMatch:
    """The match of an image of S_i tokens with one of S_j.

    Attributes
    ----------
    value : float
        Matched inner product.
    norms : float
        The product of both images' norms, by which the others are divided for a cosine similarity.
    permutation : ndarray of intp, (S_i,)
        Token s of the first image goes with token ``permutation[s]`` of the second; -1 where it goes with none.
    matched, identity : ndarray of float64, (S_i,)
        What each token adds to the inner product, with its partner and position by position: they sum to the value
        and to that of the identity. 0 for a token without a partner; `identity` is NaN where S_i and S_j differ.
    accuracy : float
        By how much the run's cosine similarity may differ: its tolerance if it matched on a GPU, which is not needed
        here.
    """

    value: float
    norms: float
    permutation: NDArray[np.intp]
    matched: NDArray[np.float64]
    identity: NDArray[np.float64]
    accuracy: float = 0.0

    def agrees_with(self, cosine: float) -> bool:
        """Return whether this is the match of a stored cosine similarity, up to accuracy and rounding of float32."""
        return self.norms > 0 and abs(self.value / self.norms - cosine) <= _ALIKE + self.accuracy


class PairMatcher:
    """Matches pairs of a layer's images as the run did: by its matcher, on its features, but always on the CPU.

    Parameters
    ----------
    run
        The run.
    layer
        One of its layers.

    Raises
    ------
    ConfigError
        If there is no such layer, or its matcher is of a distribution that is no longer installed.
    """

    def __init__(self, run: Run, layer: str) -> None:
        parameters = {
            name.removeprefix("matching."): value
            for name, value in run.record.fingerprint.items()
            if name.startswith("matching.") and name not in ("matching.matcher", "matching.version")
        }
        is_elsewhere = parameters.get("device", "cpu") != "cpu"
        if is_elsewhere:
            parameters["device"] = "cpu"
        self._accuracy = float(parameters["tolerance"]) if is_elsewhere else 0.0
        self._matcher = make_matcher(run.record.fingerprint["matching.matcher"], **parameters)
        self._chunk_size = run.record.chunk_size
        self._read_chunk = lru_cache(maxsize=4)(_read_chunk)
        self._sides = [
            (FeatureStore(run.directory.features, side, layer), run.record.counts[side])
            for side in (run.record.row_side, "images")
        ]

    def match(self, row: int, column: int) -> TokenMatch:
        """Match an image of the rows with one of the columns; in a symmetric run, the earlier image comes first.

        Pairs of the same feature chunks should follow each other: they are read once then.

        Raises
        ------
        StorageError
            If their features are missing or damaged.
        """
        z_i, z_j = (
            self._read(store, count, image)
            for (store, count), image in zip(self._sides, (row, column), strict=True)
        )
        found = self._matcher.match(z_i, z_j)
        partners, has_partner = found.permutation, found.permutation != UNMATCHED
        wide_i, wide_j = z_i.astype(np.float64), z_j.astype(np.float64)
        matched, identity = np.zeros(len(z_i)), np.full(len(z_i), math.nan)
        matched[has_partner] = np.einsum("sc,sc->s", wide_i[has_partner], wide_j[partners[has_partner]])
        if len(z_i) == len(z_j):
            identity = np.einsum("sc,sc->s", wide_i, wide_j)
        norms = float(np.linalg.norm(wide_i) * np.linalg.norm(wide_j))
        return TokenMatch(found.value, norms, partners, matched, identity, self._accuracy)

    def _read(self, store: FeatureStore, n_images: int, image: int) -> NDArray[np.float32]:
        start = image // self._chunk_size * self._chunk_size
        z, token_counts = self._read_chunk(store, range(start, min(start + self._chunk_size, n_images)))
        return np.asarray(z[image - start, : token_counts[image - start]], dtype=np.float32)


def _read_chunk(store: FeatureStore, images: range) -> tuple[NDArray[np.floating[Any]], NDArray[np.int64]]:
    """Return features and token counts of consecutive images: those of pairs are best read chunk by chunk."""
    part = slice(images.start, images.stop)
    return store.read(part), store.read_token_counts(part)

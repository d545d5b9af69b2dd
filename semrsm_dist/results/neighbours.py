"""The neighbours of a layer's images, with similarities of any kernel derived from what is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.kernels import derive_pairs
from semrsm_dist.results.matrices import snap_distances
from semrsm_dist.store.neighbours import INDICES, NOBODY, NUMBERS, NeighbourStore


class Neighbours(NamedTuple):
    """The neighbours of some rows, arrays (R, k)."""

    indices: NDArray[np.int64]
    """Images, the most similar first, equal ones by index; -1 where there are fewer than k."""
    similarity: NDArray[np.float64]
    """Similarity after matching; NaN where there is no neighbour."""
    identity: NDArray[np.float64]
    """Similarity position by position; NaN likewise."""
    gap: NDArray[np.float64]
    """How far the similarity can be below that of the best permutation."""


class Similarities(NamedTuple):
    """What a run has of a pair in some kernel."""

    semantic: float
    """After matching."""
    spatial: float
    """Position by position."""
    gap: float
    """How far the former can be below that of the best permutation."""


@dataclass(frozen=True)
class LayerNeighbours:
    """The neighbours of a layer, read in parts."""

    store: NeighbourStore
    """What is stored of them."""
    squared_norms: tuple[NDArray[np.float64], NDArray[np.float64]]
    """Of the images of rows and of columns."""
    kernel: str
    """The kernel of the similarities."""
    sigma: float | None
    """The width of `rbf`."""

    @classmethod
    def open(cls, store: NeighbourStore, kernel: str, sigma: float | None) -> LayerNeighbours:
        """Open a finished layer; raises IncompleteError if it has not been finished."""
        return cls(store, store.squared_norms(), kernel, sigma)

    @property
    def n_rows(self) -> int:
        """Images that have neighbours."""
        return self.squared_norms[0].size

    def read(self, rows: slice) -> Neighbours:
        """Return the neighbours of some rows; raises StorageError if they are damaged or missing."""
        indices = self.store.read(INDICES, rows)
        there = indices != NOBODY
        matched, identity, gap = (self.store.read(name, rows)[there] for name in NUMBERS)
        norms_i = np.broadcast_to(self.squared_norms[0][rows, None], indices.shape)[there]
        norms_j = self.squared_norms[1][indices[there]]

        def derive(inner: NDArray[np.float64]) -> NDArray[np.float64]:
            return derive_pairs(self.kernel, inner, norms_i, norms_j, self.sigma)

        def stored(inner: NDArray[np.float64]) -> NDArray[np.float64]:
            is_snapped = self.kernel == "rbf" and self.store.dtype == np.float32
            return derive(snap_distances(inner, norms_i, norms_j) if is_snapped else inner)

        values = np.full((3, *indices.shape), np.nan)
        values[:, there] = stored(matched), stored(identity), derive(matched + gap) - derive(matched)
        return Neighbours(indices, *values)

    def find(self, row: int, column: int, *, symmetric: bool) -> tuple[Similarities, float] | None:
        """Return the similarities of a pair and its matched inner product; None if it is not kept.

        In a symmetric run, it is also kept if the row's image is a neighbour of the column's. Errors as in `read`.
        """
        for image, other in ((row, column), (column, row))[: 1 + symmetric]:
            rows = slice(image, image + 1)
            indices, *numbers = self.read(rows)
            for rank in np.flatnonzero(indices[0] == other):
                found = Similarities(*(float(column[0, rank]) for column in numbers))
                return found, float(self.store.read("matched", rows)[0, rank])
        return None

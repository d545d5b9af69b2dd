"""The pairs of images i < j of two matrices, read in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.errors import InputError

RowReader = Callable[[slice], NDArray[np.float64]]

ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Pairs:
    """The entries above the diagonal of two (N, N) matrices, pair by pair.

    Parameters
    ----------
    read_x, read_y
        Return rows of the matrices for a slice; undefined entries are NaN.
    n_images
        N.
    rows_at_once
        How many rows to ask for at once; that of a stored matrix's chunks reads every chunk once.
    """

    read_x: RowReader
    read_y: RowReader
    n_images: int
    rows_at_once: int = ROWS_AT_ONCE

    @classmethod
    def of(cls, x: NDArray[np.float64], y: NDArray[np.float64], rows_at_once: int = ROWS_AT_ONCE) -> Pairs:
        """Return the pairs of two matrices in memory.

        Raises
        ------
        InputError
            If they are not square or not of one size.
        """
        if x.ndim != 2 or x.shape[0] != x.shape[1] or x.shape != y.shape:
            raise InputError(f"expected two square matrices of one size, found {x.shape} and {y.shape}")
        return cls(lambda rows: x[rows], lambda rows: y[rows], len(x), rows_at_once)

    @property
    def n_all(self) -> int:
        """Number of pairs, undefined ones included."""
        return self.n_images * (self.n_images - 1) // 2

    def blocks(self) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Yield the entries of some rows' pairs in both matrices, without pairs of which either is NaN."""
        columns = np.arange(self.n_images)
        for rows in self.row_slices():
            x, y = self.read_x(rows), self.read_y(rows)
            kept = (columns > columns[rows, None]) & ~(np.isnan(x) | np.isnan(y))
            yield x[kept], y[kept]

    def row_slices(self) -> Iterator[slice]:
        """Yield the rows in consecutive slices."""
        for start in range(0, self.n_images, self.rows_at_once):
            yield slice(start, min(start + self.rows_at_once, self.n_images))

    def subset(self, images: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return both matrices of some images, given by ascending index, in memory."""
        x = np.empty((images.size, images.size))
        y = np.empty_like(x)
        for rows in self.row_slices():
            inside = slice(*np.searchsorted(images, (rows.start, rows.stop)))
            if inside.start < inside.stop:
                chosen = np.ix_(images[inside] - rows.start, images)
                x[inside], y[inside] = self.read_x(rows)[chosen], self.read_y(rows)[chosen]
        return x, y


ROUNDING = 1e-13
"""How far equal numbers may lie apart after they were computed, as a share of the largest."""


def is_constant(low: float, high: float) -> bool:
    """Tell whether numbers from `low` to `high` differ by no more than rounding, so that nothing varies with them."""
    return not high - low > ROUNDING * max(abs(low), abs(high))

"""The entries of two similarity matrices that are compared with each other, read in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.errors import InputError

RowReader = Callable[[slice], NDArray[np.float64]]

ROWS_AT_ONCE = 256

ROUNDING = 1e-13
"""How far computed numbers that are equal may differ, as a share of the largest."""


def row_slices(n_rows: int, rows_at_once: int) -> Iterator[slice]:
    """Yield all rows in consecutive slices."""
    for start in range(0, n_rows, rows_at_once):
        yield slice(start, min(start + rows_at_once, n_rows))


@dataclass(frozen=True)
class Entries:
    """The entries of two (N, M) matrices that are compared: those above the diagonal if both are symmetric."""

    read_x: RowReader
    read_y: RowReader
    """`read_x` and `read_y` return rows of the matrices for a slice; entries that are NaN in either are left out."""
    n_rows: int
    """N."""
    n_columns: int | None = None
    """M, where queries are compared with a database; None if rows and columns are the same images, so that each pair of
    different images counts once."""
    rows_at_once: int = ROWS_AT_ONCE
    """How many rows to read at once; with a stored matrix's chunk size, each chunk is read once."""

    @classmethod
    def of(cls, x: NDArray[np.float64], y: NDArray[np.float64], rows_at_once: int = ROWS_AT_ONCE) -> Entries:
        """Return the pairs of two symmetric matrices in memory.

        Raises InputError if they are not square or not of one size.
        """
        if x.ndim != 2 or x.shape[0] != x.shape[1] or x.shape != y.shape:
            raise InputError(f"expected two square matrices of one size, found {x.shape} and {y.shape}")
        return cls(lambda rows: x[rows], lambda rows: y[rows], len(x), rows_at_once=rows_at_once)

    @property
    def is_symmetric(self) -> bool:
        """Whether rows and columns are the same images."""
        return self.n_columns is None

    @property
    def n_all(self) -> int:
        """Number of entries, undefined ones included."""
        n = self.n_rows
        return n * (n - 1) // 2 if self.n_columns is None else n * self.n_columns

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]]:
        """Yield rows, which of their entries are compared, and both matrices there, zero where they are not."""
        columns = np.arange(self.n_columns or self.n_rows)
        for rows in self.row_slices():
            x, y = self.read_x(rows), self.read_y(rows)
            kept = ~(np.isnan(x) | np.isnan(y))
            if self.is_symmetric:
                kept &= columns > columns[rows, None]
            yield rows, kept, np.where(kept, x, 0.0), np.where(kept, y, 0.0)

    def row_slices(self) -> Iterator[slice]:
        """Yield the rows in consecutive slices."""
        return row_slices(self.n_rows, self.rows_at_once)

    def subset(self, images: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return both symmetric matrices of some images, given by ascending index, in memory."""
        x = np.empty((images.size, images.size))
        y = np.empty_like(x)
        for rows in self.row_slices():
            inside = slice(*np.searchsorted(images, (rows.start, rows.stop)))
            if inside.start < inside.stop:
                chosen = np.ix_(images[inside] - rows.start, images)
                x[inside], y[inside] = self.read_x(rows)[chosen], self.read_y(rows)[chosen]
        return x, y


def is_constant(low: float, high: float) -> bool:
    """Return whether numbers from `low` to `high` differ only by rounding, and so count as constant."""
    return not high - low > ROUNDING * max(abs(low), abs(high))

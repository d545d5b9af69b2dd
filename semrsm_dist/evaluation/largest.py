"""The largest numbers of each row of a matrix that is seen a few columns at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NONE = -1
"""The index where a row has fewer numbers than are wanted."""


class Largest:
    """The m largest numbers of each of N rows, equal ones by index: the beginning of a stable sort.

    Attributes
    ----------
    values : (N, m)
        In falling order; NaN where a row has fewer.
    indices : (N, m)
        Their columns; `NONE` where a row has fewer.
    """

    def __init__(self, n_rows: int, m: int) -> None:
        self.values = np.full((n_rows, m), np.nan)
        self.indices = np.full((n_rows, m), NONE, dtype=np.intp)
        self._n_seen = 0

    def add(self, block: NDArray[np.float64]) -> None:
        """Take the next columns, (N, M), into account; NaN is passed over."""
        rows, columns = np.nonzero(self._wanted(block))
        n_rows, m = self.values.shape
        values = np.concatenate([self.values.ravel(), block[rows, columns]])
        indices = np.concatenate([self.indices.ravel(), columns + self._n_seen])
        rows = np.concatenate([np.repeat(np.arange(n_rows), m), rows])
        order = np.lexsort((indices, -values, indices == NONE, rows))
        firsts = np.searchsorted(rows[order], np.arange(n_rows))
        best = order[firsts[:, None] + np.arange(m)]
        self.values, self.indices = values[best], indices[best]
        self._n_seen += block.shape[1]

    def _wanted(self, block: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which numbers of a block can be among the largest: those above the last, which came before them."""
        m = self.values.shape[1]
        wanted: NDArray[np.bool_] = ~(np.isnan(block) | (block <= self.values[:, -1:]))
        if np.count_nonzero(wanted) > 4 * self.values.size and block.shape[1] > m:
            # Most of them are not among the largest of the block itself. NaN comes last.
            wanted &= ~(-block > np.partition(-block, m - 1, axis=1)[:, m - 1 : m])
        return wanted

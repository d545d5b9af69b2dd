"""Matrices of a layer as an xarray data set, for users; the pipeline does not need it.

xarray takes half a second to load, which every command would pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from semrsm_dist.results.matrices import DerivedMatrix, LayerMatrices
from semrsm_dist.store.labelled import DIMENSIONS


def open_dataset(layer: LayerMatrices, matrices: Sequence[DerivedMatrix]) -> xr.Dataset:
    """Return matrices of a layer with their coordinates: text as numpy's own `<U`, which every library takes.

    What is read of them is derived from the tiles that it needs.
    """
    return xr.Dataset({matrix.name: _lazily(matrix) for matrix in matrices}, layer.store.coordinates())


def _lazily(matrix: DerivedMatrix) -> xr.Variable:
    lazy: Any = indexing.LazilyIndexedArray(_Array(matrix))
    cached = indexing.MemoryCachedArray(indexing.CopyOnWriteArray(lazy))  # type: ignore[no-untyped-call]
    return xr.Variable(DIMENSIONS, cached, dict(matrix.attributes))


class _Array(BackendArray):
    """A matrix as xarray reads it."""

    def __init__(self, matrix: DerivedMatrix) -> None:
        self._matrix = matrix
        self.shape, self.dtype = matrix.shape, matrix.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> Any:
        """Read with numbers, slices or index arrays for rows and for columns, each on its own."""
        rows, columns = (np.atleast_1d(part) if isinstance(part, int | np.integer) else part for part in key)
        return self._matrix.read((rows, columns))[
            tuple(0 if isinstance(part, int | np.integer) else slice(None) for part in key)
        ]

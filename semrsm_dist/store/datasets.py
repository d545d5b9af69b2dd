"""The final matrices of a layer as an xarray data set, for users; the pipeline does not need it.

xarray takes half a second to load, which every command would pay.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from semrsm_dist.store.matrices import LayerMatrices, StoredMatrix


def open_dataset(layer: LayerMatrices) -> xr.Dataset:
    """Open a layer's matrices lazily, with their coordinates: text as numpy's own `<U`, which every library takes.

    Reading a damaged chunk of a matrix raises DamagedChunkError, which names its file.
    """
    dataset: xr.Dataset = xr.open_zarr(layer.group, chunks=None)
    texts = {name: each for name, each in dataset.coords.items() if each.dtype.kind not in "iuf"}
    dataset = dataset.assign_coords(
        {name: (each.dims, layer.coordinate(str(name)), each.attrs) for name, each in texts.items()}
    )
    return dataset.assign(
        {name: _lazily(layer, name, dataset[name].variable) for name in sorted(layer.names)}
    )


def _lazily(layer: LayerMatrices, name: Hashable, opened: xr.Variable) -> xr.Variable:
    """Return a variable that reads like xarray's own, but names the chunk that is damaged."""
    matrix: Any = indexing.LazilyIndexedArray(_Matrix(layer.matrix(str(name))))
    cached = indexing.MemoryCachedArray(indexing.CopyOnWriteArray(matrix))  # type: ignore[no-untyped-call]
    return xr.Variable(opened.dims, cached, opened.attrs, opened.encoding)


class _Matrix(BackendArray):
    """A stored matrix as xarray reads it."""

    def __init__(self, stored: StoredMatrix) -> None:
        self._stored = stored
        self.shape, self.dtype = stored.shape, stored.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        outer = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, outer, self._stored.read)

"""Matrices of a layer as an xarray data set, for users; the pipeline does not need it.

xarray takes half a second to load, which every command would pay. It finds `SemrsmBackend` by its entry point, as the
engine `semrsm`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from semrsm_dist.errors import ConfigError
from semrsm_dist.results.matrices import DerivedMatrix, LayerMatrices
from semrsm_dist.results.run import Run
from semrsm_dist.store.labelled import DIMENSIONS


def open_dataset(layer: LayerMatrices, matrices: Sequence[DerivedMatrix]) -> xr.Dataset:
    """Return matrices of a layer with their coordinates: text as numpy's own `<U`, which every library takes.

    What is read of them is derived from the tiles that it needs.
    """
    return xr.Dataset({matrix.name: _lazily(matrix) for matrix in matrices}, layer.store.coordinates())


class SemrsmBackend(BackendEntrypoint):
    """Opens a layer of a run directory lazily: ``xarray.open_dataset(run, engine="semrsm", layer="layer3")``."""

    description = "Open a layer of a run of semrsm"
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "layer")

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        layer: str | None = None,
    ) -> xr.Dataset:
        """Open a layer, which must be named unless there is only one.

        Raises
        ------
        ConfigError
            If there is no run, or not one layer that is meant.
        IncompleteError
            If the layer has not been finished yet.
        """
        run = Run(filename_or_obj)
        if layer is None:
            if len(run.layers) != 1:
                raise ConfigError(
                    f"{filename_or_obj}: which layer? name one with layer=...; there are {run.layers}"
                )
            layer = run.layers[0]
        dropped = {drop_variables} if isinstance(drop_variables, str) else set(drop_variables or ())
        dataset = run.dataset(layer)
        return dataset.drop_vars(dropped & {str(name) for name in dataset.variables})

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return whether this is a run directory."""
        return isinstance(filename_or_obj, str | os.PathLike) and all(
            (Path(filename_or_obj) / name).exists() for name in ("run.json", "tiles.zarr")
        )


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

"""The final matrices of a layer: an xarray data set in a Zarr group.

Dimensions are `image_i` (rows) and `image_j` (columns), with the image ids as coordinates and labels beside them. A
symmetric matrix is stored whole, so that every reader gets rows as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from semrsm_dist.errors import IncompleteError
from semrsm_dist.store import chunks

DIMENSIONS = ("image_i", "image_j")
COORDINATES = tuple(f"{name}_{side}" for name in ("labels", "group", "squared_norm") for side in "ij")
"""What stands beside the image ids; xarray takes these for coordinates, so that a single matrix carries them."""

COMPLETE = "complete"


class MatrixStore:
    """The final matrices of one layer.

    Parameters
    ----------
    root
        The run's group of matrices.
    layer
        Name of the layer.
    """

    def __init__(self, root: Path, layer: str) -> None:
        self.root = root
        self.layer = layer
        self._arrays: dict[str, zarr.Array[Any]] = {}

    @property
    def group(self) -> Path:
        """Directory of the layer's group."""
        return self.root / self.layer

    def read_attributes(self) -> dict[str, Any]:
        """Return the attributes of the layer's group; empty if there is none.

        Raises
        ------
        StorageError
            If the group's description is damaged.
        """
        try:
            with chunks.reading_metadata(self.group):
                return dict(zarr.open_group(self.group, mode="r", use_consolidated=False).attrs)
        except FileNotFoundError:
            return {}

    def is_complete(self) -> bool:
        """Tell whether the layer has been assembled."""
        return bool(self.read_attributes().get(COMPLETE, False))

    def begin(self, attributes: Mapping[str, Any], names: Collection[str]) -> None:
        """Open the group for writing matrices of these names; until `finish` it counts as incomplete.

        Matrices of other names go: what an earlier assembly left would pass for part of this one.
        """
        group = chunks.create_group(self.root, self.layer)
        with chunks.writing(self.group):
            # Written again without the metadata that it gathered, which is outdated from here on.
            zarr.open_group(self.root, mode="a", use_consolidated=False).attrs.put({})
            group.attrs.put({**attributes, "coordinates": " ".join(COORDINATES), COMPLETE: False})
            for name in [name for name, array in group.arrays() if array.ndim == 2 and name not in names]:
                del group[name]

    def add_matrix(self, name: str, shape: tuple[int, int], side: int, attributes: dict[str, Any]) -> None:
        """Make one matrix, or reopen it."""
        array = chunks.create_array(
            self.group, name, shape=shape, chunks=(side, side), dtype="float64", dimension_names=DIMENSIONS
        )
        with chunks.writing(self.group):
            array.attrs.put(attributes)

    def write(self, name: str, tile: tuple[int, int], values: NDArray[np.float64]) -> None:
        """Write one chunk of a matrix that `add_matrix` made, here or in another process."""
        if name not in self._arrays:
            self._arrays[name] = chunks.open_array(self.group, name)
        chunks.write_chunk(self._arrays[name], tile, np.ascontiguousarray(values))

    def write_coordinate(
        self, name: str, dimension: str, values: Sequence[str] | NDArray[np.float64]
    ) -> None:
        """Write a coordinate of one dimension: text or numbers, replacing what is there."""
        text = not isinstance(values, np.ndarray)
        with chunks.writing(self.group):
            array = zarr.open_group(self.group, mode="a", use_consolidated=False).create_array(
                name,
                shape=(len(values),),
                dtype="str" if text else "float64",
                dimension_names=(dimension,),
                overwrite=True,
            )
            array[:] = np.asarray(values, dtype=np.dtypes.StringDType()) if text else values

    def finish(self) -> None:
        """Mark the layer complete and gather its metadata, so that it opens in one read."""
        with chunks.writing(self.group), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata", category=UserWarning)
            zarr.open_group(self.group, mode="a", use_consolidated=False).attrs[COMPLETE] = True
            zarr.consolidate_metadata(self.group)
            zarr.consolidate_metadata(self.root)  # where `xarray.open_zarr(root, group=layer)` looks

    def open(self) -> xr.Dataset:
        """Open the layer lazily.

        Raises
        ------
        IncompleteError
            If it has not been assembled.
        """
        if not self.is_complete():
            raise IncompleteError(
                f"{self.group}: the matrices of layer {self.layer!r} are not assembled yet; start the run's command "
                "again to finish it (semrsm status tells how far it is)"
            )
        dataset: xr.Dataset = xr.open_zarr(self.group, chunks=None)
        return dataset

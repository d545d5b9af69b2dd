"""Matrices of a layer written out: a Zarr group that any reader of Zarr opens, with every entry as a number.

A symmetric matrix is stored whole, so that readers get rows as they are. This package derives matrices from the tiles
and never reads these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.store import arrays, chunks
from semrsm_dist.store.labelled import DIMENSIONS, LabelledGroup


class MatrixStore(LabelledGroup):
    """The written matrices of one layer."""

    def make(
        self,
        matrices: Mapping[str, Mapping[str, Any]],
        shape: tuple[int, int],
        chunk_size: int,
        dtype: str,
        run: str,
    ) -> None:
        """Make empty matrices with these attributes, by name; until `finish`, the group counts as incomplete."""
        self.start_over()
        for name, attributes in matrices.items():
            arrays.create_array(
                self.group,
                name,
                dimensions={
                    axis: (length, chunk_size) for axis, length in zip(DIMENSIONS, shape, strict=True)
                },
                dtype=dtype,
                origin=self.origin(run, name),
                attributes=dict(attributes),
                compressors=arrays.SHUFFLED,
            )

    def write(self, name: str, chunk: tuple[int, int], values: NDArray[np.float64]) -> None:
        """Write one chunk of a matrix that `make` made, here or in another process, rounded to its type."""
        array = self._arrays[name]
        chunks.write_chunk(array, chunk, np.ascontiguousarray(values, dtype=array.dtype))

"""The neighbours of a layer's images: a Zarr group that xarray opens, a row for each image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.plan.tiling import Layout
from semrsm_dist.store import arrays, chunks
from semrsm_dist.store.labelled import DIMENSIONS, LabelledGroup

NOBODY = -1
"""The index of a neighbour that there is not."""

INDICES = "indices"
NUMBERS = ("matched", "identity", "gap")
DESCRIPTIONS = {
    INDICES: f"neighbours of each image, the most similar first, equal ones by index; {NOBODY} where there are fewer",
    "matched": "inner product after the best permutation found",
    "identity": "inner product position by position",
    "gap": "certified: the best permutation's inner product is at most matched + gap",
}


class NeighbourStore(LabelledGroup):
    """The neighbours of the images of one layer."""

    def make(self, n_rows: int, k: int, chunk_size: int, dtype: str, run: str) -> None:
        """Make empty arrays (N, k); until `finish`, the group counts as incomplete. Earlier ones go."""
        self.start_over()
        for name, description in DESCRIPTIONS.items():
            arrays.create_array(
                self.group,
                name,
                dimensions={DIMENSIONS[0]: (n_rows, chunk_size), "rank": (k, k)},
                dtype="int64" if name == INDICES else dtype,
                origin=self.origin(run, name),
                attributes={"description": description},
                compressors=arrays.SHUFFLED,
            )

    def write(self, panel: int, indices: NDArray[np.int64], numbers: NDArray[np.floating[Any]]) -> None:
        """Write the neighbours of a panel: indices (T, k), and (3, T, k) as `NUMBERS` says; raises OSError."""
        chunks.write_chunk(self._arrays[INDICES], (panel, 0), indices)
        for name, values in zip(NUMBERS, numbers, strict=True):
            array = self._arrays[name]
            chunks.write_chunk(array, (panel, 0), values.astype(array.dtype))

    def read(self, name: str, rows: slice) -> NDArray[Any]:
        """Return one of the arrays for some rows: indices as int64, numbers as float64.

        Raises StorageError if a chunk is missing or damaged.
        """
        array = self._arrays[name]
        start, stop, _ = rows.indices(array.shape[0])
        values = chunks.read_region(array, (slice(start, stop), slice(0, array.shape[1])))
        return values if name == INDICES else values.astype(np.float64)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the stored numbers."""
        return np.dtype(self._arrays["matched"].dtype)

    def is_done(self, layout: Layout) -> bool:
        """Return whether the layer has been finished and every chunk of it is there: listed, not read."""
        return self.is_complete()

"""The candidates of a layer: for each tile, the pairs that can be neighbours of one of their images.

One chunk holds a tile's candidates, so that a tile is there completely or not at all. Beside them lie the best
similarities that tiles have found of each image so far. They are a memory for the tiles that follow: writers may
overwrite what others have added, and losing all of it costs time alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.errors import StorageError
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.store import arrays, chunks, groups
from semrsm_dist.store.tiles import TileFiles

CANDIDATES, KNOWN = "candidates", "known"

FIELDS = ("row", "column", "matched", "identity", "gap")
"""What is stored of a candidate: its place in the tile, and its numbers as `semrsm_dist.store.tiles` stores them."""


@dataclass(frozen=True)
class CandidateStore(TileFiles):
    """The candidates of one layer."""

    k: int
    """Neighbours of an image."""

    array_name: ClassVar[str] = CANDIDATES
    sized_by: ClassVar[str] = KNOWN

    def create(self, layout: Layout, dtype: str, run: str) -> None:
        """Create the arrays, whose chunks are labelled with the id `run`, or check that existing ones fit."""
        size, k, most = layout.tile_size, self.k, most_candidates(layout, self.k)
        groups.create_group(self.root, self.layer)
        arrays.create_array(
            self.group,
            CANDIDATES,
            dimensions={
                "field": (len(FIELDS), len(FIELDS)),
                "row_panel": (layout.row_panels, 1),
                "candidate": (layout.column_panels * most, most),
            },
            dtype=dtype,
            origin=self.origin(run, CANDIDATES),
            attributes={"fields": list(FIELDS)},
            compressors=arrays.SHUFFLED,
        )
        arrays.create_array(
            self.group,
            KNOWN,
            dimensions={"field": (2, 2), "image": (layout.n_rows, size), "rank": (k, k)},
            dtype="float64",
            origin=self.origin(run, KNOWN),
            attributes={"fields": ["similarity", "image"]},
            compressors=arrays.SHUFFLED,
        )

    def write(self, tile: tuple[int, int], candidates: NDArray[np.floating[Any]]) -> None:
        """Write the candidates of a tile, (5, n) as `FIELDS` says; raises OSError."""
        chunk = np.full(self._array.chunks, np.nan, self._array.dtype)
        chunk[:, 0, : candidates.shape[1]] = candidates
        chunks.write_chunk(self._array, (0, *tile), chunk)

    def read(self, tile: tuple[int, int]) -> NDArray[np.float64]:
        """Return the candidates of a tile, (5, n) as `FIELDS` says; raises StorageError if damaged or missing."""
        chunk = chunks.read_chunk(self._array, (0, *tile))[:, 0]
        return chunk[:, ~np.isnan(chunk[0])].astype(np.float64)

    def read_known(self, panel: int) -> NDArray[np.float64]:
        """Return the k best similarities of each image of a panel so far, and with which image: (2, T, k).

        -inf and -1 where there is none. What cannot be read is forgotten: nothing but time depends on it.
        """
        try:
            known: NDArray[np.float64] = chunks.read_chunk(self._arrays[KNOWN], (0, panel, 0))
        except StorageError:
            region = chunks.chunk_region(self._arrays[KNOWN], (0, panel, 0))
            shape = [part.stop - part.start for part in region]
            known = np.stack([np.full(shape[1:], -np.inf), np.full(shape[1:], -1.0)])
        return known

    def write_known(self, panel: int, known: NDArray[np.float64]) -> None:
        """Replace what `read_known` returns; raises OSError as the file system does."""
        chunks.write_chunk(self._arrays[KNOWN], (0, panel, 0), known)


def most_candidates(layout: Layout, k: int) -> int:
    """Return how many candidates a tile can have: k of each of its images, but no more than its pairs."""
    size = layout.tile_size
    return min(k * size * (2 if layout.symmetric else 1), size * size)

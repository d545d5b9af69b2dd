"""The solved tiles of a layer: a run computes them, and a resume counts them.

One chunk holds the three numbers of every pair of a tile: the matched inner product, the inner product position by
position, and the certified gap. They are written together, so that a tile is there completely or not at all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from semrsm_dist.plan.tiling import Layout
from semrsm_dist.store import chunks

QUANTITIES = ("matched", "identity", "gap")

KINDS = {"semantic": "matched", "spatio-semantic": "identity"}
"""The two kinds of similarity, and the inner product that each comes from."""


@dataclass(frozen=True)
class TileStore:
    """The solved tiles of one layer.

    Parameters
    ----------
    root
        The run's group of tiles.
    layer
        Name of the layer.
    """

    root: Path
    layer: str

    @cached_property
    def _array(self) -> zarr.Array[Any]:
        return chunks.open_array(self.root, self.layer)

    def create(self, n_rows: int, n_columns: int, tile_size: int) -> None:
        """Create the array, or check that an existing one fits."""
        chunks.create_array(
            self.root,
            self.layer,
            shape=(len(QUANTITIES), n_rows, n_columns),
            chunks=(len(QUANTITIES), tile_size, tile_size),
            dtype="float64",
            dimension_names=("quantity", "image_i", "image_j"),
            attributes={"quantities": list(QUANTITIES)},
        )

    def write(
        self,
        tile: tuple[int, int],
        matched: NDArray[np.float64],
        identity: NDArray[np.float64],
        gap: NDArray[np.float64],
    ) -> None:
        """Write one tile: three (R, K) arrays.

        Raises
        ------
        OSError
            As the file system raises it.
        """
        chunks.write_chunk(self._array, (0, *tile), np.stack([matched, identity, gap]))

    def read(self, tile: tuple[int, int]) -> NDArray[np.float64]:
        """Return (3, R, K): matched, identity and gap of one tile.

        Raises
        ------
        StorageError
            If it is damaged or missing.
        """
        return chunks.read_chunk(self._array, (0, *tile))

    def present(self, layout: Layout) -> NDArray[np.bool_]:
        """Return which tiles exist, (row panels, column panels), from one listing of each row's directory."""
        found = np.zeros((layout.row_panels, layout.column_panels), dtype=bool)
        for row, column, _ in self._files(layout):
            found[row, column] = True
        return found & layout.wanted()

    def arrival_times(self, layout: Layout) -> NDArray[np.float64]:
        """Return when each tile was written, in seconds since the epoch; NaN where there is none."""
        times = np.full((layout.row_panels, layout.column_panels), np.nan)
        for row, column, file in self._files(layout):
            with contextlib.suppress(FileNotFoundError):  # a driver may remove a damaged one meanwhile
                times[row, column] = file.stat().st_mtime
        return times

    def remove_damaged(self, tiles: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Read tiles that exist, delete those that cannot be decoded, and return them."""
        damaged = [tile for tile in tiles if not chunks.is_decodable(self._array, (0, *tile))]
        for tile in damaged:
            chunks.delete_chunk(self.root, self.layer, (0, *tile))
        return damaged

    def _files(self, layout: Layout) -> Iterator[tuple[int, int, os.DirEntry[str]]]:
        """Yield row, column and file of each tile of the layout that exists."""
        for row in range(layout.row_panels):
            with contextlib.suppress(FileNotFoundError), os.scandir(self._folder / str(row)) as files:
                for file in files:
                    if file.name.isdecimal() and int(file.name) < layout.column_panels:
                        yield row, int(file.name), file

    @property
    def _folder(self) -> Path:
        return self.root / self.layer / "c" / "0"

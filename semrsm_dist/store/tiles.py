"""The solved tiles of a layer: a run computes them, and a resume counts them.

One chunk holds the three numbers of every pair of a tile: the matched inner product, the inner product position by
position, and the certified gap. They are written together, so that a tile is there completely or not at all.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

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

    def present(self) -> set[tuple[int, int]]:
        """Return the tiles that exist, without reading them."""
        return {(index[1], index[2]) for index in chunks.list_chunks(self.root, self.layer)}

    def arrival_times(self) -> dict[tuple[int, int], float]:
        """Return when each existing tile was written, in seconds since the epoch."""
        root = self.root / self.layer / "c" / "0"
        times = {}
        for row, column in self.present():
            with contextlib.suppress(FileNotFoundError):  # a driver may remove a damaged one meanwhile
                times[row, column] = root.joinpath(str(row), str(column)).stat().st_mtime
        return times

    def remove_damaged(self, threads: int = 4) -> list[tuple[int, int]]:
        """Delete the tiles that cannot be decoded, and return them."""
        array = self._array
        tiles = sorted(self.present())
        with ThreadPoolExecutor(threads) as pool:
            intact = list(pool.map(lambda tile: chunks.is_decodable(array, (0, *tile)), tiles))
        damaged = [tile for tile, ok in zip(tiles, intact, strict=True) if not ok]
        for tile in damaged:
            chunks.delete_chunk(self.root, self.layer, (0, *tile))
        return damaged

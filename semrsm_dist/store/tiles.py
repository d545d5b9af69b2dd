"""The solved tiles of a layer: a run computes them, a resume counts them, and all matrices are derived from them.

One chunk holds the three numbers of every pair of a tile: the matched inner product, the inner product position by
position, and the certified gap. They are written together, so that a tile is there completely or not at all.

Inner products are stored in float32 where nothing certified is lost by it: they are rounded to the nearest, which keeps
matched >= identity, and the gap is that of the stored value, rounded up to few bits. So `matched + gap` is never below
the upper bound that the matcher proved. Zarr's own readers, and xarray's, need nothing of this package.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import zarr
from numpy.typing import NDArray

from semrsm_dist.errors import InputError
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.store import arrays, chunks, groups, paths
from semrsm_dist.store.inventory import Inventory
from semrsm_dist.store.labelled import DIMENSIONS, LabelledGroup, Values
from semrsm_dist.store.paths import RunPath

ARRAY = "tiles"
"""Name of the array of tiles in the layer's group."""

QUANTITIES = ("matched", "identity", "gap")

KINDS = {"semantic": "matched", "spatio-semantic": "identity"}
"""The two kinds of similarity, and the inner product that each comes from."""

GAP_BITS = 4
"""Bits of a gap's mantissa in float32: it is overstated by at most one part in 16."""

PAIRS_AT_ONCE = 2**14
"""Pairs that are encoded together: their intermediate results stay in the cache."""

SMALLEST_PRODUCT, LARGEST_PRODUCT = 2.0**-100, 2.0**120
"""Products of two images' norms between which float32 holds inner products to 2**-24 of them."""


class TileFiles(LabelledGroup):
    """An array with one chunk for each tile of a layer, each a file."""

    array_name: ClassVar[str] = ARRAY
    sized_by: ClassVar[str] = ARRAY
    """Name of an array of which the second length of a chunk is the tile size."""

    @property
    def _array(self) -> zarr.Array[Any]:
        return self._arrays[self.array_name]

    def exists(self) -> bool:
        """Return whether the array has been created."""
        return paths.is_file(self.group / self.array_name / "zarr.json")

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the stored numbers."""
        return np.dtype(self._array.dtype)

    def present(self, layout: Layout) -> NDArray[np.bool_]:
        """Return which tiles exist, (row panels, column panels), from one listing of their files."""
        found = np.zeros((layout.row_panels, layout.column_panels), dtype=bool)
        for name in paths.list_files(self._folder):
            if tile := _tile_of(name, layout):
                found[tile] = True
        return found & layout.wanted()

    def has(self, tile: tuple[int, int]) -> bool:
        """Return whether one tile exists."""
        return paths.is_file(self._folder / str(tile[0]) / str(tile[1]))

    def changed(self, layout: Layout, known: Inventory) -> NDArray[np.bool_]:
        """Return which tiles exist and are new or not as they were at the time of an inventory."""
        found = np.zeros((layout.row_panels, layout.column_panels), dtype=bool)
        for indices in known.find_changed(self.group / self.array_name).values():
            for index in indices:
                if tile := _tile_of("/".join(map(str, index[1:])), layout):
                    found[tile] = True
        return found & layout.wanted()

    def remove_damaged(self, tiles: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Read tiles that exist, delete those that are damaged or others, and return them."""
        damaged = [tile for tile in tiles if chunks.find_fault(self._array, (0, *tile))]
        for tile in damaged:
            chunks.delete_chunk(self.group, self.array_name, (0, *tile))
        return damaged

    @property
    def _folder(self) -> RunPath:
        return self.group / self.array_name / "c" / "0"


class TileStore(TileFiles):
    """The solved tiles of one layer."""

    def create(self, layout: Layout, dtype: str, run: str) -> None:
        """Create the array, labelled with the id `run`, or check that an existing one fits."""
        groups.create_group(self.root, self.layer)
        arrays.create_array(
            self.group,
            ARRAY,
            dimensions={
                "quantity": (len(QUANTITIES), len(QUANTITIES)),
                DIMENSIONS[0]: (layout.n_rows, layout.tile_size),
                DIMENSIONS[1]: (layout.n_columns, layout.tile_size),
            },
            dtype=dtype,
            origin=self.origin(run, ARRAY),
            attributes={"quantities": list(QUANTITIES)},
            compressors=arrays.FAST,
        )

    def write(
        self,
        tile: tuple[int, int],
        matched: NDArray[np.float64],
        identity: NDArray[np.float64],
        upper_bound: NDArray[np.float64],
    ) -> None:
        """Write one tile: three (R, K) arrays.

        Raises
        ------
        InputError
            If a number is too large for the stored type.
        OSError
            As the file system raises it.
        """
        chunks.write_chunk(self._array, (0, *tile), encode(matched, identity, upper_bound, self.dtype))

    def read(self, tile: tuple[int, int]) -> NDArray[np.floating[Any]]:
        """Return (3, R, K): matched, identity and gap of one tile, in the stored type.

        Raises StorageError if it is damaged or missing.
        """
        return chunks.read_chunk(self._array, (0, *tile))

    def finish(
        self, coordinates: Mapping[str, tuple[str, Values]], attributes: Mapping[str, Any], run: str
    ) -> None:
        """As `LabelledGroup.finish`, with the names of the quantities as a coordinate."""
        super().finish({"quantity": ("quantity", list(QUANTITIES)), **coordinates}, attributes, run)

    def is_done(self, layout: Layout) -> bool:
        """Return whether the layer has been finished and every tile and coordinate is there: listed, not read."""
        return self.is_complete() and int(self.present(layout).sum()) == layout.n_tiles

    def _missing_chunks(self, name: str, array: zarr.Array[Any]) -> Iterator[RunPath]:
        return iter(()) if name == ARRAY else super()._missing_chunks(name, array)


def _tile_of(name: str, layout: Layout) -> tuple[int, int] | None:
    """Return the tile that a file holds, by its path in the folder of all; None for other files."""
    row, _, column = name.partition("/")
    if not (row.isdecimal() and column.isdecimal()):
        return None
    tile = int(row), int(column)
    return tile if tile[0] < layout.row_panels and tile[1] < layout.column_panels else None


def choose_dtype(exact: bool, norms_i: NDArray[np.float64], norms_j: NDArray[np.float64]) -> str:
    """Return the type to store a layer's tiles in, by the squared norms of the images of rows and columns.

    `float32`, or `float64` if the matcher is `exact`, so that it certifies more closely than float32 resolves, and for
    norms whose products float32 does not hold well.
    """
    lengths = [np.sqrt(norms[norms > 0]) for norms in (norms_i, norms_j)]
    if exact or not all(each.size for each in lengths):
        return "float64"
    smallest, largest = (lengths[0].min() * lengths[1].min(), lengths[0].max() * lengths[1].max())
    return "float32" if smallest >= SMALLEST_PRODUCT and largest <= LARGEST_PRODUCT else "float64"


def encode(
    matched: NDArray[np.float64],
    identity: NDArray[np.float64],
    upper_bound: NDArray[np.float64],
    dtype: np.dtype[Any],
) -> NDArray[np.floating[Any]]:
    """Return (3, R, K), or (3, n) of a list of pairs, as stored: `matched + gap` in float64 is at least `upper_bound`.

    Raises InputError if a number is too large for the type.
    """
    if dtype == np.float64:
        return np.stack([matched, identity, upper_bound - matched])
    stored = np.empty((len(QUANTITIES), *matched.shape), np.float32)
    is_finite = True
    step = max(1, PAIRS_AT_ONCE // max(1, math.prod(matched.shape[1:])))
    for start in range(0, len(matched), step):
        rows = slice(start, start + step)
        part = stored[:, rows]
        with np.errstate(over="ignore"):
            part[0], part[1] = matched[rows], identity[rows]
            part[2] = _round_up(upper_bound[rows] - part[0])
        is_finite = is_finite and not np.isinf(part).any()
    if not is_finite:
        raise InputError(
            f"inner products up to {np.nanmax(np.abs([matched, identity, upper_bound])):.1e} are too large for "
            "float32: scale the features down"
        )
    return stored


def _round_up(gap: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the next number with `GAP_BITS` bits of mantissa above each positive number; 0 for others, NaN for NaN.

    Above even those that have so few bits, since a gap was rounded when it was subtracted.
    """
    unit = np.int64(1 << (52 - GAP_BITS))
    # Positive numbers are in the order of their bits, read as whole numbers. Those for which float32 has fewer bits are
    # taken for the least of the others; those above all numbers become infinity.
    rounded = np.maximum(gap, np.finfo(np.float32).tiny)
    np.minimum(rounded, np.finfo(np.float64).max, out=rounded)
    bits = rounded.view(np.int64)
    bits += unit
    bits &= -unit
    others = ~(gap > 0)
    if others.any():
        rounded[others] = np.maximum(gap[others], 0.0)
    return rounded

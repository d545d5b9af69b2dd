"""Which pairs of images are solved together: panels, tiles, and how many files tiles make.

A *panel* is consecutive images that a worker loads and prepares together. A *tile* is the pairs of a row panel and a
column panel: one chunk of the tile store, which is one file, and the unit of resuming. Where a tile's panels do not fit
into a worker's memory, the worker solves the tile in parts (see `cut`) and still writes it at once.

Everything here is a pure function. The invariant, which the tests check: the tiles of a layout cover every pair exactly
once (of the upper triangle, with its diagonal, in a symmetric layout).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LARGEST_TILE = 512
"""Larger tiles make progress and resuming too coarse; only what `smallest_tile` requires is larger."""

LARGEST_GPU_TILE = 4096
"""The same on a GPU, which matches a hundred times as many pairs in a second."""

SMALLEST_TILE = 16
"""Smaller tiles are used only where larger ones would take too long."""

FEWEST_PANELS = 12
"""Minimum row and column panels, so that there are enough tiles to share; never by tiles below the smallest."""

MOST_TILES = 100_000
"""Tiles of a layer, each of which is a file; of more images than this, a layer has up to as many tiles as images."""

MOST_PANELS = 10_000
"""Panels of a side, and its feature chunks: a directory has an entry for each."""


class Tile(NamedTuple):
    """The pairs of row panel `row` and column panel `column` of one layer."""

    layer: str
    row: int
    column: int

    def __str__(self) -> str:
        return f"{self.layer}/{self.row}.{self.column}"


@dataclass(frozen=True, slots=True)
class Layout:
    """How an N x M matrix is cut into tiles."""

    n_rows: int
    n_columns: int
    """Number of images along the rows and the columns."""
    tile_size: int
    """Images of a row panel or column panel; the last panel may have fewer."""
    symmetric: bool
    """Rows and columns are the same images: only tiles with `row <= column` are solved."""

    @classmethod
    def of_sides(cls, counts: Mapping[str, int], tile_size: int) -> Layout:
        """Return the layout of a run's matrices, see `matrix_shape`."""
        return cls(*matrix_shape(counts), tile_size, "queries" not in counts)

    @property
    def row_panels(self) -> int:
        """Number of row panels."""
        return -(-self.n_rows // self.tile_size)

    @property
    def column_panels(self) -> int:
        """Number of column panels."""
        return -(-self.n_columns // self.tile_size)

    def rows(self, panel: int) -> slice:
        """Return the image indices of a row panel."""
        return slice(panel * self.tile_size, panel * self.tile_size + self._height(panel))

    def columns(self, panel: int) -> slice:
        """Return the image indices of a column panel."""
        return slice(panel * self.tile_size, panel * self.tile_size + self._width(panel))

    @property
    def n_tiles(self) -> int:
        """Number of tiles to solve."""
        if self.symmetric:
            return self.row_panels * (self.row_panels + 1) // 2
        return self.row_panels * self.column_panels

    def tiles(self) -> Iterator[tuple[int, int]]:
        """Yield every tile to solve as (row panel, column panel), row by row."""
        for row in range(self.row_panels):
            for column in range(row if self.symmetric else 0, self.column_panels):
                yield row, column

    def n_pairs(self, row: int, column: int) -> int:
        """Return the number of pairs that a tile solves; the diagonal of a matrix needs no solving."""
        height = self._height(row)
        return (
            height * (height - 1) // 2 if self.symmetric and row == column else height * self._width(column)
        )

    def n_images(self, row: int, column: int) -> int:
        """Return the number of images of a tile's rows and columns; on the diagonal of a matrix, they are the same."""
        is_one_panel = self.symmetric and row == column
        return self._height(row) + (0 if is_one_panel else self._width(column))

    def wanted(self) -> NDArray[np.bool_]:
        """Return which tiles are to be solved, (row panels, column panels)."""
        grid = np.ones((self.row_panels, self.column_panels), dtype=bool)
        return np.triu(grid) if self.symmetric else grid

    def pairs(self) -> NDArray[np.int64]:
        """Return the number of pairs of every tile, (row panels, column panels); 0 where nothing is to be solved."""
        heights = np.array([self._height(row) for row in range(self.row_panels)], dtype=np.int64)
        widths = np.array([self._width(column) for column in range(self.column_panels)], dtype=np.int64)
        pairs = np.outer(heights, widths)
        if self.symmetric:
            pairs = np.triu(pairs, 1)
            np.fill_diagonal(pairs, heights * (heights - 1) // 2)
        return pairs

    @property
    def total_pairs(self) -> int:
        """Return the number of pairs that the whole matrix solves."""
        if self.symmetric:
            return self.n_rows * (self.n_rows - 1) // 2
        return self.n_rows * self.n_columns

    @property
    def total_images(self) -> int:
        """Return the sum of `n_images` over all tiles."""
        if self.symmetric:
            return self.n_rows * self.row_panels
        return self.n_rows * self.column_panels + self.n_columns * self.row_panels

    def _height(self, row: int) -> int:
        return min(self.tile_size, self.n_rows - row * self.tile_size)

    def _width(self, column: int) -> int:
        return min(self.tile_size, self.n_columns - column * self.tile_size)


def matrix_shape(counts: Mapping[str, int]) -> tuple[int, int]:
    """Return the rows and columns for this many `images`, or for `queries` (rows) against them, if there are any."""
    return counts.get("queries", counts["images"]), counts["images"]


def smallest_tile(n_rows: int, n_columns: int, *, symmetric: bool) -> int:
    """Return the smallest tile size with which a layer stays within `MOST_TILES` and `MOST_PANELS`, in images.

    >>> [smallest_tile(n, n, symmetric=True) for n in (400, 10_000, 100_000, 1_000_000)]
    [1, 23, 225, 708]
    """
    longest = max(n_rows, n_columns)
    most = max(MOST_TILES, longest)
    low, high = 1, max(longest, 1)
    while low < high:
        size = (low + high) // 2
        layout = Layout(n_rows, n_columns, size, symmetric)
        if layout.n_tiles <= most and max(layout.row_panels, layout.column_panels) <= MOST_PANELS:
            high = size
        else:
            low = size + 1
    return low


def choose_tile_size(
    n_images: int,
    smallest: int,
    largest: int,
    *,
    pair_seconds: float,
    tile_seconds: float,
    limit: int = LARGEST_TILE,
) -> int:
    """Choose the images along an edge of a tile: a power of two that fits time and leaves enough tiles to share.

    It is at most `largest` and `limit`, or the first power of two from `smallest` on.

    Parameters
    ----------
    n_images
        Images on the longer side of the matrix.
    smallest
        Minimum size, see `smallest_tile`, whatever else is said.
    largest
        Maximum size, for which there is memory.
    pair_seconds, tile_seconds
        Estimated seconds of one pair, and the longest that one tile should take.
    limit
        Maximum size, so that progress and resuming are not too coarse.
    """
    most = min(largest, limit, max(n_images // FEWEST_PANELS, SMALLEST_TILE))
    size = 1
    while size < smallest or (2 * size <= most and (2 * size) ** 2 * pair_seconds <= tile_seconds):
        size *= 2
    return size


def cut(part: slice, most: int) -> list[slice]:
    """Cut what is consecutive into slices of `most`; the last may have fewer.

    >>> cut(slice(100, 110), 4)
    [slice(100, 104, None), slice(104, 108, None), slice(108, 110, None)]
    """
    return [slice(start, min(start + most, part.stop)) for start in range(part.start, part.stop, most)]

"""Which pairs of images are solved together: panels, tiles, and blocks of tiles.

A *panel* is the consecutive images along one edge of a tile, which a worker loads and prepares together. A *tile* is
the pairs of a row panel and a column panel, one chunk of the tile store and the unit of resuming. A *block* is the
tiles that one task solves, so that panels are loaded once for many tiles.

Everything here is a pure function. The invariants, which the tests check: the tiles of a layout cover every
pair exactly once (of the upper triangle, with its diagonal, in a symmetric layout), and the blocks
of a plan hold every wanted tile exactly once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from semrsm_dist.errors import ConfigError

LARGEST_TILE = 256
"""Larger tiles make progress and resuming too coarse."""

SMALLEST_TILE = 16
"""Smaller tiles are used only where larger ones would take too long or too much memory."""

FEWEST_PANELS = 12
"""Minimum row and column panels, so that there are enough tiles to share; never by tiles below the smallest."""


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """The pairs of row panel `row` and column panel `column` of one layer."""

    layer: str
    row: int
    column: int

    def __str__(self) -> str:
        return f"{self.layer}/{self.row}.{self.column}"


@dataclass(frozen=True, slots=True)
class Layout:
    """How an N x M matrix is cut into tiles.

    Parameters
    ----------
    n_rows, n_columns
        Number of images along the rows and the columns.
    tile_size
        Images of a row panel or column panel; the last panel may have fewer.
    symmetric
        Rows and columns are the same images: only tiles with `row <= column` are solved.
    """

    n_rows: int
    n_columns: int
    tile_size: int
    symmetric: bool

    @classmethod
    def of_sides(cls, counts: Mapping[str, int], tile_size: int) -> Layout:
        """Return the layout for this many `images`, or for `queries` (rows) against them, if there are any."""
        return cls(
            counts.get("queries", counts["images"]), counts["images"], tile_size, "queries" not in counts
        )

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

    def holds(self, row: int, column: int) -> bool:
        """Return whether a tile is one of those to solve."""
        first = row if self.symmetric else 0
        return 0 <= row < self.row_panels and first <= column < self.column_panels

    @property
    def total_pairs(self) -> int:
        """Return the number of pairs that the whole matrix solves."""
        if self.symmetric:
            return self.n_rows * (self.n_rows - 1) // 2
        return self.n_rows * self.n_columns

    def _height(self, row: int) -> int:
        return min(self.tile_size, self.n_rows - row * self.tile_size)

    def _width(self, column: int) -> int:
        return min(self.tile_size, self.n_columns - column * self.tile_size)


def choose_tile_size(
    n_images: int, image_bytes: int, budget: int, *, pair_seconds: float, task_seconds: float
) -> int:
    """Choose the images of a panel: a power of two that fits memory and time and leaves enough tiles.

    Parameters
    ----------
    n_images
        Images on the longer side of the matrix.
    image_bytes
        Memory that one image of a loaded panel takes, in bytes.
    budget
        Memory that one worker may use for panels, in bytes. Two panels must fit: a row and a column.
    pair_seconds, task_seconds
        Estimated seconds of one pair, and the longest that one tile should take.

    Returns
    -------
    int
        Between 1 and `LARGEST_TILE`.

    Raises
    ------
    ConfigError
        If not even two single images fit.
    """
    missing = 2 * image_bytes - budget
    if missing > 0:
        raise ConfigError(
            f"matching.worker_memory leaves {max(budget, 0) / 2**20:.1f} MiB for features, but a pair of images takes "
            f"{2 * image_bytes / 2**20:.1f} MiB; no pair can be matched: raise matching.worker_memory by at least "
            f"{-(-missing // 2**20)} MiB, or choose a layer with fewer tokens or channels"
        )
    size = 1

    def fits(size: int) -> bool:
        return (
            size <= LARGEST_TILE
            and 2 * size * image_bytes <= budget
            and size <= max(n_images // FEWEST_PANELS, SMALLEST_TILE)
            and size * size * pair_seconds <= task_seconds
        )

    while fits(2 * size):
        size *= 2
    return size


def plan_blocks(
    layout: Layout, wanted: Collection[tuple[int, int]], block_size: int
) -> list[list[tuple[int, int]]]:
    """Group tiles into square blocks of up to `block_size` x `block_size` tiles.

    Parameters
    ----------
    layout
        The layout that the tiles belong to.
    wanted
        The tiles still to solve: a subset of `layout.tiles()`.
    block_size
        Row panels that a task holds in memory at once.

    Returns
    -------
    list of list
        Every wanted tile in exactly one block. Within a block the tiles are ordered by column, so that
        a worker that holds the block's row panels loads each column panel once.
    """
    strangers = [tile for tile in wanted if not layout.holds(*tile)]
    if strangers:
        raise ValueError(f"tiles {sorted(strangers)[:3]} are not part of the layout")

    def block(tile: tuple[int, int]) -> tuple[int, int]:
        return tile[0] // block_size, tile[1] // block_size

    ordered = sorted(wanted, key=block)
    return [sorted(tiles, key=lambda tile: (tile[1], tile[0])) for _, tiles in groupby(ordered, key=block)]


Item = TypeVar("Item")


def split_tail(blocks: Sequence[list[Item]], workers: int) -> list[list[Item]]:
    """Split the smallest blocks into single tiles, so that all workers finish at about the same time.

    Parameters
    ----------
    blocks
        Lists of tiles in the order in which they will run, largest first.
    workers
        Number of workers that share them. As many blocks are split as there are workers.

    Returns
    -------
    list of list
        The same tiles in the same order: whole blocks first, single tiles at the end.
    """
    head = len(blocks) - min(workers, len(blocks))
    tail = [[tile] for block in blocks[head:] for tile in block]
    return [*blocks[:head], *tail]

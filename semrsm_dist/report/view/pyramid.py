"""Maps of any size as a pyramid: a cell of level k is the mean of 2**k x 2**k pairs, and 256 x 256 cells are a tile.

All of it is in an order of the images. Sums take parts of the matrices as they come, so a pyramid of any order is
made by reading each chunk of the store once, and what is missing meanwhile is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.plot.orders import Indices
from semrsm_dist.report.maps import Values
from semrsm_dist.report.page_data import round_up
from semrsm_dist.results.matrices import Places, compact

TILE = 256
"""Cells along an edge of a tile."""

PLANES = ("spatial", "semantic", "difference", "gap")
"""What a tile has of each cell: means of the similarities and of their difference, and the largest gap."""


class Tile(NamedTuple):
    """A tile by its level and place."""

    level: int
    row: int
    column: int


@dataclass(frozen=True)
class Shape:
    """The sizes of a pyramid, by the numbers of images along the edges of its maps.

    A map that is much longer one way than the other is made shorter that way first: its short edge keeps its images
    while they are fewer than the cells of the long one.
    """

    n_rows: int
    n_columns: int

    @property
    def top(self) -> int:
        """The level that is one tile."""
        return max(0, _bits(max(self.n_rows, self.n_columns)) - _bits(TILE))

    def shifts(self, level: int) -> tuple[int, int]:
        """Return how often the images along each edge are halved: a cell of a level has 2**shift of them."""
        longest = _bits(max(self.n_rows, self.n_columns))
        row, column = (max(0, level - longest + _bits(length)) for length in (self.n_rows, self.n_columns))
        return row, column

    def cells(self, level: int) -> tuple[int, int]:
        """Return the number of rows and columns of a level."""
        row, column = self.shifts(level)
        return -(-self.n_rows >> row), -(-self.n_columns >> column)

    def window(self, tile: Tile) -> Window:
        """Return the cells of a tile; raises IndexError if there is no such tile."""
        if 0 <= tile.level <= self.top and min(tile.row, tile.column) >= 0:
            rows, columns = (
                range(at * TILE, min((at + 1) * TILE, length))
                for at, length in zip((tile.row, tile.column), self.cells(tile.level), strict=True)
            )
            if rows and columns:
                return Window(self, tile.level, rows, columns)
        raise IndexError(tile)

    def whole(self, level: int) -> Window:
        """Return all cells of a level."""
        rows, columns = map(range, self.cells(level))
        return Window(self, level, rows, columns)


def _bits(length: int) -> int:
    """Return the smallest power of two that is not below a length, as its exponent."""
    return (max(length, 1) - 1).bit_length()


@dataclass(frozen=True)
class Window:
    """Cells of a level that follow each other, from where a tile begins."""

    pyramid: Shape
    level: int
    rows: range
    columns: range

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        return len(self.rows), len(self.columns)

    @property
    def halved(self) -> tuple[int, int]:
        """By how much each edge is divided on the way to the next level: 1 or 2."""
        here, above = self.pyramid.shifts(self.level), self.pyramid.shifts(self.level + 1)
        return 1 << (above[0] - here[0]), 1 << (above[1] - here[1])

    def coarser(self) -> Window:
        """Return the cells of the next level that hold these."""
        rows, columns = (
            range(part.start // by, -(-part.stop // by))
            for part, by in zip((self.rows, self.columns), self.halved, strict=True)
        )
        return Window(self.pyramid, self.level + 1, rows, columns)

    def finer(self, level: int) -> Window:
        """Return the cells of a finer level that these hold."""
        halvings = zip(self.pyramid.shifts(self.level), self.pyramid.shifts(level), strict=True)
        rows, columns = (
            range(part.start << here - there, min(part.stop << here - there, length))
            for part, (here, there), length in zip(
                (self.rows, self.columns), halvings, self.pyramid.cells(level), strict=True
            )
        )
        return Window(self.pyramid, level, rows, columns)

    def tiles(self) -> Iterator[Tile]:
        """Yield the tiles that lie in this window."""
        for row in range(self.rows.start // TILE, -(-self.rows.stop // TILE)):
            for column in range(self.columns.start // TILE, -(-self.columns.stop // TILE)):
                yield Tile(self.level, row, column)


class Sums:
    """Sums over the cells of a window, to be filled with parts of the matrices in any order; NaN counts as nothing.

    Parameters
    ----------
    window
        The cells.
    places
        The place of each image of the rows, and of the columns, in the order of the maps.
    folded
        Whether each pair is added one way only, and counts both ways: for windows of a symmetric matrix whose rows are
        their columns. What is added both ways, then, has half the weight.
    """

    def __init__(self, window: Window, places: tuple[Indices, Indices], *, folded: bool = False) -> None:
        self.window, self.folded = window, folded
        self._places = places
        self._shifts = window.pyramid.shifts(window.level)
        self._groups: dict[tuple[int, bytes], _Group] = {}
        # Of pairs of which both similarities are defined: their sums, and the number of pairs.
        self._both = np.zeros((3, *window.shape))
        # The sum and number of those of which only one is, for each of the two; there are none in most runs.
        self._alone: NDArray[np.float64] | None = None
        self._gaps = np.full(window.shape, -np.inf, np.float32)

    def images(self, axis: int) -> Indices:
        """Return the images whose cells are in the window, of rows (0) or columns (1)."""
        return np.flatnonzero(_contains(self._cells(axis, slice(None)), self._part(axis)))

    def total(
        self, rows: Indices, columns: Indices, derive: Callable[[Places, Places], Values], weight: float = 1.0
    ) -> Totals | None:
        """Return what the pairs of some images, each of this weight, add; None if none is in the window.

        `derive` returns the values of some of the pairs, by the places of their images among `rows` and `columns`. The
        sums stay as they are.
        """
        groups = [self._group(axis, images) for axis, images in enumerate((rows, columns))]
        if not all(group.cells.size for group in groups):
            return None
        values = derive(*(group.order for group in groups))
        largest = np.where(np.isfinite(values.gap), values.gap, -np.inf)

        def total(matrix: NDArray[Any], join: np.ufunc = np.add) -> NDArray[Any]:
            for axis, group in ((1, groups[1]), (0, groups[0])):
                if group.cells.size < matrix.shape[axis]:
                    matrix = join.reduceat(matrix, group.starts, axis=axis)
            return matrix

        similarities = values.spatial, values.semantic
        known = [np.isfinite(matrix) for matrix in similarities]
        is_both = known[0] & known[1]
        alone = None
        if is_both.all():
            both = [*map(total, similarities), np.outer(groups[0].sizes, groups[1].sizes)]
        else:
            both = [total(np.where(is_both, matrix, 0.0)) for matrix in similarities]
            both.append(total(is_both.astype(np.float64)))
            only = [is_known & ~is_both for is_known in known]
            if any(is_alone.any() for is_alone in only):
                alone = weight * np.array(
                    [
                        [total(np.where(is_alone, matrix, 0.0)), total(is_alone.astype(np.float64))]
                        for matrix, is_alone in zip(similarities, only, strict=True)
                    ]
                )
        cells = _cross(*(group.cells for group in groups))
        return Totals(cells, [weight * part for part in both], alone, round_up(total(largest, np.maximum)))

    def add(self, totals: Totals) -> None:
        """Add what `total` returned."""
        cells = totals.cells
        for sums, part in zip(self._both, totals.both, strict=True):
            sums[cells] += part
        if totals.alone is not None:
            if self._alone is None:
                self._alone = np.zeros((2, 2, *self.window.shape))
            for place, number in np.ndindex(2, 2):
                self._alone[place, number][cells] += totals.alone[place, number]
        self._gaps[cells] = np.maximum(self._gaps[cells], totals.gap)

    def part(self, window: Window) -> Sums:
        """Return the sums of some of the cells as they are now."""
        rows, columns = (
            slice(part.start - whole.start, part.stop - whole.start)
            for part, whole in zip(
                (window.rows, window.columns), (self.window.rows, self.window.columns), strict=True
            )
        )

        def cut(sums: NDArray[Any], join: np.ufunc) -> NDArray[Any]:
            here = sums[..., rows, columns]
            both: NDArray[Any] = (
                join(here, np.swapaxes(sums[..., columns, rows], -1, -2)) if self.folded else here
            )
            return both.copy()

        found = Sums(window, self._places)
        found._both = cut(self._both, np.add)
        found._alone = None if self._alone is None else cut(self._alone, np.add)
        found._gaps = cut(self._gaps, np.maximum)
        return found

    def coarser(self) -> Sums:
        """Return the sums of the next level."""
        coarse = Sums(self.window.coarser(), self._places, folded=self.folded)
        coarse._both = self._join(self._both, np.add)
        coarse._alone = None if self._alone is None else self._join(self._alone, np.add)
        coarse._gaps = self._join(self._gaps, np.maximum)
        return coarse

    def planes(self, *, filled: bool = False) -> NDArray[np.float32]:
        """Return the `PLANES`, (4, R, C); NaN where no pair is defined.

        Filled, a cell without any pair shows what is known of the larger cells that it lies in.
        """
        spatial, semantic, counts = self._unfold(self._both, np.add)
        alone = np.zeros((2, 2, 1, 1)) if self._alone is None else self._unfold(self._alone, np.add)
        sums = spatial + alone[0, 0], semantic + alone[1, 0], semantic - spatial
        numbers = counts + alone[0, 1], counts + alone[1, 1], counts
        found = np.full((len(PLANES), *self.window.shape), np.nan, np.float32)
        for plane, total, number in zip(found, sums, numbers, strict=False):
            np.divide(total, number, out=plane, where=number > 0, casting="same_kind")
        gaps = self._unfold(self._gaps, np.maximum)
        found[-1] = np.where(np.isfinite(gaps), gaps, np.nan)
        if filled and max(self.window.shape) > 1 and np.isnan(found).any():
            (rows, columns), (height, width) = self.window.halved, self.window.shape
            wide = self.coarser().planes(filled=True).repeat(rows, axis=1).repeat(columns, axis=2)
            found = np.where(np.isnan(found), wide[:, :height, :width], found)
        return found

    def _unfold(self, sums: NDArray[Any], join: np.ufunc) -> NDArray[Any]:
        """Return what pairs have both ways."""
        both: NDArray[Any] = join(sums, np.swapaxes(sums, -1, -2)) if self.folded else sums
        return both

    def _join(self, sums: NDArray[Any], join: np.ufunc) -> NDArray[Any]:
        """Return what the cells of the next level have together, (..., R, C)."""
        for axis, by in zip((-2, -1), self.window.halved, strict=True):
            if by == 2:
                turned = np.moveaxis(sums, axis, 0)
                joined = turned[0::2].copy()
                last = len(turned) // 2
                join(joined[:last], turned[1::2], out=joined[:last])
                sums = np.moveaxis(joined, 0, axis)
        return sums

    def _part(self, axis: int) -> range:
        return (self.window.rows, self.window.columns)[axis]

    def _cells(self, axis: int, images: Indices | slice) -> Indices:
        return self._places[axis][images] >> self._shifts[axis]

    def _group(self, axis: int, images: Indices) -> _Group:
        """Return the cells of some images, which are sorted once: they come again with each of the others."""
        key = axis, images.tobytes()
        if key not in self._groups:
            part, cells = self._part(axis), self._cells(axis, images)
            inside = np.flatnonzero(_contains(cells, part))
            order = inside[np.argsort(cells[inside], kind="stable")]
            found, starts = np.unique(cells[order], return_index=True)
            sizes = np.diff(starts, append=order.size)
            self._groups[key] = _Group(compact(order), starts, found - part.start, sizes)
        return self._groups[key]


class _Group(NamedTuple):
    """Which of some images to take, in the order of their cells; where each cell begins, which it is, and its size."""

    order: Places
    starts: Indices
    cells: Indices
    sizes: Indices


class Totals(NamedTuple):
    """What some pairs add to `Sums`: the cells, sums and numbers as there, and the largest gaps."""

    cells: tuple[Any, Any]
    both: list[NDArray[Any]]
    alone: NDArray[np.float64] | None
    gap: NDArray[np.float32]


def cut(planes: NDArray[np.float32], window: Window, tile: Tile) -> NDArray[np.float32]:
    """Return the part of a window's planes that is a tile."""
    top, left = tile.row * TILE - window.rows.start, tile.column * TILE - window.columns.start
    return planes[:, top : top + TILE, left : left + TILE]


def places_of(order: Indices) -> Indices:
    """Return the place of each image in an order."""
    places = np.empty_like(order)
    places[order] = np.arange(order.size)
    return places


def _cross(rows: Indices, columns: Indices) -> tuple[Any, Any]:
    """Return what indexes all cells of some rows and columns."""
    down, across = compact(rows), compact(columns)
    if isinstance(down, slice) or isinstance(across, slice):
        return down, across
    return rows[:, None], columns


def _contains(cells: Indices, part: range) -> NDArray[np.bool_]:
    return (cells >= part.start) & (cells < part.stop)

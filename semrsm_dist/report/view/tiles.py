"""The tiles of a map in one order: what fills them, and those that are kept, made at once or being filled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from semrsm_dist.plot.orders import Indices
from semrsm_dist.report.maps import Orders, kernels_of
from semrsm_dist.report.page_data import Order, Tiles
from semrsm_dist.report.view.cache import Cache
from semrsm_dist.report.view.filling import Filler, Filling, Source
from semrsm_dist.report.view.pyramid import TILE, Shape, Sums, Tile, Window, cut, places_of
from semrsm_dist.results.run import Run

VERSION = 1
"""Of what is cached: of another version, it is made again."""

OVERVIEW = 2048
"""Cells along an edge, at most, of the levels that are made together: they take one pass over the store."""


def shape_of(run: Run, layer: str) -> Shape:
    """Return the sizes of the pyramid of a layer."""
    layout = run.layout(layer)
    return Shape(layout.n_rows, layout.n_columns)


def describe_tiles(run: Run, layer: str, orders: Orders | list[Order], finest: int = 0) -> Tiles:
    """Return what the page knows of a layer's tiles before it asks for them."""
    top = shape_of(run, layer).top
    kernels, note = kernels_of(run, run.matrices(layer))
    return Tiles(size=TILE, finest=finest, top=top, kernels=kernels, orders=list(orders), note=note)


class MapTiles:
    """The tiles of a layer's maps, in one kernel and one order.

    In a symmetric run, the tiles below the diagonal are the mirror images of those above it, and are not made. `order`
    holds the images of rows and of columns.
    """

    def __init__(self, source: Source, order: tuple[Indices, Indices]) -> None:
        self.shape = Shape(source.layout.n_rows, source.layout.n_columns)
        self._source = source
        self.is_symmetric = source.layout.symmetric
        self._places = places_of(order[0]), places_of(order[1])
        levels = range(self.shape.top + 1)
        self.overview = next(level for level in levels if max(self.shape.cells(level)) <= OVERVIEW)
        """The finest of the levels that are made together."""

    def window(self, tile: Tile) -> Window:
        """Return the cells of a tile; raises IndexError if there is no such tile, or it is below the diagonal."""
        if self._is_mirrored(tile):
            raise IndexError(tile)
        return self.shape.window(tile)

    def fill(self, window: Window, keep: Callable[[Tile, bytes], None]) -> Filling:
        """Return what fills a window, and then gives its tiles to `keep`; of a whole level, those above it, too.

        A tile is its `PLANES` as float32, row by row.
        """

        def finish(sums: Sums) -> None:
            planes = sums.planes()
            for tile in sums.window.tiles():
                if not self._is_mirrored(tile):
                    keep(tile, cut(planes, sums.window, tile).tobytes())
            level = sums.window.level
            if level < self.shape.top and sums.window == self.shape.whole(level):
                finish(sums.coarser())

        folded = self.is_symmetric and window.rows == window.columns
        return Filling(self._source, Sums(window, self._places, folded=folded), finish)

    def _is_mirrored(self, tile: Tile) -> bool:
        return self.is_symmetric and tile.row > tile.column


class CachedTiles:
    """Tiles that are made when they are asked for, and kept.

    Parameters
    ----------
    maps
        What makes them.
    order
        As in `MapTiles`.
    identity
        Of all that the numbers depend on, except the order.
    cache, filler
        Where tiles are kept, and what fills those that need many chunks.
    """

    def __init__(
        self, maps: MapTiles, order: tuple[Indices, Indices], identity: str, cache: Cache, filler: Filler
    ) -> None:
        self._maps, self._cache, self._filler = maps, cache, filler
        facts = hashlib.sha256(f"{VERSION} {identity}".encode())
        for part in order:
            facts.update(part.astype("<u4").tobytes())
        self._folder = f"tiles-{facts.hexdigest()[:24]}"

    def read(self, tile: Tile) -> tuple[bytes, float]:
        """Return a tile, and the share of its pairs that it is of.

        Raises
        ------
        IndexError
            As `MapTiles.window`.
        StorageError
            If a chunk is damaged or missing.
        """
        window = self._maps.window(tile)
        kept = self._cache.read(self._name(tile))
        if kept is not None:
            return kept, 1.0
        if tile.level >= self._maps.overview:
            window = self._maps.shape.whole(self._maps.overview)
        filling = self._fill(window, tile)
        if filling is None:
            return self.read(tile)
        self._filler.wait_for(filling)
        if filling.error is not None:
            raise filling.error
        planes, share = filling.look(tile)
        return planes.tobytes(), share

    def _fill(self, window: Window, tile: Tile) -> Filling | None:
        """Return what fills a window, begun or done; None if the tile has been kept meanwhile."""
        name = f"{self._folder}/{window.level}-{window.rows.start}-{window.columns.start}"
        filling = self._filler.want(name)
        if filling is not None or self._cache.read(self._name(tile)) is not None:
            return filling
        return self._filler.start(
            name,
            self._maps.fill(window, lambda tile, content: self._cache.write(self._name(tile), content)),
        )

    def _name(self, tile: Tile) -> str:
        return f"{self._folder}/{tile.level}-{tile.row}-{tile.column}"

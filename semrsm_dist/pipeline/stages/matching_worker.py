"""The worker of matching: it holds prepared panels, solves tiles and writes them."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import cast

from semrsm_dist.engine.protocol import Receipt
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.matching.panel import Panel
from semrsm_dist.pipeline.faults import attempt_each
from semrsm_dist.plan.tiling import Layout, Tile
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.tiles import TileStore

_Key = tuple[str, str, int]
"""Side, layer and number of a panel."""


class _Held(threading.local):
    """What a thread of a worker keeps across tiles and tasks: prepared panels, and the stores that it has opened."""

    def __init__(self) -> None:
        self.panels: dict[_Key, Panel] = {}
        self.features = cache(FeatureStore)
        self.blocks = cache(TileStore)

    def __reduce__(self) -> tuple[type[_Held], tuple[()]]:
        return _Held, ()  # not sent along with a worker


@dataclass(frozen=True)
class MatchingWorker:
    """Solves tiles: loads missing panels, matches, writes the tile, and yields a receipt.

    Parameters
    ----------
    run
        The run directory.
    row_side
        `images` in a symmetric run, `queries` in a rectangular one. Columns are always `images`.
    layouts
        The layout of each layer.
    matcher
        The matcher.
    panel_bytes
        Memory of a prepared panel of each layer.
    room
        Memory for panels in bytes. The two of a tile are held even if they take more.
    """

    run: Path
    row_side: str
    layouts: Mapping[str, Layout]
    matcher: Matcher
    panel_bytes: Mapping[str, int]
    room: int
    _held: _Held = field(default_factory=_Held, init=False, repr=False, compare=False)

    def __call__(self, units: tuple[Hashable, ...]) -> Iterator[Receipt]:
        """Solve tiles, which should be ordered by column; yield a receipt for each."""
        tiles = cast("tuple[Tile, ...]", units)
        return attempt_each(tiles, lambda tile: self._solve(tiles[tiles.index(tile) :]), self.run)

    def _solve(self, tiles: Sequence[Tile]) -> Receipt:
        """Solve the first of the remaining tiles."""
        tile = tiles[0]
        started = time.perf_counter()
        rows, columns = self._load(tiles)
        loaded = time.perf_counter()
        layout = self.layouts[tile.layer]
        result = self.matcher.solve_tile(
            rows, columns, triangular=layout.symmetric and tile.row == tile.column
        )
        solved = time.perf_counter()
        gap = result.upper_bound - result.matched
        blocks = self._held.blocks(RunDirectory(self.run).tiles, tile.layer)
        blocks.write((tile.row, tile.column), result.matched, result.identity, gap)
        counts = {
            "pairs": layout.n_pairs(tile.row, tile.column),
            "tiles": 1,
            "load_seconds": loaded - started,
            "product_seconds": result.products,
            "match_seconds": result.solving,
            "solve_seconds": solved - loaded - result.products - result.solving,
            "write_seconds": time.perf_counter() - solved,
        }
        return Receipt(tile, counts=counts)

    def _load(self, tiles: Sequence[Tile]) -> list[Panel]:
        """Return the panels of the first tile, making room by dropping those that are needed last."""
        panels = self._held.panels
        needed = self._keys(tiles[0])
        for key in needed:
            if key not in panels:
                self._make_room(key, needed, tiles)
                panels[key] = self._read(*key)
        return [panels[key] for key in needed]

    def _make_room(self, key: _Key, needed: Sequence[_Key], tiles: Sequence[Tile]) -> None:
        panels = self._held.panels
        wanted: dict[_Key, int] = {}
        for place, tile in enumerate(tiles):
            for coming in self._keys(tile):
                wanted.setdefault(coming, place)
        # Panels that no tile needs go first, then those needed last; those of this tile stay.
        leaving = sorted(panels.keys() - set(needed), key=lambda held: (wanted.get(held, len(tiles)), held))
        taken = sum(self.panel_bytes[layer] for _, layer, _ in [*panels, key])
        while leaving and taken > self.room:
            gone = leaving.pop()
            del panels[gone]
            taken -= self.panel_bytes[gone[1]]

    def _keys(self, tile: Tile) -> tuple[_Key, _Key]:
        return (self.row_side, tile.layer, tile.row), ("images", tile.layer, tile.column)

    def _read(self, side: str, layer: str, panel: int) -> Panel:
        layout = self.layouts[layer]
        images = layout.columns(panel) if side == "images" else layout.rows(panel)
        store = self._held.features(RunDirectory(self.run).features, side, layer)
        return self.matcher.prepare(store.read(images), store.read_token_counts(images))

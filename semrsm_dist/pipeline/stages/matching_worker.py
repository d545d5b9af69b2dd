"""The workers of matching: they hold prepared panels, solve tiles and write them; and they check tiles."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain, islice, product
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.engine.protocol import Receipt, Worker
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.matching.result import TileResult
from semrsm_dist.pipeline.faults import attempt_each
from semrsm_dist.plan.tiling import Layout, Tile, cut
from semrsm_dist.store.candidates import CandidateStore
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.paths import RunPath
from semrsm_dist.store.record import RunRecord
from semrsm_dist.store.results import tile_files
from semrsm_dist.store.tiles import TileStore

LOOK_AHEAD = 1000
"""Parts of tiles among which the panel is sought that is needed last."""

UNSOLVED = TileResult(*np.empty((3, 0, 0)))
"""The result of a tile of which no part has been solved yet."""


class Key(NamedTuple):
    """A panel: consecutive images of a side."""

    side: str
    layer: str
    start: int
    stop: int


class Part(NamedTuple):
    """The part of a tile that two panels make."""

    rows: Key
    columns: Key


class PanelLimits(NamedTuple):
    """How large a prepared panel of a layer can be."""

    n_images: int
    n_bytes: int


class _Held(threading.local):
    """What a thread of a worker keeps across tiles and tasks: prepared panels, and the stores that it has opened."""

    def __init__(self) -> None:
        self.panels: dict[Key, Any] = {}
        self.features = cache(FeatureStore)
        self.tiles = cache(TileStore)
        self.candidates = cache(CandidateStore)
        self.directions: dict[str, NDArray[np.float64]] = {}  # of the sketches of each layer

    def __reduce__(self) -> tuple[type[_Held], tuple[()]]:
        return _Held, ()  # not sent along with a worker


@dataclass(frozen=True)
class MatchingWorker:
    """Solves tiles: loads missing panels, matches, writes the tile, and yields a receipt.

    A tile is written while the next one is solved. One whose panels do not fit into memory is solved in parts, and
    written when all are solved.
    """

    SECONDS: ClassVar = (
        "load_seconds",
        "product_seconds",
        "match_seconds",
        "solve_seconds",
        "write_seconds",
    )
    """The counts of a receipt that are seconds: together, what the tile took."""

    run: RunPath
    row_side: str
    """`images` in a symmetric run, `queries` in a rectangular one. Columns are always `images`."""
    layouts: Mapping[str, Layout]
    """The layout of each layer."""
    matcher: Matcher
    panel_limits: Mapping[str, PanelLimits]
    """The limits of each layer."""
    room: int
    """Memory for panels in bytes. The two that are being matched are held even if they take more."""
    _held: _Held = field(default_factory=_Held, init=False, repr=False, compare=False)

    def compile(self) -> None:
        """Compile everything that solving needs."""
        self.matcher.compile()

    def __call__(self, units: tuple[Hashable, ...]) -> Iterator[Receipt]:
        """Solve tiles, which should be ordered by column; yield a receipt for each that is written."""
        tiles = cast("tuple[Tile, ...]", units)
        with ThreadPoolExecutor(1, "semrsm-writer") as writer:
            coming = self._write_each(tiles, writer)
            yield from attempt_each(tiles, lambda _: next(coming).result(), self.run)

    def _write_each(self, tiles: Sequence[Tile], writer: ThreadPoolExecutor) -> Iterator[Future[Receipt]]:
        """Yield what comes of each tile; writing it begins when it is solved, and is waited for once the next is."""
        writing: list[Future[Receipt]] = []
        for place in range(len(tiles)):
            try:
                writing.append(writer.submit(self._solve(tiles[place:])))
            except Exception as error:  # noqa: BLE001 - raised where the tile's receipt is expected
                writing.append(Future())
                writing[-1].set_exception(error)
                yield from writing  # nothing more is solved before it is known
                writing.clear()
            if len(writing) > 1:
                yield writing.pop(0)
        yield from writing

    def _solve(self, tiles: Sequence[Tile]) -> Callable[[], Receipt]:
        """Solve the first of the remaining tiles; return what writes it."""
        tile, layout = tiles[0], self.layouts[tiles[0].layer]
        started = time.perf_counter()
        whole = UNSOLVED
        seconds = dict.fromkeys(self.SECONDS, 0.0)
        for number, part in enumerate(self._parts(tile)):
            before = time.perf_counter()
            panels = self._load(part, tiles, number)
            loaded = time.perf_counter()
            result = self.matcher.solve_tile(*panels, triangular=part.rows == part.columns)
            self.matcher.check_tile(result, *panels)
            del panels  # or they would stay while those of the next part are loaded
            whole = self._place(tile, part, result, whole)
            seconds["load_seconds"] += loaded - before
            seconds["product_seconds"] += result.products
            seconds["match_seconds"] += result.solving
        seconds["solve_seconds"] = time.perf_counter() - started - sum(seconds.values())
        # Opened in this thread, which keeps it: the writer's ends with the task.
        store = self._held.tiles(RunDirectory(self.run).tiles, tile.layer)
        counts = {"pairs": layout.n_pairs(tile.row, tile.column), "tiles": 1, **seconds}
        numbers = whole.matched, whole.identity, whole.upper_bound
        return partial(write_timed, tile, partial(store.write, (tile.row, tile.column), *numbers), counts)

    def _place(self, tile: Tile, part: Part, result: TileResult, whole: TileResult) -> TileResult:
        """Put the result of a part, and its mirror image if the tile is on the diagonal, into that of the tile.

        `whole` is what earlier parts have made of the tile, `UNSOLVED` for the first part.
        """
        layout = self.layouts[tile.layer]
        tile_rows, tile_columns = layout.rows(tile.row), layout.columns(tile.column)
        shape = (tile_rows.stop - tile_rows.start, tile_columns.stop - tile_columns.start)
        if result.matched.shape == shape:  # most tiles are solved at once
            return result
        if whole is UNSOLVED:
            whole = TileResult(np.empty(shape), np.empty(shape), np.empty(shape))
        rows = slice(part.rows.start - tile_rows.start, part.rows.stop - tile_rows.start)
        columns = slice(part.columns.start - tile_columns.start, part.columns.stop - tile_columns.start)
        for name in ("matched", "upper_bound", "identity"):
            values, block = getattr(whole, name), getattr(result, name)
            values[rows, columns] = block
            if layout.symmetric and tile.row == tile.column and part.rows != part.columns:
                values[columns, rows] = block.T
        return whole

    def _parts(self, tile: Tile) -> Iterator[Part]:
        """Yield the parts of a tile: bands of as many row panels as fit, each column by column."""
        layout, limits = self.layouts[tile.layer], self.panel_limits[tile.layer]
        rows = cut(layout.rows(tile.row), limits.n_images)
        columns = cut(layout.columns(tile.column), limits.n_images)
        height = max(1, self.room // max(limits.n_bytes, 1) - 1)
        for first in range(0, len(rows), height):
            for column, row in product(columns, rows[first : first + height]):
                if not (layout.symmetric and tile.row == tile.column and row.start > column.start):
                    yield Part(
                        Key(self.row_side, tile.layer, row.start, row.stop),
                        Key("images", tile.layer, column.start, column.stop),
                    )

    def _coming(self, tiles: Sequence[Tile], number: int) -> Iterator[Part]:
        """Yield the parts of the tiles from part `number` of the first tile on, some of them."""
        return islice(chain.from_iterable(map(self._parts, tiles)), number, number + LOOK_AHEAD)

    def _load(self, part: Part, tiles: Sequence[Tile], number: int) -> list[Any]:
        """Return the panels of part `number` of the first tile, making room by dropping those that are needed last."""
        panels = self._held.panels
        for key in part:
            if key not in panels:
                self._make_room(key, part, self._coming(tiles, number))
                panels[key] = self._read(key)
        return [panels[key] for key in part]

    def _make_room(self, key: Key, needed: Part, coming: Iterable[Part]) -> None:
        panels = self._held.panels
        taken = sum(self.panel_limits[held.layer].n_bytes for held in [*panels, key])
        if taken <= self.room:
            return
        wanted: dict[Key, int] = {}
        for place, part in enumerate(coming):
            for later in part:
                wanted.setdefault(later, place)
        # Panels that none of the coming parts needs go first, then those needed last; those of this part stay.
        leaving = sorted(panels.keys() - set(needed), key=lambda held: (wanted.get(held, LOOK_AHEAD), held))
        while leaving and taken > self.room:
            gone = leaving.pop()
            del panels[gone]
            taken -= self.panel_limits[gone.layer].n_bytes

    def _read(self, key: Key) -> Any:
        store = self._held.features(RunDirectory(self.run).features, key.side, key.layer)
        images = slice(key.start, key.stop)
        return self.matcher.prepare(store.read(images), store.read_token_counts(images))


def write_timed(tile: Tile, write: Callable[[], None], counts: Mapping[str, float]) -> Receipt:
    """Write a tile, and return its receipt, with what that took added to `counts`."""
    started = time.perf_counter()
    write()
    writing = counts["write_seconds"] + time.perf_counter() - started
    return Receipt(tile, counts={**counts, "write_seconds": writing})


@dataclass(frozen=True)
class ActorFactory:
    """Makes a worker of matching where it is called, once what it matches on is ready there."""

    worker: MatchingWorker

    def __call__(self) -> Worker:
        """Return the worker; raises ConfigError or WorkerLostError as `Matcher.start_worker` does."""
        self.worker.matcher.start_worker()
        return self.worker


@dataclass(frozen=True)
class TileChecker:
    """Reads tiles that are there and removes those that cannot be decoded: their receipts have a value."""

    run: RunPath
    record: RunRecord

    def __call__(self, units: tuple[Hashable, ...]) -> Iterator[Receipt]:
        """Check tiles; yield a receipt for each."""
        stores = cache(partial(tile_files, RunDirectory(self.run), self.record))

        def check(tile: Tile) -> Receipt:
            damaged = stores(tile.layer).remove_damaged([(tile.row, tile.column)])
            return Receipt(tile, counts={"tiles": 1}, value="damaged" if damaged else None)

        return attempt_each(cast("tuple[Tile, ...]", units), check, self.run)

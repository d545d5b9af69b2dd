"""A trial: a small run of its own, measured."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from semrsm_dist.config.schema import RunConfig
from semrsm_dist.engine.engines.local import LocalEngine, LocalPool
from semrsm_dist.engine.protocol import Receipt, Resources, Worker
from semrsm_dist.errors import StorageError
from semrsm_dist.pipeline.driver import run
from semrsm_dist.pipeline.stages.matching_worker import MatchingWorker
from semrsm_dist.plan.tiling import Layout, Tile
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.paths import RunPath, as_run_path, look_up_files
from semrsm_dist.store.record import Side


@dataclass(frozen=True)
class SearchTime:
    """What a search for neighbours took in a tile: for the bounds of all pairs, and to decide the others.

    These are `multiplied`, or their sketches, and `matched` completely.
    """

    bound_seconds: float
    decide_seconds: float
    multiplied: int
    matched: int


@dataclass(frozen=True)
class TileTime:
    """What a worker took for a tile: to load its panels, for all else, and, of that, to write it and to search it.

    `images` are those of its rows and columns, each once; `search` is None if the run keeps matrices.
    """

    layer: str
    pairs: int
    images: int
    load_seconds: float
    seconds: float
    write_seconds: float
    search: SearchTime | None = None


@dataclass(frozen=True)
class Written:
    """Files below a run directory, and their bytes."""

    files: int = 0
    n_bytes: int = 0

    def __add__(self, other: Written) -> Written:
        return Written(self.files + other.files, self.n_bytes + other.n_bytes)


@dataclass(frozen=True)
class Trial:
    """A small run, measured."""

    counts: Mapping[Side, int]
    """Images by side."""
    layouts: Mapping[str, Layout]
    """How each layer was cut into tiles."""
    chunk_size: int
    """Images of a feature chunk."""
    workers: int
    seconds: Mapping[str, float]
    """Of the stages, and in `total`; `load` is what actors took to load the model."""
    tiles: Sequence[TileTime]
    """What tiles took."""
    written: Mapping[str, Written]
    """Files by kind: `features`, `tiles/<layer>`, `matrices`, `neighbours` (with their candidates) and `other`."""

    @property
    def n_images(self) -> int:
        """Images of all sides."""
        return sum(self.counts.values())

    @property
    def pairs(self) -> int:
        """Pairs of all layers."""
        return sum(layout.total_pairs for layout in self.layouts.values())


def measure(config: RunConfig) -> Trial:
    """Run a trial."""
    engine = _RecordingEngine(config.workers)
    try:
        finished = run(config, engine=engine)
    finally:
        engine.close()
    record = RunDirectory(config.run).read_record()
    if record is None:
        raise StorageError(f"{config.run}: the record of this trial was removed while it ran: plan again")
    summary = finished.summary()
    layouts = {layer: record.layout(layer) for layer in record.requested}
    return Trial(
        counts=record.counts,
        layouts=layouts,
        chunk_size=record.chunk_size,
        workers=engine.slots,
        seconds={**summary["seconds"], "load": max(engine.loads, default=0.0)},
        tiles=[_tile_time(receipt, layouts) for receipt in engine.receipts if "pairs" in receipt.counts],
        written=_list_files(as_run_path(config.run), tuple(layouts)),
    )


@dataclass
class _Recorder:
    """A worker that keeps the receipts of another."""

    worker: Worker
    receipts: list[Receipt]

    def __call__(self, units: tuple[Hashable, ...]) -> Iterator[Receipt]:
        for receipt in self.worker(units):
            self.receipts.append(receipt)
            yield receipt


class _RecordingEngine(LocalEngine):
    """The local engine, which keeps receipts and how long actors took to begin."""

    name = "local"

    def __init__(self, workers: int | None) -> None:
        super().__init__(workers)
        self.receipts: list[Receipt] = []
        self.loads: list[float] = []

    def start_tasks(self, worker: Worker, resources: Resources) -> LocalPool:
        return super().start_tasks(_Recorder(worker, self.receipts), resources)

    def start_actors(self, factory: Callable[[], Worker], count: int, resources: Resources) -> LocalPool:
        def make() -> Worker:
            started = time.perf_counter()
            worker = factory()
            self.loads.append(time.perf_counter() - started)
            return _Recorder(worker, self.receipts)

        return super().start_actors(make, count, resources)


def _tile_time(receipt: Receipt, layouts: Mapping[str, Layout]) -> TileTime:
    counts, tile = receipt.counts, cast("Tile", receipt.unit)
    total = sum(counts[name] for name in MatchingWorker.SECONDS)
    load = counts["load_seconds"]
    search = None
    if "solved" in counts:
        search = SearchTime(
            counts["product_seconds"],
            counts["match_seconds"],
            int(counts["by_sketches"] + counts["by_products"]),
            int(counts["solved"]),
        )
    images = layouts[tile.layer].n_images(tile.row, tile.column)
    return TileTime(
        tile.layer, int(counts["pairs"]), images, load, total - load, counts["write_seconds"], search
    )


def _list_files(path: RunPath, layers: Sequence[str]) -> dict[str, Written]:
    """Return the files of a run by kind."""
    found: dict[str, Written] = {}
    for file in look_up_files(path):
        kind = _kind(file.name, layers)
        found[kind] = found.get(kind, Written()) + Written(1, file.n_bytes)
    return found


def _kind(name: str, layers: Sequence[str]) -> str:
    """Return of which kind a file of a run directory is."""
    if re.fullmatch(r"features\.zarr/.*/c/\d+(/\d+)*", name):
        return "features"
    if re.fullmatch(r"tiles\.zarr/.*/c/\d+/\d+/\d+", name):
        inside = name.removeprefix("tiles.zarr/")
        return f"tiles/{max((layer for layer in layers if inside.startswith(f'{layer}/')), key=len)}"
    if re.fullmatch(r"(candidates|neighbours)\.zarr/.*/c/\d+(/\d+)+", name):
        return "neighbours"
    if re.fullmatch(r"rsm\.zarr/.*/c/\d+/\d+", name):
        return "matrices"
    return "other"

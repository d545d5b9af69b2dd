"""Calibration: a few small runs on images from all over a run's own, through the same stages, measured.

Each *trial* is a run in a temporary directory beside the planned one, so that it writes to the same storage. Images go
through the model once or twice; their features, or ready-made ones, then serve for repeated trials of two sizes.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray
from pydantic import PrivateAttr

from semrsm_dist.config.schema import OutputConfig, RunConfig
from semrsm_dist.data.entries import ImageEntry, LoadedImage
from semrsm_dist.data.source import ImageSource, list_entries, load_image
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.data.table import read_entries
from semrsm_dist.engine.engines.local import LocalEngine, LocalPool
from semrsm_dist.engine.protocol import Receipt, Resources, Worker
from semrsm_dist.errors import ConfigError
from semrsm_dist.features.arrays import load_token_counts
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.pipeline import session as session_module
from semrsm_dist.pipeline.driver import run
from semrsm_dist.pipeline.overhead import time_picture
from semrsm_dist.pipeline.stages.matching_worker import MatchingWorker
from semrsm_dist.plan.tiling import Layout, Tile
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.feature_source import open_array
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.paths import RunPath, as_run_path, look_up_files, temporary_folder
from semrsm_dist.store.record import LayerSizes, Side

ROUNDS, FEWEST_ROUNDS = 4, 3
"""Repeated trials, each of two sizes; fewer if they take longer than `ROUNDS_SECONDS`."""

ROUNDS_SECONDS = 15.0

TRIAL_SECONDS = 1.0
"""About how long the larger trials match."""

FIRST_IMAGES = 64
"""Images of the first trial through a model."""

MOST_IMAGES = 1024
"""Images of a trial on a side."""

POOL_BYTES, POOL_SECONDS = 2**28, 5.0
"""Memory of the features for trials, and about how long it may take to obtain them."""


@dataclass(frozen=True)
class TileTime:
    """What a worker took for a tile: to load its panels, for all else, and, of that, to write it."""

    layer: str
    pairs: int
    load_seconds: float
    seconds: float
    write_seconds: float


@dataclass(frozen=True)
class Written:
    """Files below a run directory, and their bytes."""

    files: int = 0
    n_bytes: int = 0

    def __add__(self, other: Written) -> Written:
        return Written(self.files + other.files, self.n_bytes + other.n_bytes)


@dataclass(frozen=True)
class Trial:
    """A small run, measured.

    Attributes
    ----------
    counts
        Images by side.
    layouts
        How each layer was cut into tiles.
    chunk_size
        Images of a feature chunk.
    workers
        Number of workers.
    seconds
        Of the stages, and in `total`; `load` is what actors took to load the model.
    tiles
        What tiles took.
    written
        Files by kind: `features`, `tiles/<layer>`, `matrices` and `other`.
    """

    counts: Mapping[Side, int]
    layouts: Mapping[str, Layout]
    chunk_size: int
    workers: int
    seconds: Mapping[str, float]
    tiles: Sequence[TileTime]
    written: Mapping[str, Written]

    @property
    def n_images(self) -> int:
        """Images of all sides."""
        return sum(self.counts.values())

    @property
    def pairs(self) -> int:
        """Pairs of all layers."""
        return sum(layout.total_pairs for layout in self.layouts.values())


@dataclass(frozen=True)
class Pool:
    """Features of some images of each side, from which trials take theirs.

    Attributes
    ----------
    features
        (T, S, C) by layer and side.
    token_counts
        (T,) likewise.
    entries
        Ids and labels by side.
    """

    features: Mapping[str, Mapping[Side, NDArray[Any]]]
    token_counts: Mapping[str, Mapping[Side, NDArray[np.int64]]]
    entries: Mapping[Side, Sequence[ImageEntry]]


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes
    ----------
    counts
        Images that the planned run has by side.
    sizes
        The sizes of the layers.
    through_model
        Trials of images through the model; none for ready-made features.
    trials
        Trials of features: those of a round follow each other.
    picture
        Seconds in which the picture of a trial is drawn, with what that loads.
    """

    counts: Mapping[Side, int]
    sizes: Mapping[str, LayerSizes]
    through_model: Sequence[Trial]
    trials: Sequence[Trial]
    picture: float


def calibrate(config: RunConfig, matcher: Matcher, *, workers: int, folder: RunPath) -> Calibration:
    """Measure trials of a run.

    Parameters
    ----------
    config, matcher
        The planned run; of one that keeps neighbours, trials compute the matrix.
    workers
        Number of workers of a trial, which contend for caches and memory as those of the run do.
    folder
        Where trials are written, and removed again.

    Raises
    ------
    InputError, ConfigError, StorageError, WorkError
        As `run`.
    """
    update: dict[str, Any] = {"engine": "local", "address": None, "workers": workers}
    if config.output.neighbours is not None:  # more images than a trial has would decide more pairs by bounds
        update["output"] = OutputConfig()
    config = config.model_copy(update=update)
    sides = {"images": config.data} | ({} if config.queries is None else {"queries": config.queries})
    with (
        temporary_folder(folder, ".semrsm-plan-") as (place, scratch),
        _quiet(),
    ):
        if isinstance(config.data, FeaturesData):
            counts, sizes = _look_at_features(cast("dict[Side, FeaturesData]", sides))
            most = _wanted(matcher, sizes, workers)
            pool = _read_features(cast("dict[Side, FeaturesData]", sides), counts, most)
            through_model: list[Trial] = []
        else:
            sources = cast("dict[Side, ImageSource]", sides)
            entries = {side: list_entries(source) for side, source in sources.items()}
            counts = {side: len(found) for side, found in entries.items()}
            images = _Images(config, sources, entries, place)
            through_model, pool, sizes = images.measure(matcher)
        most = _affordable(through_model, matcher, sizes, workers)
        trials = list(_repeat(config, pool, most, place, scratch))
        picture = time_picture(place / _name_trial(0, 1) / "run")
        return Calibration(counts, sizes, through_model, trials, picture)


def spread(total: int, wanted: int, seed: int = 0) -> list[int]:
    """Return so many different indices below `total`, one at random from each of as many equal parts."""
    wanted = min(total, wanted)
    draws = np.random.default_rng(seed).random(wanted)
    return [int((k + draw) * total / wanted) for k, draw in enumerate(draws)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the warnings of trials to ourselves: the run gives its own."""
    before, session_module.log.disabled = session_module.log.disabled, True
    try:
        yield
    finally:
        session_module.log.disabled = before


def _wanted(matcher: Matcher, sizes: Mapping[str, LayerSizes], workers: int) -> int:
    """Return the images of a side with which the matching of a trial takes about `TRIAL_SECONDS`."""
    pair_seconds = sum(matcher.pair_seconds(size.n_tokens, size.n_channels) for size in sizes.values())
    image_bytes = sum(4 * size.n_tokens * size.n_channels for size in sizes.values())
    by_time = math.isqrt(int(2 * TRIAL_SECONDS * workers / pair_seconds))
    return max(8, min(by_time, MOST_IMAGES, POOL_BYTES // image_bytes))


def _affordable(
    known: Sequence[Trial], matcher: Matcher, sizes: Mapping[str, LayerSizes], workers: int
) -> int:
    """Return the images of a trial's side as `_wanted`, by measured times where there are some."""
    if not known:
        return _wanted(matcher, sizes, workers)
    pair_seconds = sum(tile.seconds for tile in known[-1].tiles) / known[-1].pairs * len(sizes)
    return max(8, math.isqrt(int(2 * TRIAL_SECONDS * workers / pair_seconds)))


def _look_at_features(
    sides: Mapping[Side, FeaturesData],
) -> tuple[dict[Side, int], dict[str, LayerSizes]]:
    counts: dict[Side, int] = {}
    sizes: dict[str, LayerSizes] = {}
    for side, data in sides.items():
        for layer, path in data.layers.items():
            source = open_array(path, data.layout, layer)
            counts[side] = source.n_images
            known = sizes.get(layer)
            n_tokens = max(source.n_tokens, known.n_tokens if known else 0)
            sizes[layer] = LayerSizes(n_tokens=n_tokens, n_channels=source.n_channels)
    return counts, sizes


def _read_features(sides: Mapping[Side, FeaturesData], counts: Mapping[Side, int], most: int) -> Pool:
    """Read images one by one, in random order, until there are enough or it takes too long."""
    features: dict[str, dict[Side, NDArray[Any]]] = {}
    token_counts: dict[str, dict[Side, NDArray[np.int64]]] = {}
    entries: dict[Side, list[ImageEntry]] = {}
    for side, data in sides.items():
        sources = {layer: open_array(path, data.layout, layer) for layer, path in data.layers.items()}
        read: dict[int, dict[str, NDArray[Any]]] = {}
        started = time.perf_counter()
        for index in np.random.default_rng(1).permutation(spread(counts[side], most)).tolist():
            read[index] = {layer: source.read(index, index + 1)[0] for layer, source in sources.items()}
            if len(read) >= min(8, counts[side]) and time.perf_counter() - started > POOL_SECONDS:
                break
        chosen = sorted(read)
        for layer, source in sources.items():
            features.setdefault(layer, {})[side] = np.stack([read[index][layer] for index in chosen])
            if layer in data.token_counts:
                every = load_token_counts(data.token_counts[layer], source.n_images, source.n_tokens)
                token_counts.setdefault(layer, {})[side] = every[chosen]
        listed = None if data.table is None else read_entries(data.table, needs_uri=False)
        entries[side] = [
            ImageEntry(str(index), "") if listed is None or index >= len(listed) else listed[index]
            for index in chosen
        ]
    return Pool(features, token_counts, entries)


class _Sample(ImageSource):
    """Some images of another source."""

    source: str = "sample"
    _inner: ImageSource = PrivateAttr()
    _entries: list[ImageEntry] = PrivateAttr()

    @classmethod
    def of(cls, inner: ImageSource, entries: list[ImageEntry]) -> _Sample:
        """Return the source of some of another's images."""
        sample = (_GeneratedSample if inner.generated else _Sample)()
        sample._inner, sample._entries = inner, entries
        return sample

    def entries(self) -> list[ImageEntry]:
        return self._entries

    def load(self, entry: ImageEntry) -> LoadedImage:
        return load_image(self._inner, entry)

    def stamp(self, entry: ImageEntry) -> tuple[int, int] | None:
        return self._inner.stamp(entry)


class _GeneratedSample(_Sample):
    generated: ClassVar[bool] = True


@dataclass(frozen=True)
class _Images:
    """Trials of images through the model."""

    config: RunConfig
    sources: Mapping[Side, ImageSource]
    entries: Mapping[Side, Sequence[ImageEntry]]
    place: RunPath

    def measure(self, matcher: Matcher) -> tuple[list[Trial], Pool, dict[str, LayerSizes]]:
        """Return a trial of few images, if these are quick one of more, the features of the last, and layer sizes."""
        trials = [self._try(FIRST_IMAGES)]
        record = RunDirectory(self.place / "model-0").read_record()
        if record is None or not trials[0].n_images:
            raise ConfigError("the calibration left no record")
        sizes = {
            name: LayerSizes(n_tokens=layer.n_tokens, n_channels=layer.n_channels)
            for name, layer in record.layers.items()
        }
        image_seconds = (
            trials[0].seconds["scan"] + trials[0].seconds["extraction"] - trials[0].seconds["load"]
        ) / trials[0].n_images
        wanted = min(_wanted(matcher, sizes, trials[0].workers), int(POOL_SECONDS / max(image_seconds, 1e-6)))
        if wanted > 2 * FIRST_IMAGES and max(map(len, self.entries.values())) > FIRST_IMAGES:
            trials.append(self._try(wanted, 1))
        return trials, self._pool(self.place / f"model-{len(trials) - 1}", list(sizes)), sizes

    def _try(self, wanted: int, number: int = 0) -> Trial:
        samples = {
            side: _Sample.of(source, [self.entries[side][index] for index in self._choose(side, wanted)])
            for side, source in self.sources.items()
        }
        update = {
            "data": samples["images"],
            "queries": samples.get("queries"),
            "run": str(self.place / f"model-{number}"),
        }
        return _measure(self.config.model_copy(update=update))

    def _choose(self, side: Side, wanted: int) -> list[int]:
        return spread(len(self.entries[side]), wanted)

    def _pool(self, path: RunPath, layers: Sequence[str]) -> Pool:
        directory = RunDirectory(path)
        manifests = {side: directory.read_manifest(side) for side in self.sources}
        features = {
            layer: {
                side: FeatureStore(directory.features, side, layer).read(slice(0, manifest.n_readable))
                for side, manifest in manifests.items()
            }
            for layer in layers
        }
        entries = {
            side: [row.entry for row in manifest.rows if row.status == "ok"]
            for side, manifest in manifests.items()
        }
        return Pool(features, {}, entries)


def _repeat(config: RunConfig, pool: Pool, most: int, place: RunPath, scratch: Path) -> Iterator[Trial]:
    """Yield trials of at most so many random images of the pool, in turns with half of them and with all."""
    draw, started = np.random.default_rng(2), time.perf_counter()
    for number in range(ROUNDS):
        if number >= FEWEST_ROUNDS and time.perf_counter() - started > ROUNDS_SECONDS:
            return
        for part in (2, 1):
            chosen = {
                side: np.sort(draw.permutation(len(entries))[: max(2, min(len(entries), most) // part)])
                for side, entries in pool.entries.items()
            }
            name = _name_trial(number, part)
            yield _try_features(config, pool, chosen, place / name / "run", scratch / name)


def _name_trial(number: int, part: int) -> str:
    """Return the name of a trial of features: of a round, with one of so many parts of the images."""
    return f"features-{number}-{part}"


def _try_features(
    config: RunConfig, pool: Pool, chosen: Mapping[Side, NDArray[np.int64]], path: RunPath, folder: Path
) -> Trial:
    folder.mkdir()
    data = {side: _write_features(pool, side, chosen[side], folder) for side in chosen}
    smallest = min(map(len, chosen.values()))
    tile = min(config.matching.tile or 256, max(1, smallest // 3))
    update = {
        "data": data["images"],
        "queries": data.get("queries"),
        "model": None,
        "run": str(path),
        "matching": config.matching.model_copy(update={"tile": tile}),
    }
    return _measure(config.model_copy(update=update))


def _write_features(pool: Pool, side: Side, chosen: NDArray[np.int64], folder: Path) -> FeaturesData:
    layers, counts = {}, {}
    for number, (layer, by_side) in enumerate(pool.features.items()):
        layers[layer] = folder / f"{side}-{number}.npy"
        np.save(layers[layer], by_side[side][chosen])
        if layer in pool.token_counts:
            counts[layer] = folder / f"{side}-{number}-counts.npy"
            np.save(counts[layer], pool.token_counts[layer][side][chosen])
    entries = [pool.entries[side][index] for index in chosen]
    table = folder / f"{side}.parquet"
    columns = {
        "image_id": [entry.image_id for entry in entries],
        "labels": [entry.labels for entry in entries],
    }
    schema = pa.schema({"image_id": pa.string(), "labels": pa.list_(pa.string())})
    pa.parquet.write_table(pa.table(columns, schema), table)
    return FeaturesData(layers=layers, token_counts=counts, layout="nsc", table=str(table))


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
            return worker

        return super().start_actors(make, count, resources)


def _measure(config: RunConfig) -> Trial:
    """Run a trial."""
    engine = _RecordingEngine(config.workers)
    try:
        finished = run(config, engine=engine)
    finally:
        engine.close()
    record = RunDirectory(config.run).read_record()
    if record is None:
        raise ConfigError(f"{config.run}: the calibration left no record")
    summary = finished.summary()
    layouts = {layer: record.layout(layer) for layer in record.requested}
    return Trial(
        counts=record.counts,
        layouts=layouts,
        chunk_size=record.chunk_size,
        workers=engine.slots,
        seconds={**summary["seconds"], "load": max(engine.loads, default=0.0)},
        tiles=[_tile_time(receipt) for receipt in engine.receipts if "pairs" in receipt.counts],
        written=_list_files(as_run_path(config.run), tuple(layouts)),
    )


def _tile_time(receipt: Receipt) -> TileTime:
    counts = receipt.counts
    total = sum(counts[name] for name in MatchingWorker.SECONDS)
    load = counts["load_seconds"]
    layer, pairs = cast("Tile", receipt.unit).layer, int(counts["pairs"])
    return TileTime(layer, pairs, load, total - load, counts["write_seconds"])


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
    if re.fullmatch(r"rsm\.zarr/.*/c/\d+/\d+", name):
        return "matrices"
    return "other"

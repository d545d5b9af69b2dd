"""Calibration: a few small runs on images from all over a run's own, through the same stages, measured.

Each *trial* is a run in a temporary directory beside the planned one, so that it writes to the same storage. Images go
through the model once or twice; their features, or ready-made ones, then serve for repeated trials of two sizes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.config.schema import RunConfig
from semrsm_dist.data.entries import ImageEntry
from semrsm_dist.data.source import ImageSource, list_entries
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.errors import StorageError
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.matching.matchers.auction import Auction
from semrsm_dist.pipeline import session as session_module
from semrsm_dist.pipeline.forecast.overhead import Picture, draw_picture
from semrsm_dist.pipeline.forecast.samples import (
    POOL_BYTES,
    POOL_SECONDS,
    Pool,
    Sample,
    look_at_features,
    read_features,
    spread,
    write_features,
)
from semrsm_dist.pipeline.forecast.search_sample import SearchSample, sample_search
from semrsm_dist.pipeline.forecast.trials import Trial, measure
from semrsm_dist.plan.tiling import FEWEST_PANELS
from semrsm_dist.progress import Reporter
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.paths import RunPath, temporary_folder
from semrsm_dist.store.record import LayerSizes, NeighbourSettings, Side

ROUNDS, FEWEST_ROUNDS = 4, 3
"""Repeated trials, each of two sizes; fewer if they take longer than `ROUNDS_SECONDS`."""

ROUNDS_SECONDS = 15.0

TRIAL_SECONDS = 1.0
"""About how long the larger trials match."""

FIRST_IMAGES = 64
"""Images of the first trial through a model."""

MOST_IMAGES, MOST_SEARCHED = 1024, 2048
"""Images of a trial on a side; one that keeps neighbours takes less for as many."""


@dataclass(frozen=True)
class Calibration:
    """What was measured."""

    counts: Mapping[Side, int]
    """Images that the planned run has by side."""
    sizes: Mapping[str, LayerSizes]
    through_model: Sequence[Trial]
    """Trials of images through the model; none for ready-made features."""
    trials: Sequence[Trial]
    """Trials of features: those of a round follow each other."""
    picture: Picture | None
    """What the picture of a trial takes; None for a run without one."""
    samples: Mapping[str, SearchSample] = field(default_factory=dict)
    """Of a run that keeps neighbours, what a sample of each layer says about its pairs."""


def calibrate(
    config: RunConfig, matcher: Matcher, *, workers: int, folder: RunPath, reporter: Reporter
) -> Calibration:
    """Measure trials of a run.

    Raises InputError, ConfigError, StorageError or WorkError as `run`.

    Parameters
    ----------
    config, matcher
        The planned run.
    workers
        Number of workers of a trial, which contend for caches and memory as those of the run do.
    folder
        Where trials are written, and removed again.
    reporter
        Where progress is reported, trial by trial.
    """
    config = config.model_copy(update={"engine": "local", "address": None, "workers": workers})
    searched = config.output.neighbours is not None
    limit = MOST_SEARCHED if searched else MOST_IMAGES
    sides = {"images": config.data} | ({} if config.queries is None else {"queries": config.queries})
    with (
        temporary_folder(folder, ".semrsm-plan-") as (place, scratch),
        _quiet(),
        reporter.stage("calibration", 1 + 2 * ROUNDS, "trials") as stage,
    ):
        if isinstance(config.data, FeaturesData):
            ready_made = cast("dict[Side, FeaturesData]", sides)
            counts, sizes = look_at_features(ready_made)
            pool = read_features(ready_made, counts, _wanted(matcher, sizes, workers, limit))
            through_model: list[Trial] = []
        else:
            sources = cast("dict[Side, ImageSource]", sides)
            entries = {side: list_entries(source) for side, source in sources.items()}
            counts = {side: len(found) for side, found in entries.items()}
            images = _Images(config, sources, entries, place)
            through_model, pool, sizes = images.measure(matcher)
        stage.advance(1)  # images went through the model, or features were read
        most = _affordable(through_model, matcher, sizes, workers, limit)
        trials = []
        for trial in _repeat(config, pool, most, place, scratch):
            trials.append(trial)
            stage.advance(1)
        stage.advance(2 * ROUNDS - len(trials))  # what was left out for lack of time
        picture = None if searched else draw_picture(place / _name_trial(0, 1) / "run")
        samples = _sample_searches(config, matcher, pool, workers)
        return Calibration(counts, sizes, through_model, trials, picture, samples)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the warnings of trials to ourselves: the run gives its own."""
    before, session_module.log.disabled = session_module.log.disabled, True
    try:
        yield
    finally:
        session_module.log.disabled = before


def _wanted(matcher: Matcher, sizes: Mapping[str, LayerSizes], workers: int, most: int = MOST_IMAGES) -> int:
    """Return the images of a side with which the matching of a trial takes about `TRIAL_SECONDS`."""
    pair_seconds = sum(matcher.pair_seconds(size.n_tokens, size.n_channels) for size in sizes.values())
    image_bytes = sum(4 * size.n_tokens * size.n_channels for size in sizes.values())
    by_time = math.isqrt(int(2 * TRIAL_SECONDS * workers / pair_seconds))
    return max(8, min(by_time, most, POOL_BYTES // image_bytes))


def _affordable(
    known: Sequence[Trial], matcher: Matcher, sizes: Mapping[str, LayerSizes], workers: int, most: int
) -> int:
    """Return the images of a trial's side as `_wanted`, by measured times where there are some."""
    if not known:
        return _wanted(matcher, sizes, workers, most)
    pair_seconds = sum(tile.seconds for tile in known[-1].tiles) / known[-1].pairs * len(sizes)
    return max(8, math.isqrt(int(2 * TRIAL_SECONDS * workers / pair_seconds)))


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
            raise StorageError(
                f"{self.place}: a trial left no record or no readable image: see why with semrsm run"
            )
        sizes: dict[str, LayerSizes] = {**record.layers}
        image_seconds = (
            trials[0].seconds["scan"] + trials[0].seconds["extraction"] - trials[0].seconds["load"]
        ) / trials[0].n_images
        wanted = min(_wanted(matcher, sizes, trials[0].workers), int(POOL_SECONDS / max(image_seconds, 1e-6)))
        if wanted > 2 * FIRST_IMAGES and max(map(len, self.entries.values())) > FIRST_IMAGES:
            trials.append(self._try(wanted, 1))
        return trials, self._pool(self.place / f"model-{len(trials) - 1}", list(sizes)), sizes

    def _try(self, wanted: int, number: int = 0) -> Trial:
        samples = {
            side: Sample.of(
                source, [self.entries[side][index] for index in spread(len(self.entries[side]), wanted)]
            )
            for side, source in self.sources.items()
        }
        update = {
            "data": samples["images"],
            "queries": samples.get("queries"),
            "run": str(self.place / f"model-{number}"),
        }
        return measure(self.config.model_copy(update=update))

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
        entries = {side: [row.entry for row in manifest.readable] for side, manifest in manifests.items()}
        return Pool(features, {}, entries)


def _repeat(config: RunConfig, pool: Pool, most: int, place: RunPath, scratch: Path) -> Iterator[Trial]:
    """Yield trials of at most this many random images of the pool, in turns with half of them and with all.

    If neighbours are kept, those of all images have more tiles, as their number counts beside that of pairs.
    """
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
            panels = FEWEST_PANELS if config.output.neighbours is not None and part == 1 else 3
            yield _try_features(config, pool, chosen, place / name / "run", scratch / name, panels)


def _sample_searches(
    config: RunConfig, matcher: Matcher, pool: Pool, workers: int
) -> dict[str, SearchSample]:
    """Return a sample of each layer of a run that keeps neighbours; of any other run, none."""
    kept = config.output.neighbours
    if kept is None:
        return {}
    wanted, auction = NeighbourSettings(kept.k, kept.threshold), cast(Auction, matcher)
    return {layer: sample_search(auction, pool, layer, wanted, workers) for layer in pool.features}


def _name_trial(number: int, part: int) -> str:
    """Return the name of a trial of features: of a round, with one of so many parts of the images."""
    return f"features-{number}-{part}"


def _try_features(
    config: RunConfig,
    pool: Pool,
    chosen: Mapping[Side, NDArray[np.int64]],
    path: RunPath,
    folder: Path,
    panels: int,
) -> Trial:
    folder.mkdir()
    data = {side: write_features(pool, side, chosen[side], folder) for side in chosen}
    smallest = min(map(len, chosen.values()))
    # A panel of few images takes the space of many.
    tile = min(config.matching.tile or 256, -(-smallest // panels))
    update = {
        "data": data["images"],
        "queries": data.get("queries"),
        "model": None,
        "run": str(path),
        "matching": config.matching.model_copy(update={"tile": tile}),
    }
    return measure(config.model_copy(update=update))

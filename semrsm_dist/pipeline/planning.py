"""What a run costs and needs, before it starts: measured on a few small runs of its own images, then scaled up."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import median
from typing import Any

import psutil

from semrsm_dist.config.schema import RunConfig, check_sources
from semrsm_dist.data.manifest import Manifest
from semrsm_dist.data.sources import Data
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.engine import make_engine
from semrsm_dist.errors import LimitError
from semrsm_dist.machine import available_cpus
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.matching.matchers import make_matcher
from semrsm_dist.pipeline.calibration import Calibration, Trial, calibrate
from semrsm_dist.pipeline.feature_inputs import check_features
from semrsm_dist.pipeline.inputs import RunInputs, check_model
from semrsm_dist.pipeline.overhead import time_loading, time_workers
from semrsm_dist.pipeline.simulation import LayerModel, Simulated, simulate
from semrsm_dist.pipeline.sizing import (
    choose_sizes,
    is_one_machine,
    largest_disk_bytes,
    largest_worker,
    layer_result_bytes,
    panel_budget,
    prepared_bytes,
)
from semrsm_dist.plan.blocks import TASK_OVERHEAD, LayerWork
from semrsm_dist.plan.estimate import CONFIDENCE, Line, TileCost, fit_line, fit_parts, interval_factor
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.store.paths import RunPath, as_run_path, free_bytes, nearest_folder
from semrsm_dist.store.record import LayerRecord, RunRecord, Side

SCALES = (1, 10, 100, 1000)
"""Numbers of workers for which the matching is simulated, beside that of the engine."""

LOCAL_MESSAGE_SECONDS = 2e-4
"""The driver's processor time for a task on threads of its own process; elsewhere it is `TASK_OVERHEAD`."""

TRIAL_DISK_BYTES = 2**30
"""Free space with which trials are written beside the run; else in the system's folder for temporary files."""

OUTSIDE = ("total", "load", "compile", "matching", "scan", "model", "extraction", "assembly", "evaluation")
"""Times that do not grow with the features; `total` contains all."""


@dataclass(frozen=True)
class Costs:
    """What parts of a run cost, by the trials of a calibration."""

    calibration: Calibration

    @cached_property
    def tiles(self) -> dict[str, TileCost]:
        """What tiles of each layer take a worker."""
        return {layer: self._tile_cost(layer) for layer in self.calibration.sizes}

    def _tile_cost(self, layer: str) -> TileCost:
        trials = self.calibration.trials
        tiles = [tile for trial in trials for tile in trial.tiles if tile.layer == layer]
        fixed, pair = fit_parts([(1, tile.pairs) for tile in tiles], [tile.seconds for tile in tiles])
        loads = sum(tile.load_seconds for tile in tiles)
        loaded = sum(trial.workers * trial.n_images for trial in trials)
        return TileCost(float(fixed), float(pair), loads / loaded)

    @cached_property
    def storage(self) -> float:
        """Share of the workers' time on tiles in which they read features and write results."""
        tiles = [tile for trial in self.calibration.trials for tile in trial.tiles]
        inside = sum(tile.load_seconds + tile.write_seconds for tile in tiles)
        return inside / sum(tile.load_seconds + tile.seconds for tile in tiles)

    @cached_property
    def matching_start(self) -> float:
        """Seconds of the matching in which workers start and end."""
        trials = self.calibration.trials
        return max(0.0, median(trial.seconds["matching"] - self._busy(trial) for trial in trials))

    def _busy(self, trial: Trial) -> float:
        return sum(tile.seconds + tile.load_seconds for tile in trial.tiles) / trial.workers

    @cached_property
    def features(self) -> Line:
        """Seconds by images to identify, copy and check features, and all else that is not a stage of its own."""
        trials = self.calibration.trials[1:] or self.calibration.trials
        return fit_line([trial.n_images for trial in trials], [_other(trial) for trial in trials])

    @cached_property
    def finishing(self) -> Line:
        """Seconds of assembly and evaluation by pairs."""
        trials = self.calibration.trials
        return fit_line([trial.pairs for trial in trials], [_finishing(trial) for trial in trials])

    @cached_property
    def start(self) -> float:
        """Seconds to load the model, and libraries beyond those that every run loads at first."""
        trials = [*self.calibration.through_model, *self.calibration.trials]
        first = trials[0]
        libraries = max(0.0, _other(first) - self.features(first.n_images))
        model = max((trial.seconds.get("model", 0.0) for trial in trials), default=0.0)
        return libraries + model + first.seconds["load"]

    @cached_property
    def image(self) -> float:
        """Worker-seconds to scan and extract an image."""
        if not self.calibration.through_model:
            return 0.0
        trial = self.calibration.through_model[-1]
        seconds = trial.seconds["scan"] + max(0.0, trial.seconds["extraction"] - trial.seconds["load"])
        return seconds * trial.workers / trial.n_images

    @cached_property
    def factor(self) -> float:
        """How many times as long as predicted a run may take, or as short."""
        rounds = [
            self.calibration.trials[first : first + 2] for first in range(0, len(self.calibration.trials), 2)
        ]
        return interval_factor([sum(map(_warm, two)) / sum(map(self._predict, two)) for two in rounds])

    def _predict(self, trial: Trial) -> float:
        cost = sum(
            self.tiles[tile.layer].seconds(1, tile.pairs, 0) + tile.load_seconds for tile in trial.tiles
        )
        matching = cost / trial.workers + self.matching_start
        return matching + self.features(trial.n_images) + self.finishing(trial.pairs)


def _warm(trial: Trial) -> float:
    """Return the seconds of a trial without what happens once in a process."""
    return trial.seconds["matching"] + _finishing(trial) + _other(trial)


def _finishing(trial: Trial) -> float:
    return trial.seconds.get("assembly", 0.0) + trial.seconds["evaluation"]


def _other(trial: Trial) -> float:
    inside = sum(
        seconds
        for stage, seconds in trial.seconds.items()
        if stage in OUTSIDE and stage not in ("total", "load")
    )
    return max(0.0, trial.seconds["total"] - inside)


@dataclass(frozen=True)
class Space:
    """The files and bytes of a run, by those of the largest trial."""

    calibration: Calibration
    record: RunRecord

    def measure(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return files and bytes by kind."""
        trials = self.calibration.trials
        trial = max(trials, key=lambda each: each.n_images)
        counts = self.record.counts
        chunks = sum(-(-count // self.record.chunk_size) for count in counts.values())
        trial_chunks = sum(-(-count // trial.chunk_size) for count in trial.counts.values())
        n_images, entries = sum(counts.values()), math.prod(self._shape(counts))
        files, sizes = {"features": 0.0, "matrices": 0.0}, {"features": 0.0, "matrices": 0.0}
        if "features" in trial.written:
            files["features"] = trial.written["features"].files * chunks / trial_chunks
            sizes["features"] = trial.written["features"].n_bytes * n_images / trial.n_images
        if "matrices" in trial.written:
            share = entries / math.prod(self._shape(trial.counts))
            files["matrices"] = trial.written["matrices"].files * max(1.0, share)
            sizes["matrices"] = trial.written["matrices"].n_bytes * share
        files["tiles"] = sizes["tiles"] = 0.0
        for layer in self.record.requested:
            layout, small = self.record.layout(layer), trial.layouts[layer]
            files["tiles"] += layout.n_tiles
            sizes["tiles"] += trial.written[f"tiles/{layer}"].n_bytes * _entries(layout) / _entries(small)
        images = [each.n_images for each in trials]
        files["other"] = fit_line(images, [each.written["other"].files for each in trials])(n_images)
        sizes["other"] = fit_line(images, [each.written["other"].n_bytes for each in trials])(n_images)
        return files, sizes

    def _shape(self, counts: Mapping[str, int]) -> tuple[int, int]:
        return counts.get("queries", counts["images"]), counts["images"]


def _entries(layout: Layout) -> int:
    """Return the entries of all tiles; those on the diagonal are written whole."""
    panels = map(layout.rows, range(layout.row_panels))
    heights = [int(panel.stop - panel.start) for panel in panels]
    if not layout.symmetric:
        return layout.n_rows * layout.n_columns
    return layout.total_pairs + sum(height * (height + 1) // 2 for height in heights)


def plan_run(config: RunConfig) -> dict[str, Any]:
    """Return what a run would cost and need. Nothing is left behind, and nothing but a calibration is computed.

    Parameters
    ----------
    config
        The run.

    Returns
    -------
    dict
        JSON values: see docs/performance.md for all. `fits` is whether disk and memory suffice, `problems` says what
        does not.

    Raises
    ------
    InputError, ConfigError, StorageError, WorkError
        As `run`, if the calibration meets the cause.
    """
    check_sources(config)
    matcher = make_matcher(config.matching.matcher, **config.matching.parameters)
    outside, started = time_loading(matcher), time.perf_counter()
    engine = make_engine(config.engine, address=config.address, workers=config.workers)
    outside += time.perf_counter() - started
    try:
        machine = engine.describe()
        slots = engine.slots
        workers = _at_once(config, matcher, machine)
        outside += time_workers(engine, matcher, workers)
    finally:
        engine.close()
    folder = nearest_folder(as_run_path(config.run))
    contending = min(workers, available_cpus()) if is_one_machine(machine) else 1
    calibration = calibrate(config, matcher, workers=contending, folder=folder)
    record = _record(config, matcher, calibration, slots)
    return _Plan(config, matcher, calibration, record, machine, workers).describe(folder, outside)


def _at_once(config: RunConfig, matcher: Matcher, machine: Mapping[str, Any]) -> int:
    """Return how many workers of matching run at once, as slots, GPUs and memory allow."""
    limits = [int(machine["memory"]) // int(config.matching.worker_memory)]
    if matcher.cpus:
        limits.append(int(int(machine["cpus"]) / matcher.cpus))
    if matcher.gpus:
        limits.append(int(int(machine["gpus"]) / matcher.gpus))
    return max(1, min(limits))


def _record(config: RunConfig, matcher: Matcher, calibration: Calibration, slots: int) -> RunRecord:
    """Return the record that the run would have, as far as sizes go."""
    manifests = {
        side: Manifest.from_ids([str(index) for index in range(count)])
        for side, count in calibration.counts.items()
    }
    inputs = RunInputs(manifests, dict(calibration.sizes), {})
    layers, chunk_size = choose_sizes(config, matcher, inputs, {}, workers=slots)
    return RunRecord(
        fingerprint={},
        layers=layers,
        requested=tuple(layers),
        chunk_size=chunk_size,
        counts=dict(calibration.counts),
    )


@dataclass(frozen=True)
class _Plan:
    config: RunConfig
    matcher: Matcher
    calibration: Calibration
    record: RunRecord
    machine: Mapping[str, Any]
    workers: int

    @cached_property
    def costs(self) -> Costs:
        return Costs(self.calibration)

    def describe(self, folder: RunPath, outside: float) -> dict[str, Any]:
        """Return the plan as JSON values; `outside` are the seconds to load the package and to start the workers."""
        start = self.costs.start + outside
        files, sizes = Space(self.calibration, self.record).measure()
        if self.config.output.neighbours is not None:
            sizes["tiles"] = float(
                sum(
                    layer_result_bytes(self.config, self.matcher, self.record.layout(layer))
                    for layer in self.record.requested
                )
            )
        simulated = {count: self._simulate(count) for count in sorted({*SCALES, self.workers})}
        here = simulated[self.workers]
        layers = {layer: self._describe_layer(layer) for layer in self.record.requested}
        matching = sum(layer["core_seconds"] for layer in layers.values())
        worker_seconds = sum(layer["pair_seconds"] * layer["pairs"] for layer in layers.values())
        n_images = sum(self.record.counts.values())
        extraction = self.costs.image * n_images
        gpus = int(self.machine["gpus"])
        fixed = start + self.costs.matching_start
        others = self.costs.finishing(sum(layer["pairs"] for layer in layers.values()))
        others += 0.0 if self.config.output.neighbours else self.calibration.picture
        per_worker = extraction / (min(self.workers, gpus) if gpus else self.workers)
        features = self.costs.features(n_images)
        seconds = fixed + others + features + per_worker + here.seconds
        most_disk = largest_disk_bytes(self.config, self.matcher, self.record)
        free = free_bytes(folder)
        worker_memory = largest_worker(self.config, self.matcher, self.record)
        peak = max(psutil.Process().memory_info().rss + self.workers * worker_memory, _peak_memory())
        problems = _problems(most_disk, free, peak, worker_memory, self.machine)
        return {
            "run": str(self.config.run),
            "images": dict(self.record.counts),
            "matcher": {"name": self.matcher.name, **self.matcher.parameters},
            "neighbours": None if self.config.output.neighbours is None else self.config.output.neighbours.k,
            "layers": layers,
            "pairs": sum(layer["pairs"] for layer in layers.values()),
            "tiles": sum(layer["tiles"] for layer in layers.values()),
            "tasks": here.tasks,
            "files": {kind: round(count) for kind, count in files.items()},
            "image_seconds": self.costs.image,
            "extraction_core_hours": 0.0 if gpus else extraction / 3600,
            "matching_core_hours": matching / 3600,
            "core_hours": (matching + (0.0 if gpus else extraction)) / 3600,
            "gpu_hours": (extraction * bool(gpus) + worker_seconds * self.matcher.gpus) / 3600,
            "start_seconds": start,
            "seconds": seconds,
            "seconds_interval": [seconds / self.costs.factor, seconds * self.costs.factor],
            "confidence": CONFIDENCE,
            "stage_seconds": {
                "start": start,
                "images": per_worker,
                "features": features,
                "matching": here.seconds + self.costs.matching_start,
                "finishing": others,
            },
            "scaling": [
                {
                    **asdict(each),
                    "read_bytes_per_worker": each.read_bytes / count,
                    "limit": _find_limit(each, self.costs.storage),
                }
                for count, each in simulated.items()
            ],
            "driver_seconds_per_tile": here.driver_seconds / sum(layer["tiles"] for layer in layers.values()),
            "read_bytes": here.read_bytes,
            "written_bytes": sum(sizes.values()),
            "disk_bytes": sum(sizes.values()),
            "disk_bytes_by_kind": sizes,
            "disk_bytes_at_most": most_disk,
            "disk_free_bytes": free,
            "worker_memory_bytes": worker_memory,
            "peak_memory_bytes": peak,
            "memory_limit_bytes": int(self.machine["memory"]),
            "workers": self.workers,
            "limit": self._find_limit_here(here),
            "fits": not problems,
            "problems": problems,
            "engine": dict(self.machine),
        }

    def _describe_layer(self, layer: str) -> dict[str, Any]:
        sizes, layout = self.record.layers[layer], self.record.layout(layer)
        cost = self.costs.tiles[layer]
        seconds = cost.seconds(layout.n_tiles, layout.total_pairs, 0)
        return {
            "n_tokens": sizes.n_tokens,
            "n_channels": sizes.n_channels,
            "tile": layout.tile_size,
            "tiles": layout.n_tiles,
            "pairs": layout.total_pairs,
            "pair_seconds": seconds / max(layout.total_pairs, 1),
            "core_seconds": seconds * self.matcher.cpus,
        }

    def _find_limit_here(self, here: Simulated) -> str:
        """Return what keeps this machine from being faster: memory, if more workers would have CPUs and GPUs."""
        limit = _find_limit(here, self.costs.storage)
        without = {**self.machine, "memory": 2**63}
        more = _at_once(self.config, self.matcher, without) > self.workers
        return "memory" if more and limit in ("workers", "storage") else limit

    def _simulate(self, workers: int) -> Simulated:
        local = self.machine["engine"] == "local" and workers == self.workers
        return simulate(
            [self._model(layer, sizes) for layer, sizes in self.record.layers.items()],
            workers=workers,
            task_seconds=self.config.matching.task_seconds,
            budget=panel_budget(self.config, self.matcher, self.record),
            message_seconds=LOCAL_MESSAGE_SECONDS if local else TASK_OVERHEAD,
        )

    def _model(self, layer: str, sizes: LayerRecord) -> LayerModel:
        layout = self.record.layout(layer)
        panel_bytes = prepared_bytes(self.config, self.matcher, layout.tile_size, sizes)
        work = LayerWork(layer, layout, layout.wanted(), sizes.pair_seconds, panel_bytes)
        trial = max(self.calibration.trials, key=lambda each: each.n_images)
        features = trial.written["features"].n_bytes / trial.n_images if "features" in trial.written else 0.0
        elements = [each.n_tokens * each.n_channels for each in self.record.layers.values()]
        share = sizes.n_tokens * sizes.n_channels / sum(elements)
        return LayerModel(work, self.costs.tiles[layer], features * share)


def _find_limit(simulated: Simulated, storage: float) -> str:
    """Return what keeps the matching from being faster on so many workers.

    The driver is busy, or workers are idle, as there is too little `work` to share, or they wait for storage: each for
    more than half of the time (`storage` is the last of these shares). Else it is `workers`: more would be faster.
    """
    if simulated.driver_seconds > simulated.seconds / 2:
        return "driver"
    if simulated.busy < 1 / 2:
        return "work"
    return "storage" if storage > 1 / 2 else "workers"


def _problems(
    most_disk: int, free: int | None, peak: int, worker_memory: int, machine: Mapping[str, Any]
) -> list[str]:
    """Return why the run would be refused, or end early."""
    problems = []
    if free is not None and most_disk > free:
        problems.append(
            "the disk may be too small, and the run would be refused: free space, choose another run directory, use "
            "features.dtype: float16, or fewer layers or kernels"
        )
    limit = int(machine["memory"])
    if is_one_machine(machine) and max(peak, worker_memory) > limit:
        problems.append(
            f"the memory is too small: {peak / 2**30:.1f} GiB are needed at the peak, and {limit / 2**30:.1f} GiB are "
            "allowed here: use fewer workers, a smaller matching.worker_memory, or a machine or container with more"
        )
    return problems


def require_core_hours(config: RunConfig, limit: float) -> None:
    """Refuse a run that takes too much time: calibrate, and compare what it would take as a whole, or what is left.

    Raises
    ------
    LimitError
        If the estimate exceeds `limit`, or disk or memory would not suffice.
    InputError, ConfigError, StorageError, WorkError
        As `plan_run`.
    """
    plan = plan_run(config)
    if plan["core_hours"] > limit:
        raise LimitError(
            f"{config.run}: the run takes about {plan['core_hours']:.2g} core-hours, more than --max-core-hours "
            f"{limit:g}; nothing was computed: allow more, or use fewer images, layers or tokens (see semrsm plan)"
        )
    if plan["problems"]:
        raise LimitError("\n".join([f"{config.run}: nothing was computed", *plan["problems"]]))


def check_run(config: RunConfig) -> None:
    """Find what a run would refuse, as far as that takes neither the content of images nor a download.

    Raises
    ------
    InputError, ConfigError
        If there are no such images or features, features do not fit their token counts, their table, each other or the
        matcher, or there is no such model, layer or pretrained weights.
    """
    check_sources(config)
    sides: Mapping[Side, Data | None] = {"images": config.data, "queries": config.queries}
    ready = {side: data for side, data in sides.items() if isinstance(data, FeaturesData)}
    check_features(ready, make_matcher(config.matching.matcher, **config.matching.parameters))
    if config.model is not None:
        check_model(config.model)


def _peak_memory() -> int:
    """Return the largest memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

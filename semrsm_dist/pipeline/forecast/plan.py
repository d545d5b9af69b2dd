"""What a run costs and needs, before it starts: measured on a few small runs of its own images, then scaled up."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import psutil

from semrsm_dist.config.schema import RunConfig, check_sources
from semrsm_dist.data.manifest import Manifest
from semrsm_dist.engine import make_engine
from semrsm_dist.errors import LimitError, counted
from semrsm_dist.features.spec import resolve_precision
from semrsm_dist.fields import Positive
from semrsm_dist.machine import available_cpus
from semrsm_dist.matching.arguments import argument
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.pipeline.forecast.calibration import Calibration, calibrate
from semrsm_dist.pipeline.forecast.costs import Costs, Space
from semrsm_dist.pipeline.forecast.overhead import time_loading, time_workers
from semrsm_dist.pipeline.forecast.simulation import LayerModel, Simulated, Simulation
from semrsm_dist.pipeline.inputs import RunInputs
from semrsm_dist.pipeline.memory import WorkerMemory, allowed_memory
from semrsm_dist.pipeline.sizing import (
    choose_sizes,
    count_workers,
    is_one_machine,
    largest_disk_bytes,
)
from semrsm_dist.plan.blocks import TASK_OVERHEAD, LayerWork
from semrsm_dist.plan.estimate import CONFIDENCE
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.progress import Reporter
from semrsm_dist.store.paths import RunPath, as_run_path, free_bytes, nearest_folder
from semrsm_dist.store.record import LayerRecord, RunRecord

SCALES = (1, 10, 100, 1000)
"""Numbers of workers for which the matching is simulated, beside that of the engine."""

LOCAL_MESSAGE_SECONDS = 2e-4
"""The driver's processor time for a task on threads of its own process; elsewhere it is `TASK_OVERHEAD`."""


def plan_run(config: RunConfig, reporter: Reporter) -> dict[str, Any]:
    """Return what a run would cost and need. Nothing is left behind, and nothing but a calibration is computed.

    These are JSON values: see docs/performance.md for all. `fits` is whether disk and memory suffice, `problems` says
    what does not. Errors as in `run`, if the calibration meets the cause.
    """
    plan, started = _calibrate(config, reporter)
    return plan.describe(started + time_loading(plan.matcher))


def require_core_hours(config: RunConfig, limit: float, reporter: Reporter) -> None:
    """Refuse a run that takes too much time: calibrate, and compare what it would take as a whole, or what is left.

    Raises
    ------
    LimitError
        If the estimate exceeds `limit`, or disk or memory would not suffice.
    ConfigError
        If `limit` is not a positive number.
    InputError, ConfigError, StorageError, WorkError
        As `plan_run`.
    """
    limit = argument("--max-core-hours", limit, Positive, "leave it out for no limit")
    plan, _ = _calibrate(config, reporter)
    if (hours := plan.hours["core_hours"]) > limit:
        raise LimitError(
            f"{config.run}: the run takes about {hours:.2g} core-hours, more than --max-core-hours {limit:g}; nothing "
            "was computed: allow more, or use fewer images, layers or tokens (see semrsm plan)"
        )
    if plan.problems:
        raise LimitError("\n".join([f"{config.run}: nothing was computed", *plan.problems]))


def _calibrate(config: RunConfig, reporter: Reporter) -> tuple[_Plan, float]:
    """Return the plan of a run, and the seconds to start its engine and workers."""
    check_sources(config)
    matcher = config.matching.make_matcher()
    matcher.compile()
    started = time.perf_counter()
    engine = make_engine(config.engine, address=config.address, workers=config.workers)
    starting = time.perf_counter() - started
    try:
        machine = engine.describe()
        slots = count_workers(engine, matcher)
        workers = _at_once(config, matcher, machine)
        starting += time_workers(engine, matcher, workers)
    finally:
        engine.close()
    folder = nearest_folder(as_run_path(config.run))
    contending = min(workers, available_cpus()) if is_one_machine(machine) else 1
    calibration = calibrate(config, matcher, workers=contending, folder=folder, reporter=reporter)
    record = _record(config, matcher, calibration, slots, allowed_memory(config, matcher, machine))
    return _Plan(config, matcher, calibration, record, machine, workers, folder), starting


def _at_once(config: RunConfig, matcher: Matcher, machine: Mapping[str, Any]) -> int:
    """Return how many workers of matching run at once, as slots, GPUs and memory allow."""
    limits = [int(machine["memory"]) // allowed_memory(config, matcher, machine)]
    if matcher.cpus:
        limits.append(int(int(machine["cpus"]) / matcher.cpus))
    if matcher.gpus:
        limits.append(int(int(machine["gpus"]) / matcher.gpus))
    return max(1, min(limits))


def explain_fewer_workers(workers: int, matcher: Matcher, machine: Mapping[str, Any], allowed: int) -> str:
    """Return why fewer workers than CPU slots run at once, with so much memory each; empty if no fewer do."""
    slots, memory, gpus = (int(machine[name]) for name in ("cpus", "memory", "gpus"))
    if workers >= slots:
        return ""
    reasons = []
    if matcher.cpus > 1:
        reasons.append(f"a worker takes {matcher.cpus:g} of them")
    if matcher.gpus:
        reasons.append(f"a worker takes {matcher.gpus:g} of {counted(gpus, 'GPU')}")
    if memory // allowed <= workers:
        reasons.append(
            f"the memory of {memory / 2**30:.1f} GiB has room for no more of {allowed / 2**30:.2g} GiB each; lower "
            "matching.worker_memory for more"
        )
    return f"workers: {workers} at once, fewer than there are CPU slots ({slots}): {' and '.join(reasons)}"


def _record(
    config: RunConfig, matcher: Matcher, calibration: Calibration, slots: int, allowed: int
) -> RunRecord:
    """Return the record that the run would have, as far as sizes go."""
    manifests = {
        side: Manifest.from_ids([str(index) for index in range(count)])
        for side, count in calibration.counts.items()
    }
    inputs = RunInputs(manifests, dict(calibration.sizes), {})
    layers, chunk_size = choose_sizes(config, matcher, inputs, {}, workers=slots, allowed=allowed)
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
    folder: RunPath

    @cached_property
    def costs(self) -> Costs:
        return Costs(self.calibration, self.layouts)

    @property
    def of_worker(self) -> WorkerMemory:
        """The memory of a worker of matching."""
        allowed = allowed_memory(self.config, self.matcher, self.machine)
        return WorkerMemory(self.config, self.matcher, self.record.counts, allowed)

    @property
    def layouts(self) -> dict[str, Layout]:
        return {layer: self.record.layout(layer) for layer in self.record.requested}

    @cached_property
    def layers(self) -> dict[str, dict[str, Any]]:
        """What each layer takes."""
        return {layer: self._describe_layer(layer) for layer in self.record.requested}

    @cached_property
    def simulated(self) -> dict[int, Simulated]:
        """The matching by numbers of workers, those of the engine among them."""
        return {count: self._simulate(count) for count in sorted({*SCALES, self.workers})}

    @property
    def here(self) -> Simulated:
        """The matching on the engine's own workers."""
        return self.simulated[self.workers]

    @property
    def workers_limit(self) -> str:
        """Why fewer workers of matching run at once than the engine has CPU slots for; empty if they do not."""
        allowed = allowed_memory(self.config, self.matcher, self.machine)
        return explain_fewer_workers(self.workers, self.matcher, self.machine, allowed)

    @property
    def gpus(self) -> int:
        """GPUs of the engine."""
        return int(self.machine["gpus"])

    @property
    def extraction(self) -> float:
        """Worker-seconds to scan and extract all images."""
        return self.costs.image * sum(self.record.counts.values())

    def total(self, what: str) -> Any:
        """Return the sum over layers of something that is known of each."""
        return sum(layer[what] for layer in self.layers.values())

    def describe(self, outside: float) -> dict[str, Any]:
        """Return the plan as JSON values; `outside` are the seconds to load the package and to start the workers."""
        return {
            "run": str(self.config.run),
            "images": dict(self.record.counts),
            "model": self.model,
            "matcher": {"name": self.matcher.name, **self.matcher.parameters},
            "neighbours": None if self.config.output.neighbours is None else self.config.output.neighbours.k,
            "layers": self.layers,
            "pairs": self.total("pairs"),
            "tiles": self.total("tiles"),
            "tasks": self.here.tasks,
            "workers": self.workers,
            "workers_limit": self.workers_limit,
            "engine": dict(self.machine),
            **self.hours,
            **self._describe_time(outside),
            **self.space,
            **self.memory,
            "scaling": [
                {
                    **asdict(each),
                    "read_bytes_per_worker": each.read_bytes / each.workers,
                    "limit": _find_limit(each, self.costs.storage),
                }
                for each in self.simulated.values()
            ],
            "driver_seconds_per_tile": self.here.driver_seconds / self.total("tiles"),
            "read_bytes": self.here.read_bytes,
            "limit": self._find_limit_here(),
            "fits": not self.problems,
            "problems": self.problems,
        }

    @property
    def model(self) -> dict[str, Any] | None:
        """The settings of the model that change time or numbers, as far as they are given; None without a model."""
        config = self.config.model
        if config is None:
            return None
        found = config.model_dump(mode="json", exclude={"layers", "actors", "precision"}, exclude_none=True)
        return {**found, "precision": resolve_precision(config.precision, gpu=bool(self.gpus))}

    @property
    def problems(self) -> list[str]:
        """Why the run would be refused, or end early."""
        problems = []
        free, needed = self.space["disk_free_bytes"], self.space["disk_bytes_at_most"]
        limit, peak = self.memory["memory_limit_bytes"], self.memory["peak_memory_bytes"]
        if free is not None and needed > free:
            problems.append(
                "the disk may be too small, and the run would be refused: free space, choose another run directory, "
                "use features.dtype: float16, or fewer layers or kernels"
            )
        if is_one_machine(self.machine) and peak > limit:
            problems.append(
                f"the memory is too small: {peak / 2**30:.1f} GiB are needed at the peak, and {limit / 2**30:.1f} GiB "
                "are allowed here: use fewer workers, a smaller matching.worker_memory, or a machine or container with "
                "more"
            )
        return problems

    @property
    def hours(self) -> dict[str, float]:
        """What is used of CPUs and GPUs: a model runs on the GPUs, if there are any."""
        matching = self.total("core_seconds")
        on_cpus, on_gpus = (0.0, self.extraction) if self.gpus else (self.extraction, 0.0)
        return {
            "image_seconds": self.costs.image,
            "extraction_core_hours": on_cpus / 3600,
            "matching_core_hours": matching / 3600,
            "core_hours": (matching + on_cpus) / 3600,
            "gpu_hours": (on_gpus + self.total("gpu_seconds")) / 3600,
        }

    def _describe_time(self, outside: float) -> dict[str, Any]:
        """Return seconds by stage, their sum, and between what it lies."""
        n_images, picture = sum(self.record.counts.values()), self.calibration.picture
        stages = {
            "start": self.costs.start + outside,
            "images": self.extraction / (min(self.workers, self.gpus) if self.gpus else self.workers),
            "features": self.costs.features(n_images),
            "matching": self.here.seconds + self.costs.matching_start,
            "finishing": self.costs.finishing(self.costs.finished(self.layouts))
            + (picture.seconds if picture else 0.0),
        }
        seconds = sum(stages.values())
        return {
            "start_seconds": stages["start"],
            "seconds": seconds,
            "seconds_interval": [seconds / self.costs.factor, seconds * self.costs.factor],
            "confidence": CONFIDENCE,
            "stage_seconds": stages,
        }

    @cached_property
    def space(self) -> dict[str, Any]:
        """Files and bytes on disk, and what is free in the folder of the run."""
        kept = self.config.output.neighbours
        files, sizes = Space(self.calibration, self.record, 0 if kept is None else kept.k).measure()
        return {
            "files": {kind: round(count) for kind, count in files.items()},
            "written_bytes": sum(sizes.values()),
            "disk_bytes": sum(sizes.values()),
            "disk_bytes_by_kind": sizes,
            # Of a tiny run, descriptions and small files take more than the results.
            "disk_bytes_at_most": max(
                largest_disk_bytes(self.config, self.matcher, self.record), math.ceil(sum(sizes.values()))
            ),
            "disk_free_bytes": free_bytes(self.folder),
        }

    @cached_property
    def memory(self) -> dict[str, int]:
        """Bytes of memory: of a worker, of all at the peak, and what is allowed."""
        worker = self.of_worker.largest(self.record)
        return {
            "worker_memory_bytes": worker,
            "peak_memory_bytes": max(
                psutil.Process().memory_info().rss + self.workers * worker, _peak_memory()
            ),
            "memory_limit_bytes": int(self.machine["memory"]),
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
            "gpu_seconds": seconds * self.matcher.gpus,
        }

    def _find_limit_here(self) -> str:
        """Return what keeps this machine from being faster: memory, if more workers would have CPUs and GPUs."""
        limit = _find_limit(self.here, self.costs.storage)
        without = {**self.machine, "memory": 2**63}
        more = _at_once(self.config, self.matcher, without) > self.workers
        return "memory" if more and limit in ("workers", "storage") else limit

    def _simulate(self, workers: int) -> Simulated:
        local = self.machine["engine"] == "local" and workers == self.workers
        return Simulation(
            [self._model(layer, sizes) for layer, sizes in self.record.layers.items()],
            workers=workers,
            task_seconds=self.config.matching.task_seconds,
            budget=self.of_worker.panel_budget(self.record),
            message_seconds=LOCAL_MESSAGE_SECONDS if local else TASK_OVERHEAD,
        ).run()

    def _model(self, layer: str, sizes: LayerRecord) -> LayerModel:
        layout = self.record.layout(layer)
        panel_bytes = self.of_worker.prepared_bytes(layout.tile_size, sizes)
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


def _peak_memory() -> int:
    """Return the largest memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

"""One session of a run: what all stages share, and how they hand out work."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from semrsm_dist.config.schema import RunConfig
from semrsm_dist.engine.protocol import Engine, Pool, Receipt, Resources, Task, Worker
from semrsm_dist.engine.schedule import Failure, Schedule
from semrsm_dist.engine.scheduler import run_schedule
from semrsm_dist.errors import printable
from semrsm_dist.pipeline.pulse import Pulse
from semrsm_dist.progress import Reporter
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.inventory import Inventory
from semrsm_dist.store.record import Side

log = logging.getLogger(__name__)


class Estimate(NamedTuple):
    """Estimated durations: of a successful receipt's work, and of all tasks together."""

    effort: Callable[[Receipt], float]
    left: float


@dataclass
class Outcome:
    """The outcome of a stage's tasks."""

    failures: list[Failure] = field(default_factory=list)
    """The units that were set aside."""
    values: list[tuple[Hashable, Any]] = field(default_factory=list)
    """Units and the values of their receipts, if there are any."""


@dataclass
class Session:
    """What the stages share."""

    config: RunConfig
    directory: RunDirectory
    """The run directory, locked by this process."""
    engine: Engine
    """Where the work runs."""
    reporter: Reporter
    """Where progress is reported."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Set to end the session between two units of work."""
    discarded_features: frozenset[tuple[Side, str]] = frozenset()
    """Side and layer of features that are there, but will be made again."""
    discarded_manifests: frozenset[Side] = frozenset()
    """Sides whose manifest is there, but will be made again."""
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """How long each stage took."""
    counts: dict[str, dict[str, float]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(float))
    )
    """For each stage the sums of its receipts' counts, and how many units were `found` and `computed`."""
    warnings: list[str] = field(default_factory=list)
    """All warnings of the session, for its summary."""

    def __post_init__(self) -> None:
        self.pulse = Pulse(self.directory)

    @cached_property
    def inventory(self) -> Inventory:
        """The chunks of the run when its last session ended: they need not be read again while they are as then."""
        return Inventory.read(self.directory)

    def warn(self, message: str) -> None:
        """Record a non-fatal warning for the summary, and log it: so it is seen also where nothing is reported."""
        message = printable(message)
        self.warnings.append(message)
        log.warning(message)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of a block to a stage, which begins only if the run is still this driver's."""
        self.directory.require_held()
        self.pulse.begin(stage)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started

    def start_tasks(self, worker: Worker, *, cpus: float = 1) -> Pool:
        """Return a pool of workers, each with the configured memory."""
        return self.engine.start_tasks(worker, Resources(cpus, memory=self.config.matching.cpu_memory))

    def work_on_each(
        self, stage: str, worker: Worker, units: Sequence[Hashable], *, unit: str
    ) -> list[Failure]:
        """Run a worker on each unit, a task each, and return those that were set aside; `unit` as in `work`."""
        outcome = self.work(
            stage,
            lambda: self.start_tasks(worker),
            [Task(units=(each,)) for each in units],
            unit=unit,
            total=len(units),
        )
        self.counts[stage]["computed"] = self.counts[stage][unit]
        return outcome.failures

    def work(
        self,
        stage: str,
        start_pool: Callable[[], Pool],
        tasks: Iterable[Task],
        *,
        unit: str,
        total: int,
        done: int = 0,
        estimate: Estimate | None = None,
        recover: Callable[[Any], Receipt | None] = lambda unit: None,
    ) -> Outcome:
        """Run the tasks of a stage, with progress.

        Parameters
        ----------
        stage
            Name of the stage; its receipts' counts add up under it.
        start_pool
            Makes the pool; called inside the timed part.
        tasks
            What to do; made as workers ask for it.
        unit
            Unit of the progress; one of the receipts' counts.
        total, done
            Units of the whole stage, and how many an earlier session finished.
        estimate
            What the time left is estimated from, if units differ.
        recover
            Returns the receipt of a unit whose result is in the store, though its worker was lost before it said so.
        """
        matching = self.config.matching
        outcome, schedule = Outcome(), Schedule(tasks, matching.attempts, matching.stall_seconds)
        left = None if estimate is None else estimate.left
        with self.timed(stage), self.reporter.stage(stage, total, unit, done, effort=left) as shown:
            # `timed` has begun the stage, but without its tasks, of which the heartbeat tells from here on.
            watch = self.pulse.begin(stage, unit, total, done, left, schedule)
            pool = start_pool()

            def receive(receipt: Receipt) -> None:
                if receipt.error is not None:
                    watch.fail()
                    return
                for name, count in receipt.counts.items():
                    self.counts[stage][name] += count
                if receipt.value is not None:
                    outcome.values.append((receipt.unit, receipt.value))
                amount = int(receipt.counts[unit])
                work = None if estimate is None else estimate.effort(receipt)
                watch.receive(receipt, amount, work)
                shown.advance(amount, work)

            def look() -> None:
                self.directory.require_held()
                self.pulse.look()
                shown.tick()

            outcome.failures = run_schedule(
                pool, schedule, on_receipt=receive, on_idle=look, recover=recover, stop=self.stop
            )
            if not self.stop.is_set():
                pool.close()
        if self.stop.is_set():
            raise KeyboardInterrupt
        for failure in outcome.failures:
            self.directory.append_event("failed", stage=stage, unit=str(failure.unit), error=failure.error)
        return outcome

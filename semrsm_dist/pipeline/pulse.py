"""What a session says to those who watch it: written into the run at intervals, whatever the number of tiles."""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections import deque
from dataclasses import dataclass

from semrsm_dist.engine.protocol import Receipt
from semrsm_dist.engine.schedule import Schedule
from semrsm_dist.errors import hide_secrets
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.heartbeat import Heartbeat, SetAside, StageProgress, WorkerSpeed

BEAT_SECONDS = 2.0
"""Time between two heartbeats, unless `LARGEST_SHARE` makes it longer."""

LARGEST_SHARE = 0.01
"""Largest share of the time that writing heartbeats may take, as on slow storage."""

RECENT_SECONDS = 120.0
"""The recent rate is that of this much time."""

MOST_SHOWN = 5
"""Slow workers, and units set aside, that a heartbeat names."""

LONGEST_ERROR = 500


class Pulse:
    """The heartbeat of a session, which is kept in the run."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._beat = Heartbeat(
            driver=f"process {os.getpid()} on {socket.gethostname()}", started=time.time(), time=time.time()
        )
        self._stage: StageWatch | None = None
        self._due = 0.0

    def begin(
        self,
        name: str,
        unit: str = "",
        total: int = 0,
        done: int = 0,
        left: float | None = None,
        schedule: Schedule | None = None,
    ) -> StageWatch:
        """Begin a stage; parameters as in `Reporter.stage`, and the schedule of its tasks."""
        self._stage = StageWatch(name, unit, total, done, left, schedule)
        self._write()
        return self._stage

    def look(self) -> None:
        """Write a heartbeat if one is due; called about once a second."""
        if time.monotonic() >= self._due:
            self._write()

    def end(self, error: BaseException | None) -> None:
        """Say how the session has ended."""
        has_failed = isinstance(error, Exception)
        state = "finished" if error is None else "failed" if has_failed else "interrupted"
        reason = hide_secrets(str(error))[:LONGEST_ERROR] if has_failed else ""
        self._beat = self._beat.model_copy(update={"state": state, "reason": reason})
        self._write()

    def _write(self) -> None:
        before = time.monotonic()
        stage = None if self._stage is None else self._stage.progress()
        self._directory.write_heartbeat(self._beat.model_copy(update={"time": time.time(), "stage": stage}))
        took = time.monotonic() - before
        self._due = before + max(BEAT_SECONDS, took / LARGEST_SHARE)


@dataclass
class _Worker:
    effort: float = 0.0
    seconds: float = 0.0
    last: float = 0.0


class StageWatch:
    """A stage: what was done in it, how fast, and by whom."""

    def __init__(
        self, name: str, unit: str, total: int, done: int, left: float | None, schedule: Schedule | None
    ) -> None:
        self._name, self._unit, self._total, self._before = name, unit, total, done
        self._done = done
        self._effort, self._left = 0.0, float(total - done) if left is None else left
        self._schedule = schedule
        self._failures = 0
        self._workers: dict[str, _Worker] = {}
        self._started, self._heard = time.time(), 0.0
        self._clock = time.monotonic()
        self._marks: deque[tuple[float, int, float]] = deque([(self._clock, done, 0.0)])

    def receive(self, receipt: Receipt, amount: int, effort: float | None) -> None:
        """Count a receipt of finished units, and the effort that they were."""
        work = float(amount) if effort is None else effort
        self._done += amount
        self._effort += work
        self._heard = time.time()
        if receipt.place:
            worker = self._workers.setdefault(receipt.place, _Worker())
            worker.effort += work
            worker.seconds += receipt.seconds
            worker.last = self._heard

    def fail(self) -> None:
        """Count a receipt of a unit that failed."""
        self._failures += 1

    def progress(self) -> StageProgress:
        """Return what is known of the stage now."""
        now = time.monotonic()
        self._marks.append((now, self._done, self._effort))
        while len(self._marks) > 2 and now - self._marks[1][0] >= RECENT_SECONDS:
            self._marks.popleft()
        since, done, effort = self._marks[0]
        span, whole = max(now - since, 1e-3), max(now - self._clock, 1e-3)
        pace = (self._effort - effort) / span or self._effort / whole
        failures = self._schedule.failures if self._schedule else []
        workers = self._schedule.workers(now) if self._schedule else set()
        return StageProgress(
            name=self._name,
            unit=self._unit,
            started=self._started,
            heard=self._heard or None,
            done=self._done,
            before=self._before,
            total=self._total,
            rate=(self._done - done) / span if self._heard else None,
            overall_rate=(self._done - self._before) / whole if self._heard else None,
            seconds_left=max(self._left - self._effort, 0.0) / pace if pace > 0 else None,
            failures=self._failures,
            retries=self._schedule.retries if self._schedule else 0,
            n_set_aside=len(failures),
            set_aside=tuple(
                SetAside(unit=str(one.unit), error=_last_line(one.error)) for one in failures[-MOST_SHOWN:]
            ),
            n_workers=len(workers),
            slowest=self._slowest(workers),
        )

    def _slowest(self, workers: set[str]) -> tuple[WorkerSpeed, ...]:
        """Return the slowest of those workers that are still there."""
        speeds = {
            place: worker.effort / worker.seconds
            for place, worker in self._workers.items()
            if worker.seconds > 0 and place in workers
        }
        if len(speeds) < 2:
            return ()
        usual = statistics.median(speeds.values())
        return tuple(
            WorkerSpeed(place=place, speed=speeds[place] / usual, last=self._workers[place].last)
            for place in sorted(speeds, key=lambda place: speeds[place])[:MOST_SHOWN]
            if usual > 0
        )


def _last_line(error: str) -> str:
    return hide_secrets(error.strip().rpartition("\n")[2])[:LONGEST_ERROR]

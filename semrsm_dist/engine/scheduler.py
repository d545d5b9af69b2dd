"""Drive a pool through a list of tasks: bounded in flight, with retries; a bad unit never harms others."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from semrsm_dist.engine.protocol import Begun, Event, Finished, Pool, Progress, Receipt, Task
from semrsm_dist.engine.schedule import Failure, Schedule
from semrsm_dist.errors import ConfigError, StorageError

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""Longest wait for an event before the progress bar and the stop event are checked."""

LOOK_SECONDS = 2.0
"""Time between two searches for overdue tasks."""


def run_tasks(
    pool: Pool,
    tasks: Iterable[Task],
    *,
    attempts: int = 3,
    on_receipt: Callable[[Receipt], None],
    on_idle: Callable[[], None] = lambda: None,
    stop: threading.Event | None = None,
) -> list[Failure]:
    """Run every unit of every task until it is done or has failed `attempts` times.

    Tasks are submitted in the order given, at most ``pool.capacity()`` at a time. A unit that has no good
    receipt when its task ends is tried again alone, after the given tasks, so that a unit which kills its
    worker affects no other unit. A task of which nothing is heard for several times as long as it should take is
    reported, and tried elsewhere when nothing else is left: the first good receipt of a unit counts. Every unit ends in
    exactly one of three ways: one good receipt, one `Failure`, or not at all because the run was stopped.

    Parameters
    ----------
    pool : Pool
        Where the tasks run. Left open on return; cancelled and closed if anything is raised, `stop` is set, or overdue
        tasks are still in flight that nothing waits for.
    tasks : iterable of Task
        Consumed lazily; no unit may occur in two of them.
    attempts : int
        Total number of times a unit is tried before it is set aside.
    on_receipt : callable
        Called in this thread with each receipt, of one unit or packed: each unit once when it is done, and once for
        each time a worker reports that it failed.
    on_idle : callable
        Called in this thread after each poll of the pool, at least about once a second.
    stop : threading.Event, optional
        When set, nothing more is submitted, what is in flight is cancelled, and the failures so far returned.

    Returns
    -------
    list of Failure
        The units set aside, in the order in which they were given up.

    Raises
    ------
    StorageError
        If a receipt is fatal: the store refuses writes or is not there, so every other unit would fail as well.
    ConfigError
        If the pool returns what no pool may.
    ValueError
        If `attempts` is below 1.
    """
    schedule = Schedule(tasks, attempts)
    looked = time.monotonic()
    try:
        while schedule.has_work:
            _submit(pool, schedule)
            for event in _collect(pool):
                _handle(event, schedule, on_receipt)
            _raise_if_fatal(schedule.fatal)
            if time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
                _report_overdue(pool, schedule)
            on_idle()
            if stop is not None and stop.is_set():
                break
        if schedule.abandoned or (stop is not None and stop.is_set()):
            pool.close(cancel=True)
    except BaseException:  # an interrupt above all: leave no worker behind, then let it through
        pool.close(cancel=True)
        raise
    return schedule.failures


def _submit(pool: Pool, schedule: Schedule) -> None:
    """Fill the pool."""
    capacity = pool.capacity()
    if type(capacity) is not int or capacity < 0:
        raise _misbehaved(pool, "capacity", capacity, "a whole number of at least 0")
    free = capacity - schedule.in_flight
    while free > 0 and (task := schedule.next_task(time.monotonic())):
        pool.submit(task)
        free -= 1


def _collect(pool: Pool) -> list[Event]:
    """Return what has happened, checked, as pools come with engines of other distributions."""
    events = pool.collect(POLL_SECONDS)
    if not isinstance(events, list):
        raise _misbehaved(pool, "collect", events, "a list of events")
    for event in events:
        is_event = isinstance(event, Begun | Progress | Finished) and isinstance(event.task, Task)
        if not is_event or (isinstance(event, Progress) and not isinstance(event.receipt, Receipt)):
            raise _misbehaved(pool, "collect", event, "events that hold the task, and of progress a receipt")
    return events


def _misbehaved(pool: Pool, method: str, found: object, wanted: str) -> ConfigError:
    kind = type(pool)
    return ConfigError(
        f"{kind.__module__}.{kind.__qualname__}.{method} returned {found!r:.200}, but must return {wanted}; what is "
        "done is kept: correct it, or choose another engine"
    )


def _handle(event: Event, schedule: Schedule, on_receipt: Callable[[Receipt], None]) -> None:
    """Tell the schedule of one event of the pool."""
    now = time.monotonic()
    if isinstance(event, Finished):
        schedule.finish(event.task, event.error, now)
    elif isinstance(event, Begun):
        schedule.begin(event.task, event.place, now - event.seconds)
    else:
        receipt = schedule.receive(event.task, event.receipt, now)
        if receipt is not None:
            on_receipt(receipt)


def _report_overdue(pool: Pool, schedule: Schedule) -> None:
    now = time.monotonic()
    idle = 2 * schedule.in_flight <= pool.capacity()
    for flight, expected in schedule.find_overdue(now, idle=idle):
        log.warning(
            "%s (%d units in all) on %s: no result for %.0f s, where the task should take %.0f s; it is tried "
            "elsewhere when nothing else is left to hand out",
            flight.task.units[0],
            len(flight.task.units),
            flight.place or "a worker that has not said that it began",
            now - flight.heard,
            expected,
        )


def _raise_if_fatal(fatal: Receipt | None) -> None:
    """Raise the first error that would affect every other unit."""
    if fatal is not None:
        raise StorageError(
            f"the run was stopped at {fatal.unit}, as every other unit of work would have failed too; what is done "
            f"is kept. {fatal.error}"
        )

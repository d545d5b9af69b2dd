"""Drive a pool through a list of tasks: bounded in flight, with retries; a bad unit never harms others."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator

from semrsm_dist.engine.protocol import Begun, Event, Finished, Pool, Progress, Receipt, Task
from semrsm_dist.engine.schedule import Failure, Flight, Schedule
from semrsm_dist.errors import ConfigError, StorageError, WorkError

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""Longest wait for an event before the progress bar and the stop event are checked."""

LOOK_SECONDS = 2.0
"""Time between two searches for tasks that are overdue or hang."""

MOST_NAMED = 5
"""Tasks that are named of those that become overdue at the same time."""


def run_tasks(
    pool: Pool,
    tasks: Iterable[Task],
    *,
    attempts: int = 3,
    stall_seconds: float = math.inf,
    on_receipt: Callable[[Receipt], None],
    on_idle: Callable[[], None] = lambda: None,
    recover: Callable[[Hashable], Receipt | None] = lambda unit: None,
    stop: threading.Event | None = None,
) -> list[Failure]:
    """Run every unit of every task until it is done or has failed `attempts` times.

    Tasks are submitted in the order given, at most ``pool.capacity()`` at a time. A unit that has no good
    receipt when its task ends is tried again alone, after the given tasks, so that a unit which kills its
    worker affects no other unit. A task of which nothing is heard for several times as long as it should take is
    reported, and tried elsewhere when nothing else is left: the first good receipt of a unit counts. One that hangs is
    given up and its worker replaced: that was one attempt. Every unit ends in exactly one of three ways: one good
    receipt, one `Failure`, or not at all because the run was stopped.

    Parameters
    ----------
    pool : Pool
        Where the tasks run. Left open on return; cancelled and closed if anything is raised, `stop` is set, or overdue
        tasks are still in flight that nothing waits for.
    tasks : iterable of Task
        Consumed lazily; no unit may occur in two of them.
    attempts : int
        Total number of times a unit is tried before it is set aside.
    stall_seconds : float
        A task hangs if nothing has come of it for this long, and for ten times as long as it should take.
    on_receipt : callable
        Called in this thread with each receipt, of one unit or packed: each unit once when it is done, and once for
        each time a worker reports that it failed.
    on_idle : callable
        Called in this thread after each poll of the pool, at least about once a second.
    recover : callable
        Called in this thread with each unit that a lost worker had: returns a receipt if the unit's result is in the
        store nevertheless, so that it is not computed again.
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
    WorkError
        If all workers have been replaced so often that nothing can be expected of others.
    ValueError
        If `attempts` is below 1.
    """
    schedule = Schedule(tasks, attempts, stall_seconds)
    return run_schedule(pool, schedule, on_receipt=on_receipt, on_idle=on_idle, recover=recover, stop=stop)


def run_schedule(
    pool: Pool,
    schedule: Schedule,
    *,
    on_receipt: Callable[[Receipt], None],
    on_idle: Callable[[], None],
    recover: Callable[[Hashable], Receipt | None],
    stop: threading.Event | None,
) -> list[Failure]:
    """Do `run_tasks` by a schedule that was just made, which the caller may look at meanwhile."""
    looked = time.monotonic()
    try:
        while schedule.has_work:
            _submit(pool, schedule)
            for event in _collect(pool):
                _handle(event, schedule, on_receipt, recover)
            _raise_if_fatal(schedule.fatal)
            if time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
                _report_overdue(pool, schedule)
                for task, why in _find_hung(pool, schedule):
                    _recover(task, schedule, on_receipt, recover)
                    schedule.give_up(task, why, looked)
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


def _handle(
    event: Event,
    schedule: Schedule,
    on_receipt: Callable[[Receipt], None],
    recover: Callable[[Hashable], Receipt | None],
) -> None:
    """Report one event of the pool to the schedule."""
    now = time.monotonic()
    if isinstance(event, Finished):
        if event.system:
            _recover(event.task, schedule, on_receipt, recover)
        schedule.finish(event.task, event.error, now, is_lost=event.system)
    elif isinstance(event, Begun):
        schedule.begin(event.task, event.place, now - event.seconds, event.stack)
    else:
        receipt = schedule.receive(event.task, event.receipt, now)
        if receipt is not None:
            on_receipt(receipt)


def _recover(
    task: Task,
    schedule: Schedule,
    on_receipt: Callable[[Receipt], None],
    recover: Callable[[Hashable], Receipt | None],
) -> None:
    """Count the units of a lost worker that are done although it did not report them."""
    for unit in schedule.missing(task):
        receipt = recover(unit)
        if receipt is not None and schedule.receive(task, receipt, time.monotonic()) is not None:
            on_receipt(receipt)


def _report_overdue(pool: Pool, schedule: Schedule) -> None:
    now = time.monotonic()
    overdue = schedule.find_overdue(now, idle=2 * schedule.in_flight <= pool.capacity())
    for flight, expected in overdue[:MOST_NAMED]:
        log.warning(
            "%s; it is tried elsewhere when nothing else is left to hand out",
            _describe(flight, expected, flight.stack, now),
        )
    if len(overdue) > MOST_NAMED:
        log.warning("%d more tasks are overdue", len(overdue) - MOST_NAMED)


def _find_hung(pool: Pool, schedule: Schedule) -> Iterator[tuple[Task, str]]:
    """Have the workers of tasks that hang replaced, and yield each task with what is known of it."""
    now = time.monotonic()
    for flight, expected in schedule.find_hung(now):
        what = _describe(flight, expected, pool.give_up(flight.task) or flight.stack, now)
        log.warning("%s; it hangs, and its worker is replaced", what)
        yield flight.task, f"it hangs: {what}"
        if schedule.hung_in_a_row > schedule.attempts * max(1, pool.capacity()):
            raise WorkError(
                f"the run was stopped, as {schedule.hung_in_a_row} tasks in a row hang, the last being {what}. What is "
                "done is kept: look at what they wait for, such as a file system that does not answer, then start the "
                "run's command"
            )


def _describe(flight: Flight, expected: float, stack: str, now: float) -> str:
    """Return in words that nothing has come of a task, and where it is."""
    more, place = len(flight.batch.missing) - 1, flight.place or "a worker that has not said that it began"
    return (
        f"{flight.unit}{f' (and {more} more units of its task)' if more > 0 else ''} on {place}: no result for "
        f"{now - flight.heard:.0f} s, where the task should take {expected:.0f} s"
        f"{f'; it is in {stack}' if stack else ''}"
    )


def _raise_if_fatal(fatal: Receipt | None) -> None:
    """Raise the first error that would affect every other unit."""
    if fatal is not None:
        raise StorageError(
            f"the run was stopped at {fatal.unit}, as every other unit of work would have failed too; what is done "
            f"is kept. {fatal.error}"
        )

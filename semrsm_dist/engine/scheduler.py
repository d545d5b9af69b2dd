"""Drive a pool through a list of tasks: bounded in flight, with retries; a bad unit never harms others."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass

from semrsm_dist.engine.protocol import Finished, Pool, Progress, Receipt, Task
from semrsm_dist.errors import StorageError

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5  # longest wait for an event before the progress bar and the stop event are checked


@dataclass(frozen=True)
class Failure:
    """A unit that was set aside: its last error and how often it was tried."""

    unit: Hashable
    error: str
    attempts: int


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
    worker affects no other unit. Every unit ends in exactly one of three ways: one good receipt, one
    `Failure`, or not at all because the run was stopped.

    Parameters
    ----------
    pool : Pool
        Where the tasks run. Left open on return, cancelled and closed if anything is raised or `stop` is set.
    tasks : iterable of Task
        Consumed lazily; no unit may occur in two of them.
    attempts : int
        Total number of times a unit is tried before it is set aside.
    on_receipt : callable
        Called in this thread with each receipt: once per unit that is done, and once for each time a worker
        reports that a unit failed.
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
    ValueError
        If `attempts` is below 1.
    """
    if attempts < 1:
        raise ValueError(f"attempts={attempts}: a unit has to be tried at least once")
    run = _Run(pool, iter(tasks), attempts, on_receipt)
    try:
        while run.has_work():
            run.submit()
            for event in pool.collect(POLL_SECONDS):
                run.handle(event)
            run.raise_if_fatal()
            on_idle()
            if stop is not None and stop.is_set():
                pool.close(cancel=True)
                break
    except BaseException:  # an interrupt above all: leave no worker behind, then let it through
        pool.close(cancel=True)
        raise
    return run.failures


class _Run:
    """The state of one `run_tasks` call."""

    def __init__(
        self, pool: Pool, tasks: Iterator[Task], attempts: int, on_receipt: Callable[[Receipt], None]
    ) -> None:
        self.failures: list[Failure] = []
        self.in_flight: dict[
            Task, dict[Hashable, str | None]
        ] = {}  # units without a good receipt, last error
        self._pool = pool
        self._tasks = tasks
        self._next = next(tasks, None)
        self._retries: deque[Task] = deque()
        self._attempts = attempts
        self._tried: dict[Hashable, int] = {}  # failed attempts of the units that are still to be done
        self._on_receipt = on_receipt
        self._fatal: Receipt | None = None

    def has_work(self) -> bool:
        """Return whether anything is in flight or still to be submitted."""
        return bool(self.in_flight or self._next or self._retries)

    def submit(self) -> None:
        """Fill the pool: the given tasks in their order, then the units to try again."""
        while len(self.in_flight) < self._pool.capacity() and (self._next or self._retries):
            task = self._next or self._retries.popleft()
            if task is self._next:
                self._next = next(self._tasks, None)
            self.in_flight[task] = dict.fromkeys(task.units)
            self._pool.submit(task)

    def handle(self, event: Progress | Finished) -> None:
        """Record one event of the pool."""
        missing = self.in_flight.get(event.task)
        if missing is None:
            log.debug("ignored an event of a task that is over: %r", event)
        elif isinstance(event, Finished):
            del self.in_flight[event.task]
            for unit, error in missing.items():
                self._retry(unit, error or event.error or "the worker ended without a receipt for this unit")
        elif event.receipt.unit in missing:
            if event.receipt.error is None:
                del missing[event.receipt.unit]
                self._tried.pop(event.receipt.unit, None)
            else:
                missing[event.receipt.unit] = event.receipt.error
                self._fatal = event.receipt if event.receipt.fatal else self._fatal
            self._on_receipt(event.receipt)

    def raise_if_fatal(self) -> None:
        """Raise the first error that would affect every other unit."""
        if self._fatal is not None:
            raise StorageError(
                f"the run was stopped at {self._fatal.unit!r}, as every other unit of work would have failed too; "
                f"what is done is kept. {self._fatal.error}"
            )

    def _retry(self, unit: Hashable, error: str) -> None:
        tried = self._tried.pop(unit, 0) + 1
        reason = error.strip().rpartition("\n")[2]
        if tried < self._attempts:
            log.info("%r failed, attempt %d of %d: %s", unit, tried, self._attempts, reason)
            self._tried[unit] = tried
            self._retries.append(Task((unit,)))
        else:
            log.warning("%r is set aside after %d attempts: %s", unit, tried, reason)
            self.failures.append(Failure(unit, error, tried))

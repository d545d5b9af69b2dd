"""Which task comes next: retries, second tries of overdue tasks, and what is set aside. Pure: no pool, no clock.

`semrsm_dist.engine.scheduler.run_tasks` carries out what a `Schedule` decides, and tells it what happened and when.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from semrsm_dist.engine.protocol import Receipt, Task
from semrsm_dist.errors import counted

log = logging.getLogger(__name__)

OVERDUE_FACTOR = 4.0
"""A task is overdue when nothing has come of it for this many times as long as the whole task should take, and for at
least `OVERDUE_SECONDS`."""

OVERDUE_SECONDS = 30.0
"""A task is not overdue before this long, however short it should be."""

HUNG_FACTOR = 10.0
"""A task hangs when nothing has come of it for this many times as long as it should take, and for a set time."""

QUIET_SECONDS = 60.0
"""A worker without a task that has not been heard of for so long is counted no longer: it may be gone."""

MOST_NAMED = 20
"""Units that are set aside with a warning each; of more of them, the number is reported at each power of ten."""

MOST_RETRIES = 1000
"""Units to try again that may wait for the end of the given tasks; more of them come first."""


@dataclass(frozen=True)
class Failure:
    """A unit that was set aside: its last error and how often it was tried."""

    unit: Hashable
    error: str
    attempts: int


@dataclass(eq=False)
class _Batch:
    """The units of a task, and of further tries of it elsewhere."""

    missing: dict[Hashable, str | None]  # units without a good receipt, and their last error
    cost: float  # of one unit, on average
    tries: int = 0
    hung: int = 0  # tries that were given up
    last_begun: float = -math.inf  # when the last of the tries that a worker has begun was handed out
    flights: list[Flight] = field(default_factory=list)


@dataclass(eq=False)
class Flight:
    """A task that was handed out and has not ended."""

    task: Task
    batch: _Batch
    submitted: float
    """When it was handed out, in seconds."""
    heard: float
    """When something was last heard of it."""
    begun: float | None = None
    """When a worker began it, as far as is known."""
    place: str | None = None
    """The worker that has it, as far as is known."""
    stack: str = ""
    """Where in its code the worker was when that was last heard."""
    is_overdue: bool = False
    """Whether it was found overdue, and nothing has been heard of it since."""
    is_abandoned: bool = False
    """Whether nothing waits for it, since another try has done its units."""

    @property
    def unit(self) -> Hashable:
        """The unit that the worker is at: the first that is not done."""
        return next(iter(self.batch.missing), self.task.units[0])


class Schedule:
    """Decides what is handed out next, and keeps account of each unit.

    Times are seconds of any clock that only goes forward. Every unit ends in exactly one of two ways: with one good
    receipt, or as a `Failure`. Memory is bounded by what is in flight, waits to be tried again, or has failed. Raises
    ValueError if `attempts` is below 1.

    Parameters
    ----------
    tasks
        What to do, consumed lazily; no unit may occur in two of them.
    attempts
        Total number of times a unit is tried before it is set aside.
    stall_seconds
        Seconds after which a task can count as hung if nothing has come of it.

    Attributes
    ----------
    attempts
        As given.
    failures
        The units set aside, in the order in which they were given up.
    hung_in_a_row
        Number of tasks that were given up as hung since a unit was last done.
    fatal
        The last receipt of an error that would affect every other unit, if there was one.
    retries
        Number of times that units which had failed were put in line again.
    duplicates
        Number of units that were done twice, as a second try of an overdue task was late or needless.
    """

    def __init__(self, tasks: Iterable[Task], attempts: int = 3, stall_seconds: float = math.inf) -> None:
        if attempts < 1:
            raise ValueError(f"attempts={attempts}: a unit has to be tried at least once")
        self.failures: list[Failure] = []
        self.fatal: Receipt | None = None
        self.retries = self.duplicates = 0
        self.hung_in_a_row = 0
        self.attempts = attempts
        self._stall_seconds = stall_seconds
        self._tasks = iter(tasks)
        self._next = next(self._tasks, None)
        self._retries: deque[Task] = deque()
        self._tried: dict[Hashable, int] = {}  # failed attempts of the units that are still to be done
        self._flights: dict[int, Flight] = {}  # by the identity of the task, which is in its flight
        self._overdue: deque[Flight] = deque()  # to be tried elsewhere
        # When something last came from each worker that is not known to be lost.
        self._heard: dict[str, float] = {}
        self._abandoned = 0  # tasks in flight whose units another one has done
        self._cost = self._seconds = 0.0  # of tasks that ended, recent ones counting more

    @property
    def in_flight(self) -> int:
        """Number of tasks that were handed out and have not ended."""
        return len(self._flights)

    @property
    def abandoned(self) -> int:
        """Number of tasks in flight that nothing waits for: all their units were done elsewhere."""
        return self._abandoned

    @property
    def has_work(self) -> bool:
        """Whether anything is to be handed out or waited for."""
        return bool(self._next or self._retries or len(self._flights) > self._abandoned)

    def workers(self, now: float) -> set[str]:
        """Return the workers that have a task or were heard of lately; not those that are known to be lost."""
        at_work = {flight.place for flight in self._flights.values() if flight.place}
        self._heard = {
            place: heard
            for place, heard in self._heard.items()
            if place in at_work or now - heard <= QUIET_SECONDS
        }
        return at_work | self._heard.keys()

    def next_task(self, now: float) -> Task | None:
        """Return what to hand out: the given tasks in order, then units to try again, then overdue tasks once more."""
        if self._next and len(self._retries) < MOST_RETRIES:
            task = self._next
            self._next = next(self._tasks, None)
        elif self._retries:
            task = self._retries.popleft()
        else:
            return self._second_try(now)
        cost = task.cost / max(len(task.units), 1)
        self._hand_out(task, _Batch(dict.fromkeys(task.units), cost), now)
        return task

    def begin(self, task: Task, place: str, begun: float, stack: str = "") -> None:
        """Note which worker has begun a task, and when; and where in its code it is, if it has been silent for long."""
        flight = self._flights.get(id(task))
        if flight is not None:
            self._note_begun(flight, begun)
            flight.place, flight.stack = place, stack
            flight.heard = max(flight.heard, begun)

    def receive(self, task: Task, receipt: Receipt, now: float) -> Receipt | None:
        """Note a receipt, and return what of it is new; None if nothing is.

        If some units of a packed receipt were done elsewhere before, its counts are reduced in proportion.
        """
        flight = self._flights.get(id(task))
        if flight is None:
            return None
        self._hear(flight, receipt.place, now)
        missing = flight.batch.missing
        new = tuple(unit for unit in receipt.units if unit in missing)
        if receipt.error is None and flight.batch.tries > 1:
            self.duplicates += len(receipt.units) - len(new)
        if not new:
            return None
        for unit in new:
            if receipt.error is None:
                self.hung_in_a_row = 0
                del missing[unit]
                self._tried.pop(unit, None)
            else:
                missing[unit] = receipt.error
        if receipt.error is not None and receipt.fatal:
            self.fatal = receipt
        if not missing:
            for other in flight.batch.flights:
                if other is not flight and not other.is_abandoned:
                    other.is_abandoned = True
                    self._abandoned += 1
        if len(new) == len(receipt.units):
            return receipt
        share = len(new) / len(receipt.units)
        counts = {name: count * share for name, count in receipt.counts.items()}
        seconds = receipt.seconds * share
        return dataclasses.replace(receipt, unit=new[0], also=new[1:], counts=counts, seconds=seconds)

    def finish(self, task: Task, error: str | None, now: float, *, is_lost: bool = False) -> None:
        """Note that a task has ended, perhaps as its worker was lost: units not done are tried again, or set aside."""
        flight = self._flights.pop(id(task), None)
        if flight is None:
            return
        if is_lost and flight.place:
            self._heard.pop(flight.place, None)
        batch = flight.batch
        batch.flights.remove(flight)
        self._abandoned -= flight.is_abandoned
        if error is None:
            began = flight.submitted if flight.begun is None else flight.begun
            self._cost = 0.99 * self._cost + task.cost
            self._seconds = 0.99 * self._seconds + now - began
        if batch.flights:
            return  # another try of it goes on
        for place, (unit, reason) in enumerate(batch.missing.items()):
            tries = max(1, batch.hung) if place == 0 else 1  # all that hung were at the first of them
            self._retry(
                unit, reason or error or "the worker ended without a receipt for this unit", batch.cost, tries
            )

    def give_up(self, task: Task, error: str, now: float) -> None:
        """Note that a task hangs, and that nothing more is expected of it."""
        flight = self._flights.get(id(task))
        if flight is not None:
            flight.batch.hung += 1
            self.hung_in_a_row += 1
            self.finish(task, error, now, is_lost=True)

    def missing(self, task: Task) -> tuple[Hashable, ...]:
        """Return the units of a task in flight without a good receipt."""
        flight = self._flights.get(id(task))
        return () if flight is None else tuple(flight.batch.missing)

    def find_hung(self, now: float) -> list[tuple[Flight, float]]:
        """Return the tasks that hang, with the seconds that each should take.

        A task that no worker has begun may wait for one, so it hangs only if a worker has begun a later try of it.
        """
        return [
            (flight, expected)
            for flight in self._flights.values()
            for expected in [self._pace() * flight.task.cost]
            if now - flight.heard > max(self._stall_seconds, HUNG_FACTOR * expected)
            and (flight.begun is not None or flight.submitted < flight.batch.last_begun)
        ]

    def find_overdue(self, now: float, *, idle: bool) -> list[tuple[Flight, float]]:
        """Return the tasks that have become overdue, with the seconds that each should take.

        Each is handed out again when nothing else is left. If workers are `idle`, they wait for work, so that a task
        which is not known to have begun should have.
        """
        if self._cost <= 0:
            return []
        found = []
        self._overdue = deque(filter(self._is_waiting, self._overdue))
        for flight in self._flights.values():
            expected = self._pace() * flight.task.cost
            if (
                now - flight.heard > max(OVERDUE_SECONDS, OVERDUE_FACTOR * expected)
                and not flight.is_overdue
                and flight.batch.missing
                and (idle or flight.begun is not None)
            ):
                flight.is_overdue = True
                self._overdue.append(flight)
                found.append((flight, expected))
        return found

    def _pace(self) -> float:
        """Return the seconds that a task takes for its cost, which is in seconds if nothing else is known."""
        return self._seconds / self._cost if self._cost > 0 else 1.0

    def _hear(self, flight: Flight, place: str, now: float) -> None:
        """Note that a worker, if it says which, has sent a receipt of a task."""
        if flight.begun is None:
            self._note_begun(flight, now)
        flight.heard = now
        flight.is_overdue, flight.stack = False, ""
        if place:
            flight.place = place
            self._heard[place] = now

    def _note_begun(self, flight: Flight, begun: float) -> None:
        flight.begun = begun
        flight.batch.last_begun = max(flight.batch.last_begun, flight.submitted)

    def _hand_out(self, task: Task, batch: _Batch, now: float) -> None:
        flight = Flight(task, batch, now, now)
        batch.tries += 1
        batch.flights.append(flight)
        self._flights[id(task)] = flight

    def _second_try(self, now: float) -> Task | None:
        while self._overdue:
            flight = self._overdue.popleft()
            if self._is_waiting(flight):
                missing, cost = flight.batch.missing, flight.batch.cost
                task = Task(tuple(missing), cost * len(missing))
                self._hand_out(task, flight.batch, now)
                return task
        return None

    def _is_waiting(self, flight: Flight) -> bool:
        """Return whether an overdue task is still to be tried elsewhere."""
        batch = flight.batch
        return (
            flight.is_overdue
            and flight in batch.flights
            and bool(batch.missing)
            and batch.tries + max(self._tried.get(unit, 0) for unit in batch.missing) < self.attempts
        )

    def _retry(self, unit: Hashable, error: str, cost: float, tries: int) -> None:
        tried = self._tried.pop(unit, 0) + tries
        reason = error.strip().rpartition("\n")[2]
        if tried < self.attempts:
            log.info("%s failed, attempt %d of %d: %s", unit, tried, self.attempts, reason)
            self.retries += 1
            self._tried[unit] = tried
            self._retries.append(Task((unit,), cost))
            return
        self.failures.append(Failure(unit, error, tried))
        count = len(self.failures)
        level = logging.WARNING if count <= MOST_NAMED else logging.INFO
        log.log(level, "%s is set aside after %s: %s", unit, counted(tried, "attempt"), reason)
        if count == 10 ** (len(str(count)) - 1) and count > MOST_NAMED:
            log.warning("%d units have been set aside by now", count)

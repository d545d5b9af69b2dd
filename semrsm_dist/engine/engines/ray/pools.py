"""Pools of Ray tasks and Ray actors.

Each call streams its receipts back as they come, packed where many come at once, so that progress is per unit and what
was finished before a fault stays finished. Ray retries nothing by itself (``max_retries=0``, which also bounds the
retries after the out-of-memory killer, endless by default): the scheduler alone counts attempts, unit by unit. Receipts
are small, travel inline and survive the loss of the node that made them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from semrsm_dist.engine.engines.ray.calls import (
    Call,
    await_end,
    is_meant_for_users,
    one_line,
    raise_cause,
    raise_cause_of_many,
    read_news,
    report_seconds,
    wait_for_news,
    warn_of_load,
)
from semrsm_dist.engine.engines.ray.hosting import new_actor, pack, run_task
from semrsm_dist.engine.engines.ray.requests import ray_options
from semrsm_dist.engine.engines.ray.watch import Fitting, Watch
from semrsm_dist.engine.protocol import Event, Finished, Progress, Resources, Task, Worker
from semrsm_dist.errors import WorkError, first_line

log = logging.getLogger(__name__)

START_ATTEMPTS = 3
"""Starts of an actor in a row that fail, before the pool does without it."""


class TaskPool:
    """Stateless workers as Ray tasks; see `semrsm_dist.engine.protocol.Pool`."""

    def __init__(
        self,
        worker: Worker,
        resources: Resources,
        fitting: Fitting,
        workers: int | None = None,
        growing: int = 0,
    ) -> None:
        self._workers = workers
        self._growing = growing  # workers that the cluster may hold when it has grown; 0 if it cannot grow
        self._payload = pack(worker, resources)
        self._function = run_task.options(**ray_options(resources))
        self._calls: dict[Call, Task] = {}
        self._watch = Watch(resources, fitting)
        self._failed_loads = 0  # in a row

    def capacity(self) -> int:
        """Return two tasks per slot of the cluster as it is now, or one per slot of what it may grow to.

        An autoscaler adds nodes for the tasks that wait, so a cluster that may grow is shown all it could take.
        If `workers` limits the pool below the cluster's size, at most that many: Ray would run them all at once.
        """
        fit = self._watch.fit()
        if self._workers is not None and self._workers < max(fit, self._growing):
            return self._workers
        return max(2, 2 * fit, self._growing)

    def submit(self, task: Task) -> None:
        """Hand the task to Ray."""
        call = self._function.remote(self._payload, task.units, report_seconds(self._watch.fit()))
        self._calls[call] = task

    def collect(self, timeout: float) -> list[Event]:
        """Return the receipts that have arrived and the tasks that ended."""
        events: list[Event] = []
        has_news = False
        for call in wait_for_news(list(self._calls), timeout):
            has_news = True
            self._watch.begin()
            try:
                news = read_news(call, self._calls[call])
            except RayTaskError as error:
                self._load_elsewhere(call, error)
                continue
            events += news
            if any(isinstance(event, Progress) for event in news):
                self._failed_loads = 0
            if news and isinstance(last := news[-1], Finished):
                del self._calls[call]
                if last.system:
                    self._watch.lose()
                    log.warning("a worker was lost, and another takes its place: %s", last.error)
        if not self._calls:
            self._watch.rest()
        elif not has_news:
            self._watch.check()
        return events

    def _load_elsewhere(self, call: Call, error: RayTaskError) -> None:
        """Hand out a task again whose process could not load the worker: that counts no attempt. Or raise the cause."""
        self._failed_loads += 1
        raise_cause_of_many(error, self._failed_loads, START_ATTEMPTS * max(1, self._watch.fit()))
        self.submit(self._calls.pop(call))

    def give_up(self, task: Task) -> str:
        """Kill the process that has a task; where in its code it is, it says itself if it can."""
        for call in [call for call, its_task in self._calls.items() if its_task is task]:
            del self._calls[call]
            ray.cancel(call, force=True)
        return ""

    def close(self, *, cancel: bool = False) -> None:
        """Kill the tasks in flight that do not end in time, or with `cancel` all of them at once."""
        for call in self._calls if cancel else await_end(self._calls.items()):
            ray.cancel(call, force=True)
        self._calls.clear()


@dataclass(eq=False)
class _Member:
    """One place for an actor: the actor, its start while that is pending, its calls, the running one first."""

    actor: Any = None
    starting: ray.ObjectRef[None] | None = None
    failed_starts: int = 0  # in a row
    calls: deque[tuple[Call, Task]] = field(default_factory=deque)


class ActorPool:
    """Stateful workers as Ray actors; see `semrsm_dist.engine.protocol.Pool`.

    A lost actor is replaced by a new one, wherever the cluster has room: Ray's own restarts would begin a call
    again behind the scheduler's back. A call that was queued behind the lost one had not begun; another actor
    gets it, and it counts no attempt.
    """

    def __init__(
        self, factory: Callable[[], Worker], count: int, resources: Resources, fitting: Fitting
    ) -> None:
        self._payload = pack(factory, resources)
        self._options = {**ray_options(resources), "max_restarts": 0, "max_task_retries": 0}
        self._watch = Watch(resources, fitting)
        self._waiting: deque[Task] = deque()
        self._members = [_Member() for _ in range(count)]
        for member in self._members:
            self._start(member)

    def capacity(self) -> int:
        """Return two tasks per actor that is ready: one running and one queued."""
        return 2 * sum(member.starting is None for member in self._members)

    def submit(self, task: Task) -> None:
        """Give the task to the least busy actor."""
        self._waiting.append(task)
        self._assign()

    def collect(self, timeout: float) -> list[Event]:
        """Return receipts and ended tasks; raise what the factory raised, and whatever `Fitting` does."""
        self._watch.fit()
        by_call = {member.calls[0][0]: member for member in self._members if member.calls}
        by_start = {member.starting: member for member in self._members if member.starting is not None}
        events: list[Event] = []
        for ready in wait_for_news([*by_call, *by_start], timeout):
            if ready in by_start:
                self._finish_start(by_start[ready], ready)
            else:
                events += self._advance(by_call[ready])
        self._assign()
        if not (by_call or by_start):
            self._watch.rest()
        elif not events:
            self._watch.check(starved=self.capacity() == 0)
        return events

    def give_up(self, task: Task) -> str:
        """Replace the actor that has a task; where in its code it is, it says itself if it can."""
        for member in self._members:
            if any(its_task is task for _, its_task in member.calls):
                self._replace(member, [waiting for _, waiting in member.calls if waiting is not task])
        return ""

    def close(self, *, cancel: bool = False) -> None:
        """End the actors: after their calls in flight if those end in time, or with `cancel` at once."""
        if not cancel:
            await_end(call for member in self._members for call in member.calls)
        for member in self._members:
            ray.kill(member.actor)
        self._members.clear()

    def _start(self, member: _Member) -> None:
        if member.actor is not None:
            ray.kill(member.actor)  # it may only have been out of reach, and would keep its GPU
        # One that has failed is tried on another node, if that has room.
        elsewhere = {"scheduling_strategy": "SPREAD"} if member.failed_starts else {}
        member.actor = new_actor.options(**self._options, **elsewhere).remote()
        member.starting = member.actor.start.remote(self._payload)

    def _finish_start(self, member: _Member, ref: ray.ObjectRef[None]) -> None:
        try:
            ray.get(ref)
        except RayTaskError as error:
            if is_meant_for_users(error) or self._is_last_try(member):
                raise_cause(error)
            warn_of_load(error)
            self._start_again(member, error.cause or error)
        except RayError as error:
            self._watch.lose()
            if self._is_last_try(member):
                raise WorkError(
                    f"the workers die before they are ready: {one_line(error)}. Nothing can be computed; look "
                    "at the memory of the nodes and at Ray's logs"
                ) from error
            self._start_again(member, error)
        else:
            self._watch.begin()
            member.starting, member.failed_starts = None, 0

    def _is_last_try(self, member: _Member) -> bool:
        """Return whether there is no other member, and this one has failed as often as it may."""
        return len(self._members) == 1 and member.failed_starts + 1 >= START_ATTEMPTS

    def _start_again(self, member: _Member, error: Exception) -> None:
        """Start another actor in a member's place, wherever there is room; or do without one that fails each time.

        Its node may lack what others have: a driver, a library, memory.
        """
        member.failed_starts += 1
        if member.failed_starts < START_ATTEMPTS:
            self._start(member)
            return
        ray.kill(member.actor)
        self._members.remove(member)
        log.warning(
            "the work goes on with one worker fewer (left: %d), whose actor failed at %d starts in a row: %s",
            len(self._members),
            member.failed_starts,
            first_line(error),
        )

    def _advance(self, member: _Member) -> list[Event]:
        call, task = member.calls[0]
        self._watch.begin()
        events = read_news(call, task)
        last = events[-1] if events else None
        if isinstance(last, Finished):
            member.calls.popleft()
            if last.system:  # the actor is gone, and with it the calls that had not begun
                self._watch.lose()
                log.warning("a worker was lost, and another takes its place: %s", last.error)
                self._replace(member, [waiting for _, waiting in member.calls])
        return events

    def _replace(self, member: _Member, waiting: Sequence[Task]) -> None:
        """Start another actor in a member's place; others may take what waited for it."""
        self._waiting.extendleft(reversed(waiting))
        member.calls.clear()
        self._start(member)

    def _assign(self) -> None:
        while self._waiting:
            ready = [m for m in self._members if m.starting is None and len(m.calls) < 2]
            if not ready:
                return
            member = min(ready, key=lambda m: len(m.calls))
            task = self._waiting.popleft()
            call = member.actor.run.options(num_returns="streaming").remote(
                task.units, report_seconds(len(self._members))
            )
            member.calls.append((call, task))

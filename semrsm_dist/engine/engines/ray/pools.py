"""Pools of Ray tasks and Ray actors.

Each call streams its receipts back as they come, packed where many come at once, so that progress is per unit and what
was finished before a fault stays finished. Ray retries nothing by itself (``max_retries=0``, which also bounds the
retries after the out-of-memory killer, endless by default): the scheduler alone counts attempts, unit by unit. Receipts
are small, travel inline and survive the loss of the node that made them.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import ray
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError

from semrsm_dist.engine.engines.ray.metrics import metered
from semrsm_dist.engine.engines.ray.reporting import (
    Item,
    SignOfLife,
    in_work_thread,
    place,
    report,
    sign_of_life,
)
from semrsm_dist.engine.logs import log_as_chosen
from semrsm_dist.engine.protocol import (
    Begun,
    Crash,
    Event,
    Finished,
    Progress,
    Receipt,
    Resources,
    Task,
    Worker,
    run_worker,
)
from semrsm_dist.errors import SemrsmError, WorkError, first_line
from semrsm_dist.machine import limit_threads

log = logging.getLogger(__name__)

STALL_SECONDS = 60.0  # of silence before the first warning; each further one waits twice as long
MESSAGE_SECONDS = 0.005  # of the driver's time, for each message of a worker
FIT_SECONDS = 2.0  # maximum age of the driver's view of the cluster's size
START_ATTEMPTS = 3  # per actor, before the pool gives up
CARRIED_VARIABLES = ("SEMRSM_", "NUMBA_")  # variables of the driver that workers on other nodes get as well

Fitting = Callable[[Resources], int]


@dataclass(frozen=True)
class _Payload:
    """What a worker process needs: shipped once per pool, unpacked once per process."""

    token: str
    work: str
    pickled: bytes
    cpus: float
    environment: dict[str, str]


def _pack(thing: object, resources: Resources) -> ray.ObjectRef[_Payload]:
    # Pickled apart from the payload, so that the variables are set before any module is imported for it.
    environment = {name: text for name, text in os.environ.items() if name.startswith(CARRIED_VARIABLES)}
    pickled: bytes = cloudpickle.dumps(thing)  # type: ignore[no-untyped-call]
    return ray.put(
        _Payload(uuid.uuid4().hex, type(thing).__name__.strip("_"), pickled, resources.cpus, environment)
    )


def _unpack(payload: _Payload) -> Any:
    os.environ.update(payload.environment)
    log_as_chosen()
    thing = cloudpickle.loads(payload.pickled)
    limit_threads(payload.cpus)  # after the imports: libraries not yet loaded cannot be limited
    return thing


_unpacked: dict[str, Worker] = {}  # in a worker process: the worker of the pool it served last


def _serve(payload: _Payload, units: tuple[Hashable, ...]) -> Iterator[Receipt | Crash]:
    if payload.token not in _unpacked:
        _unpacked.clear()
        _unpacked[payload.token] = _unpack(payload)
    yield from metered(run_worker(_unpacked[payload.token], units, place()), payload.work)


@ray.remote(num_returns="streaming", max_retries=0)
def _run_task(payload: _Payload, units: tuple[Hashable, ...], every: float) -> Iterator[Item]:
    if payload.token not in _unpacked:
        yield sign_of_life(0.0)  # unpacking imports libraries, which can take long
    yield from report(lambda: _serve(payload, units), every)


class _Holder:
    """The actor: holds one worker."""

    def start(self, payload: _Payload) -> None:
        """Call the factory: here and not in ``__init__``, so that Ray knows what it raised from a lost actor."""

        def make() -> Worker:
            worker: Worker = _unpack(payload)()
            self._work = payload.work
            limit_threads(payload.cpus)  # again: the factory may have loaded libraries
            return worker

        self._worker = in_work_thread(make).result()

    def run(self, units: tuple[Hashable, ...], every: float) -> Iterator[Item]:
        yield from report(lambda: metered(run_worker(self._worker, units, place()), self._work), every)


_new_actor: Any = ray.remote(_Holder)


class _Watch:
    """Warns when nothing comes back: no node has room, no worker starts, or those that work take long."""

    def __init__(self, resources: Resources, fitting: Fitting) -> None:
        self._resources = resources
        self._fitting = fitting
        self._has_begun = False
        self._quiet_since = time.monotonic()
        self._warnings = 0
        self._fit = 0
        self._fit_until = 0.0

    def fit(self) -> int:
        """Return how many workers the cluster could hold, as of a moment ago."""
        if time.monotonic() > self._fit_until:
            self._fit = self._fitting(self._resources)
            self._fit_until = time.monotonic() + FIT_SECONDS
        return self._fit

    def rest(self) -> None:
        """Note that nothing is to be expected, or that something has come back."""
        self._quiet_since = time.monotonic()
        self._warnings = 0

    def begin(self) -> None:
        """Note that a worker works."""
        self._has_begun = True
        self.rest()

    def check(self, *, starved: bool = False) -> None:
        """Warn if it has been quiet for long; `starved` if no worker is ready."""
        quiet = time.monotonic() - self._quiet_since
        if quiet < STALL_SECONDS * 2**self._warnings:
            return
        self._warnings += 1
        fit = self.fit()
        if fit > 0 and self._has_begun and not starved:
            log.warning(
                "no result for %.0f s, although workers have started: a unit of work takes that long, or a worker "
                "hangs; if it does, interrupt the run and start it again: what is finished is kept",
                quiet,
            )
            return
        have = format_resources(ray.cluster_resources())  # type: ignore[no-untyped-call]
        free = format_resources(ray.available_resources())  # type: ignore[no-untyped-call]
        if fit > 0:
            log.warning(
                "no worker has started for %.0f s, although the cluster has %s, of which %s are free, and a worker "
                "needs %s. Other work may hold the rest, or Ray cannot start processes: see the logs in its session "
                "folder (/tmp/ray/session_latest/logs)",
                quiet,
                have,
                free,
                self._resources,
            )
            return
        log.warning(
            "still waiting for room for a worker of %s: the cluster has %s, of which %s are free. Add nodes, ask for "
            "less, or wait if the cluster is growing",
            self._resources,
            have,
            free,
        )


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
        self._payload = _pack(worker, resources)
        self._function = _run_task.options(**_options(resources))
        self._calls: dict[ray.ObjectRefGenerator, Task] = {}
        self._watch = _Watch(resources, fitting)
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
        self._calls[self._function.remote(self._payload, task.units, _report_seconds(self._watch.fit()))] = (
            task
        )

    def collect(self, timeout: float) -> list[Event]:
        """Return the receipts that have arrived and the tasks that ended."""
        events: list[Event] = []
        has_news = False
        for call in _ready(list(self._calls), timeout):
            has_news = True
            self._watch.begin()
            try:
                news = _read(call, self._calls[call])
            except RayTaskError as error:
                self._load_elsewhere(call, error)
                continue
            events += news
            if any(isinstance(event, Progress) for event in news):
                self._failed_loads = 0
            if news and isinstance(news[-1], Finished):
                del self._calls[call]
        if not self._calls:
            self._watch.rest()
        elif not has_news:
            self._watch.check()
        return events

    def _load_elsewhere(self, call: ray.ObjectRefGenerator, error: RayTaskError) -> None:
        """Hand out a task again whose process could not load the worker: that counts no attempt. Or raise the cause."""
        self._failed_loads += 1
        _raise_cause_of_many(error, self._failed_loads, START_ATTEMPTS * max(1, self._watch.fit()))
        self.submit(self._calls.pop(call))

    def give_up(self, task: Task) -> str:
        """Kill the process that has a task; where in its code it is, it says itself if it can."""
        for call in [call for call, its_task in self._calls.items() if its_task is task]:
            del self._calls[call]
            ray.cancel(call, force=True)
        return ""

    def close(self, *, cancel: bool = False) -> None:
        """Wait for the tasks in flight, or with `cancel` kill them."""
        for call in self._calls:
            if cancel:
                ray.cancel(call, force=True)
            else:
                ray.wait([call.completed()], fetch_local=False)
        self._calls.clear()


@dataclass(eq=False)
class _Member:
    """One place for an actor: the actor, its start while that is pending, its calls, the running one first."""

    actor: Any = None
    starting: ray.ObjectRef[None] | None = None
    calls: deque[tuple[ray.ObjectRefGenerator, Task]] = field(default_factory=deque)


class ActorPool:
    """Stateful workers as Ray actors; see `semrsm_dist.engine.protocol.Pool`.

    A lost actor is replaced by a new one, wherever the cluster has room: Ray's own restarts would begin a call
    again behind the scheduler's back. A call that was queued behind the lost one had not begun; another actor
    gets it, and it counts no attempt.
    """

    def __init__(
        self, factory: Callable[[], Worker], count: int, resources: Resources, fitting: Fitting
    ) -> None:
        self._payload = _pack(factory, resources)
        self._options = {**_options(resources), "max_restarts": 0, "max_task_retries": 0}
        self._watch = _Watch(resources, fitting)
        self._waiting: deque[Task] = deque()
        self._failed_starts = 0  # in a row
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
        for ready in _ready([*by_call, *by_start], timeout):
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
        """End the actors, after the calls in flight or with `cancel` at once."""
        for member in self._members:
            for call, _ in () if cancel else member.calls:
                ray.wait([call.completed()], fetch_local=False)
            ray.kill(member.actor)
        self._members.clear()

    def _start(self, member: _Member) -> None:
        if member.actor is not None:
            ray.kill(member.actor)  # it may only have been out of reach, and would keep its GPU
        member.actor = _new_actor.options(**self._options).remote()
        member.starting = member.actor.start.remote(self._payload)

    def _finish_start(self, member: _Member, ref: ray.ObjectRef[None]) -> None:
        try:
            ray.get(ref)
        except RayTaskError as error:
            self._failed_starts += 1
            _raise_cause_of_many(error, self._failed_starts, len(self._members))
            self._start(member)
        except RayError as error:
            self._failed_starts += 1
            if self._failed_starts > START_ATTEMPTS * len(self._members):
                raise WorkError(
                    f"the workers die before they are ready: {_one_line(error)}. Nothing can be computed; look "
                    "at the memory of the nodes and at Ray's logs"
                ) from error
            self._start(member)
        else:
            self._failed_starts = 0
            self._watch.begin()
            member.starting = None

    def _advance(self, member: _Member) -> list[Event]:
        call, task = member.calls[0]
        self._watch.begin()
        events = _read(call, task)
        last = events[-1] if events else None
        if isinstance(last, Finished):
            member.calls.popleft()
            if last.system:  # the actor is gone, and with it the calls that had not begun
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
                task.units, _report_seconds(len(self._members))
            )
            member.calls.append((call, task))


def ray_request(resources: Resources) -> dict[str, float]:
    """Return the resources to request from Ray, by Ray's names.

    A worker with a GPU requests no CPU slot: it has the node's CPUs with the GPU, and a cluster can then have GPU
    nodes without CPU slots, which no other work keeps alive.
    """
    return {
        "CPU": 0 if resources.gpus else resources.cpus,
        "GPU": resources.gpus,
        "memory": resources.memory or 0,
    }


def format_resources(amounts: Mapping[str, float]) -> str:
    """Return Ray's resources in words."""
    return str(Resources(amounts.get("CPU", 0), amounts.get("GPU", 0), int(amounts.get("memory", 0))))


def _options(resources: Resources) -> dict[str, Any]:
    wanted = ray_request(resources)
    options: dict[str, Any] = {"num_cpus": wanted["CPU"], "num_gpus": wanted["GPU"]}
    if wanted["memory"]:
        options["memory"] = wanted["memory"]
    return options


def _ready(waitables: list[Any], timeout: float) -> list[Any]:
    """Return all that have news, waiting up to `timeout` seconds for the first of them."""
    if not waitables:
        time.sleep(timeout)
        return []
    if not ray.wait(waitables, timeout=timeout, fetch_local=False)[0]:
        return []
    ready, _ = ray.wait(waitables, num_returns=len(waitables), timeout=0, fetch_local=False)
    return list(ready)


def _read(call: ray.ObjectRefGenerator, task: Task) -> list[Event]:
    """Return what a call with news has to say; its end is always the last event.

    Raises
    ------
    RayTaskError
        If the worker could not be loaded.
    """
    events: list[Event] = []
    while True:
        try:
            item = ray.get(next(call))
        except StopIteration:
            return [*events, Finished(task)]
        except RayTaskError:  # not the worker, which run_worker guards: it could not even be loaded
            raise
        except RayError as error:
            return [*events, Finished(task, error=_one_line(error), system=True)]
        if isinstance(item, Crash):
            return [*events, Finished(task, error=item.error)]
        if isinstance(item, SignOfLife):
            events.append(Begun(task, item.place, item.seconds, item.stack))
        else:
            events.append(Progress(task, item))
        if not call.next_ready():
            return events


def _report_seconds(workers: int) -> float:
    """Return how often each of so many workers may report, so that one driver can follow."""
    return MESSAGE_SECONDS * workers


def _raise_cause_of_many(error: RayTaskError, failed: int, most: int) -> None:
    """Raise what a worker met before it could work, if that is meant for users or happened too often in a row.

    One node may lack what others have.
    """
    if isinstance(error.cause, SemrsmError) or failed > most:
        _raise_cause(error)
    log.warning("a worker could not be loaded, and is tried elsewhere: %s", first_line(error.cause or error))


def _raise_cause(error: RayTaskError) -> NoReturn:
    """Raise in the driver what a worker met before it could work, in its own type."""
    cause = error.cause
    if isinstance(cause, SemrsmError):
        raise cause from None
    if isinstance(cause, Exception):
        raise cause from error
    raise error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"

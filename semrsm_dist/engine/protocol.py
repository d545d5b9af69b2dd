"""The interface of engines, and the terms that the scheduler, the pipeline and all engines share.

A *unit* is the smallest piece of work that is recorded (one tile, one batch of images). A *task* is a batch
of units handed to one worker call. The worker writes its results to the store itself and says so with one
small *receipt* per unit: only receipts travel back to the driver.
"""

from __future__ import annotations

import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Protocol, TypeAlias

from semrsm_dist.errors import ConfigError, WorkerLostError, counted


@dataclass(frozen=True)
class Resources:
    """What one worker needs while it runs.

    Parameters
    ----------
    cpus : float
        CPU slots; also the number of threads that BLAS and OpenMP may use inside the worker.
    gpus : float
        GPUs.
    memory : int, optional
        Bytes of memory; None for no particular amount.
    """

    cpus: float = 1
    gpus: float = 0
    memory: int | None = None

    def __str__(self) -> str:
        words = [counted(self.cpus, "CPU")]
        if self.gpus:
            words.append(counted(self.gpus, "GPU"))
        if self.memory:
            is_small = self.memory < 2**30
            words.append(
                f"{self.memory / 2**20:.0f} MiB memory"
                if is_small
                else f"{self.memory / 2**30:.1f} GiB memory"
            )
        return ", ".join(words)


@dataclass(frozen=True)
class Receipt:
    """A worker's report of one finished or failed unit; small and picklable.

    On their way to the driver, receipts of finished units are packed into one.

    Parameters
    ----------
    unit : Hashable
        The unit.
    error : str, optional
        None when the unit's result is in the store, otherwise what went wrong.
    counts : Mapping[str, float]
        Quantities that add up over units: pairs, seconds, bytes.
    fatal : bool
        The cause would fail every other unit too (disk full, read-only or unseen store): the run stops at once.
    value : object
        A small result that goes to the driver instead of the store; far below 100 KB, so that Ray sends it inline.
    also : tuple of Hashable
        Further finished units, in a packed receipt; `counts` and `seconds` are the sums over all.
    seconds : float
        How long the worker was at it; filled in by `run_worker`.
    place : str
        The worker, as in `Begun`; filled in by engines that know it.
    """

    unit: Hashable
    error: str | None = None
    counts: Mapping[str, float] = field(default_factory=dict)
    fatal: bool = False
    value: object = None
    also: tuple[Hashable, ...] = ()
    seconds: float = field(default=0.0, compare=False)
    place: str = field(default="", compare=False)

    @property
    def units(self) -> tuple[Hashable, ...]:
        """All units of the receipt."""
        return (self.unit, *self.also)


@dataclass(frozen=True)
class Task:
    """A batch of units for one worker call; `cost` is how long it should take, in any measure."""

    units: tuple[Hashable, ...]
    cost: float = 1.0


Worker: TypeAlias = Callable[[tuple[Hashable, ...]], Iterator[Receipt]]
"""A picklable callable that yields a receipt per unit as it finishes.

It may be called again for a unit after a fault, so its writes must be idempotent; the local engine calls one
worker from several threads at once. A worker that was given a GPU finds it with `semrsm_dist.machine.own_gpu`, and
raises `WorkerLostError` when that can no longer be used: another worker gets its units.
"""


@dataclass(frozen=True)
class Begun:
    """A worker is at work on a task. Engines may leave this out, and need not say so of tasks that take no time.

    Parameters
    ----------
    task : Task
        The task.
    place : str
        The worker, for a message: where it runs, and its process.
    seconds : float
        How long ago it began.
    stack : str
        Where in its code it is, if nothing has come of the task for long; see `stack_of`.
    """

    task: Task
    place: str
    seconds: float = 0.0
    stack: str = ""


@dataclass(frozen=True)
class Progress:
    """A worker has yielded a receipt, or several that are packed into one."""

    task: Task
    receipt: Receipt


@dataclass(frozen=True)
class Finished:
    """A task has ended.

    Parameters
    ----------
    task : Task
        The task.
    error : str, optional
        Why the task died as a whole, None when it ran to its end (its units may still have failed).
    system : bool
        True if the process, the node or the worker's GPU was lost, rather than an error in the worker's code.
    """

    task: Task
    error: str | None = None
    system: bool = False


Event: TypeAlias = Begun | Progress | Finished


class Pool(Protocol):
    """Workers of one kind, running.

    If there can be no workers at all (the factory of stateful workers raises, all of them are dead), `collect`
    raises the cause.
    """

    def capacity(self) -> int:
        """Return how many tasks may be in flight now; it can change from call to call."""
        ...

    def submit(self, task: Task) -> None:
        """Hand over a task; returns at once."""
        ...

    def collect(self, timeout: float) -> list[Event]:
        """Return what has happened since the last call, waiting up to `timeout` seconds for a first event.

        Events hold the very tasks that were submitted, not copies of them.
        """
        ...

    def give_up(self, task: Task) -> str:
        """Forget a task that hangs, and replace its worker; return where in its code the worker is, if that is known.

        Events of the task that come nevertheless are ignored.
        """
        ...

    def close(self, *, cancel: bool = False) -> None:
        """Release the workers: after their tasks, or with `cancel` as soon as they can be stopped."""
        ...


class Engine(ABC):
    """Where workers run.

    An engine ships as a module of `semrsm_dist.engine.engines`, or is an entry point of the group
    `semrsm_dist.engines`. It is running once it is made.

    Parameters
    ----------
    workers
        At most this many CPU slots; None for all there are.
    address
        What to join, for engines that take an address; None leaves it to the engine.

    Attributes
    ----------
    name
        Its name in configurations.
    takes_address
        Whether there can be something to join.

    Raises
    ------
    ConfigError
        If `workers` is below 1, there is an address but the engine takes none, or the engine cannot run.
    """

    name: ClassVar[str]
    takes_address: ClassVar[bool] = False

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
            raise ConfigError(
                f"workers: {workers!r}: a whole number of at least one is needed; leave it out to use all CPUs"
            )
        if address is not None and not self.takes_address:
            raise ConfigError(
                f"address: {address!r}: the engine {self.name!r} has nothing to join; remove the address, or choose "
                "an engine that joins a cluster, such as 'ray'"
            )
        self.workers = workers
        self.address = address

    def require_room(self, resources: Resources) -> None:
        """Refuse what a worker needs and the engine can never give.

        Raises
        ------
        ConfigError
            If there is no room for a worker, nor will there be.
        """
        if resources.cpus > self.slots or resources.gpus > self.gpus:
            limit = f" (workers: {self.workers})" if self.workers is not None else ""
            raise ConfigError(
                f"a worker needs {resources}, but the engine {self.name!r} has "
                f"{counted(self.slots, 'CPU slot')}{limit} and {counted(self.gpus, 'GPU')}; nothing was started: "
                "request less, or check workers and CUDA_VISIBLE_DEVICES"
            )

    @property
    @abstractmethod
    def slots(self) -> int:
        """CPU slots for workers."""

    @property
    @abstractmethod
    def gpus(self) -> int:
        """GPUs for workers."""

    @abstractmethod
    def start_tasks(self, worker: Worker, resources: Resources) -> Pool:
        """Return a pool that runs a stateless worker.

        Raises
        ------
        ConfigError
            If there is no room for a worker, nor will there be.
        """

    @abstractmethod
    def start_actors(self, factory: Callable[[], Worker], count: int, resources: Resources) -> Pool:
        """Return a pool of `count` stateful workers; `factory` is called where each of them lives.

        Raises
        ------
        ConfigError
            As `start_tasks`.
        """

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Return the engine's name (`engine`), `nodes`, `cpus`, `gpus` and `memory` (bytes; 0: not known).

        With GPUs also `memory_per_gpu`: that of their node for each of them, of the node that has least; workers that
        match on GPUs may take more memory then.
        """

    def close(self) -> None:  # noqa: B027 - many engines have nothing to give back
        """Release everything that the engine has started."""


def stack_of(thread: int | None, most: int = 6) -> str:
    """Return the innermost calls of a thread of this process, for a message; empty if the thread has ended."""
    frame = sys._current_frames().get(thread or 0)
    calls = traceback.extract_stack(frame) if frame is not None else []
    return " < ".join(
        f"{call.name} ({Path(call.filename).name}:{call.lineno})" for call in calls[: -most - 1 : -1]
    )


@dataclass(frozen=True)
class Crash:
    """The traceback of an exception that escaped a worker; `lost` if the worker can do nothing any more."""

    error: str
    lost: bool = False


def run_worker(worker: Worker, units: tuple[Hashable, ...], place: str = "") -> Iterator[Receipt | Crash]:
    """Yield the worker's receipts, timed, and, if an exception escapes it, a `Crash` as the last item.

    All engines call workers through here, so that a failing worker reads the same on each. `place` is the worker.
    """
    try:
        before = time.perf_counter()
        for receipt in worker(units):
            yield replace(receipt, seconds=time.perf_counter() - before, place=place)
            before = time.perf_counter()
    except WorkerLostError as error:
        yield Crash(str(error), lost=True)
    except Exception:  # noqa: BLE001 - whatever a worker raises is recorded against its units
        yield Crash(traceback.format_exc())


def pack_receipts(receipts: Iterable[Receipt]) -> list[Receipt]:
    """Pack receipts of one worker's finished units into as few as possible, which add up to the same."""
    packed: list[Receipt] = []
    done: list[Hashable] = []
    counts: dict[str, float] = {}
    seconds, place = 0.0, ""
    for receipt in receipts:
        if receipt.error is not None or receipt.value is not None:
            packed.append(receipt)
            continue
        done += receipt.units
        for name, count in receipt.counts.items():
            counts[name] = counts.get(name, 0) + count
        seconds, place = seconds + receipt.seconds, receipt.place
    if done:
        packed.append(Receipt(done[0], counts=counts, also=tuple(done[1:]), seconds=seconds, place=place))
    return packed

"""The engine that needs no cluster: threads in this process, over kernels that release the GIL."""

from __future__ import annotations

import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable

from semrsm_dist.engine.protocol import (
    Begun,
    Crash,
    Engine,
    Event,
    Finished,
    Progress,
    Resources,
    Task,
    Worker,
    run_worker,
    stack_of,
)
from semrsm_dist.errors import UnusableGpuError, WorkerLostError, WorkError, counted
from semrsm_dist.machine import (
    available_cpus,
    available_gpus,
    available_memory,
    limit_threads,
    set_own_gpu,
)

log = logging.getLogger(__name__)

CANCEL_SECONDS = 30.0
"""How long the workers of a pool that is cancelled get for the units that they are at."""

MOST_HUNG = 4
"""Threads that may hang, for each worker: they cannot be ended, and may keep CPUs and memory."""


class LocalEngine(Engine):
    """Runs workers as threads of this process; without `workers` as many as the container has CPUs."""

    name = "local"

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        super().__init__(workers, address)
        self._slots = workers or available_cpus()
        if self._slots > available_cpus():
            log.warning(
                "workers: %d: this machine has only %s; more workers take more memory and are no faster",
                self._slots,
                counted(available_cpus(), "CPU"),
            )
        self._memory = available_memory()
        self._gpus = available_gpus()
        self._warned = self._warned_of_fewer = False

    @property
    def slots(self) -> int:
        """CPU slots for workers."""
        return self._slots

    @property
    def gpus(self) -> int:
        """GPUs of this machine."""
        return self._gpus

    def start_tasks(self, worker: Worker, resources: Resources) -> LocalPool:
        """Return a pool with as many threads as CPUs, GPUs and memory allow; all call the same `worker`."""
        count = int(self._slots / resources.cpus) if resources.cpus > 0 else self._slots
        if resources.gpus:
            count = min(count, int(self.gpus / resources.gpus))
        if self.workers is not None:
            self._warn_of_fewer(count, resources)
        return self._start(lambda: worker, count, resources)

    def start_actors(self, factory: Callable[[], Worker], count: int, resources: Resources) -> LocalPool:
        """Return a pool of `count` threads, or as many as the memory allows, each with a worker that `factory` made.

        GPUs are assigned in turn: if there are more actors than GPUs, they share them.
        """
        return self._start(factory, count, resources)

    def _start(self, factory: Callable[[], Worker], count: int, resources: Resources) -> LocalPool:
        self.require_room(resources)
        if resources.memory:
            count = min(count, self._memory // resources.memory)
            self._warn_of_memory(resources.memory)
        return LocalPool(factory, max(1, count), resources, gpus=self.gpus)

    def _warn_of_fewer(self, count: int, resources: Resources) -> None:
        fitting = self._memory // resources.memory if resources.memory else count
        if 0 < fitting < count and not self._warned_of_fewer:
            self._warned_of_fewer = True
            log.warning(
                "workers: %d: %d run at once, as the memory of %.1f GiB has room for no more of %.2g GiB each; lower "
                "matching.worker_memory for more",
                self.workers,
                fitting,
                self._memory / 2**30,
                (resources.memory or 0) / 2**30,
            )

    def _warn_of_memory(self, wanted: int) -> None:
        if wanted > self._memory and not self._warned:
            self._warned = True
            log.warning(
                "a worker may use %.1f GiB of memory, but there are only %.1f GiB here: one runs at a time, and is "
                "killed if it needs more than there is; lower matching.worker_memory",
                wanted / 2**30,
                self._memory / 2**30,
            )

    def describe(self) -> dict[str, object]:
        """Return what the container allows: one node, its CPU slots, GPUs and memory in bytes."""
        return {
            "engine": self.name,
            "nodes": 1,
            "cpus": self._slots,
            "gpus": self._gpus,
            "memory": self._memory,
            "memory_per_gpu": self._memory // self._gpus if self._gpus else 0,
        }


class LocalPool:
    """A bounded set of threads, one worker each; see `semrsm_dist.engine.protocol.Pool`.

    A thread that hangs cannot be ended. It is left alone, and another one takes its place; the command
    ends its process nevertheless.
    """

    def __init__(
        self, factory: Callable[[], Worker], count: int, resources: Resources, *, gpus: int = 0
    ) -> None:
        self._factory = factory
        self._cpus = resources.cpus
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._limits = limit_threads(resources.cpus)
        self._hung = 0
        self._lost_gpus: set[int] = set()
        self._threads = [_WorkerThread(self, k, int(k * resources.gpus) % max(1, gpus)) for k in range(count)]
        for thread in self._threads:
            thread.start()

    def capacity(self) -> int:
        """Return one running and one waiting task per thread that has not lost its GPU."""
        return 2 * sum(thread.gpu not in self._lost_gpus for thread in self._threads)

    def submit(self, task: Task) -> None:
        """Queue a task for the next free thread."""
        self._tasks.put(task)

    def collect(self, timeout: float) -> list[Event]:
        """Return receipts as they were yielded and the tasks that ended; raise what a factory raised."""
        events: list[Event] = []
        try:
            item = self._events.get(timeout=timeout) if timeout > 0 else self._events.get_nowait()
            while True:
                if isinstance(item, BaseException):
                    raise item
                events.append(item)
                item = self._events.get_nowait()
        except queue.Empty:
            return events

    def give_up(self, task: Task) -> str:
        """Replace the thread that has a task, and return where in its code it is."""
        place = next((k for k, thread in enumerate(self._threads) if thread.task is task), None)
        if place is None:
            return ""
        old = self._threads[place]
        old.is_given_up = True
        stack = stack_of(old.ident)
        self._hung += 1
        if self._hung > MOST_HUNG * len(self._threads):
            raise WorkError(
                f"the run was stopped, as {self._hung} of its threads hang and none can be ended, the last in {stack}; "
                "what is done is kept: start the run's command, or use the engine ray, whose workers can be ended"
            )
        self._threads[place] = _WorkerThread(self, old.number, old.gpu)
        self._threads[place].start()
        return stack

    def close(self, *, cancel: bool = False) -> None:
        """Join all threads, after the queued tasks or with `cancel` after the unit each is at, if that ends soon."""
        if cancel:
            self._cancelled.set()
        for _ in self._threads:
            self._tasks.put(None)
        deadline = time.monotonic() + CANCEL_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()) if self._cancelled.is_set() else None)
        for thread in self._threads:
            if thread.is_alive():
                log.warning(
                    "%s did not end within %.0f s and is left alone; it is in %s",
                    thread.name,
                    CANCEL_SECONDS,
                    stack_of(thread.ident),
                )
        self._limits.restore_original_limits()

    def serve(self, thread: _WorkerThread) -> None:
        """Do tasks, in the thread given, until there are no more."""
        set_own_gpu(thread.gpu)
        try:
            worker = self._factory()
            limit_threads(self._cpus)  # in this thread, and after the factory: it may have loaded libraries
        except WorkerLostError as error:
            self._lose_gpu(thread.gpu, error)
            return
        except BaseException as error:  # noqa: BLE001 - raised again in the driver by collect()
            self._events.put(error)
            return
        while not thread.is_given_up and (task := self._tasks.get()) is not None:
            if self._cancelled.is_set():
                return
            if thread.gpu in self._lost_gpus:
                self._tasks.put(task)  # for the threads of another GPU
                return
            thread.task = task
            try:
                self._run(worker, thread, task)
            except BaseException:  # noqa: BLE001 - SystemExit and the like must not lose the task
                self._events.put(Finished(task, error=traceback.format_exc()))

    def _run(self, worker: Worker, thread: _WorkerThread, task: Task) -> None:
        place = f"thread {thread.name}"
        self._events.put(Begun(task, place))
        error, is_lost = None, False
        for item in run_worker(worker, task.units, place):
            if isinstance(item, Crash):
                error, is_lost = item.error, item.lost
                if is_lost:
                    self._lose_gpu(thread.gpu, WorkError(error))
            else:
                self._events.put(Progress(task, item))
            if self._cancelled.is_set() or thread.is_given_up:
                return  # leaving the loop closes the worker's generator
        self._events.put(Finished(task, error=error, system=is_lost))

    def _lose_gpu(self, gpu: int, error: WorkError) -> None:
        """Stop using a GPU; if it was the last, end the run."""
        if gpu in self._lost_gpus:
            return
        self._lost_gpus.add(gpu)
        if all(thread.gpu in self._lost_gpus for thread in self._threads):
            is_unusable = isinstance(error, UnusableGpuError)
            self._events.put(
                error if is_unusable else WorkError(f"no GPU is left, and what is done is kept: {error}")
            )
        else:
            log.warning("GPU %d is no longer used, the others go on: %s", gpu, error)


class _WorkerThread(threading.Thread):
    """A thread of a pool: a daemon, so that a driver which dies without closing its pool exits."""

    def __init__(self, pool: LocalPool, number: int, gpu: int) -> None:
        super().__init__(name=f"semrsm-worker-{number}", daemon=True)
        self.pool, self.number, self.gpu = pool, number, gpu
        self.task: Task | None = None
        self.is_given_up = False

    def run(self) -> None:
        """Serve the pool."""
        self.pool.serve(self)


def has_hung_threads() -> bool:
    """Return whether a worker outlived its pool: the interpreter could wait for it, or for threads of it, for ever."""
    return any(isinstance(thread, _WorkerThread) for thread in threading.enumerate())

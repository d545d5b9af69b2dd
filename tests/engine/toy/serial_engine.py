"""An engine of another distribution: everything happens in the driver's own thread, one unit at a time."""

from __future__ import annotations

import time
from collections import deque

from semrsm_dist.engine import Engine, Finished, Progress
from semrsm_dist.engine.protocol import Crash, run_worker
from semrsm_dist.machine import available_memory, limit_threads


class SerialEngine(Engine):
    """Runs one worker in the driver."""

    name = "serial"
    slots = 1
    gpus = 0

    def start_tasks(self, worker, resources):
        return SerialPool(lambda: worker, resources)

    def start_actors(self, factory, count, resources):
        return SerialPool(factory, resources)

    def describe(self):
        return {"engine": self.name, "nodes": 1, "cpus": 1, "gpus": 0, "memory": available_memory()}


class SerialPool:
    """Works when its driver waits for news."""

    def __init__(self, factory, resources):
        self._factory = factory
        self._cpus = resources.cpus
        self._worker = None
        self._waiting = deque()
        self._running = None

    def capacity(self):
        return 1

    def submit(self, task):
        self._waiting.append(task)

    def collect(self, timeout):
        if not self._waiting and not self._running:
            time.sleep(timeout)
            return []
        with limit_threads(self._cpus):
            self._worker = self._worker or self._factory()
            if not self._running:
                task = self._waiting.popleft()
                self._running = task, run_worker(self._worker, task.units)
            task, items = self._running
            item = next(items, None)
        if item is not None and not isinstance(item, Crash):
            return [Progress(task, item)]
        self._running = None
        return [Finished(task, error=item and item.error)]

    def give_up(self, task):
        return ""  # nothing runs beside the driver

    def close(self, *, cancel=False):
        while not cancel and (self._waiting or self._running):
            self.collect(0)
        self._waiting.clear()
        self._running = None

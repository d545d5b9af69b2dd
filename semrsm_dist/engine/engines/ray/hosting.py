"""What runs in Ray's processes: a worker comes there once per pool, and is called for each task."""

from __future__ import annotations

import os
import uuid
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray import cloudpickle

from semrsm_dist.engine.engines.ray.metrics import metered
from semrsm_dist.engine.engines.ray.reporting import Item, in_work_thread, place, report, sign_of_life
from semrsm_dist.engine.logs import log_as_chosen
from semrsm_dist.engine.protocol import Crash, Receipt, Resources, Worker, run_worker
from semrsm_dist.machine import limit_threads

CARRIED_VARIABLES = ("SEMRSM_", "NUMBA_")
"""Beginnings of the driver's variables that workers on other nodes get as well."""


MOST_INLINE_BYTES = 64 * 2**10
"""Of a pickled worker that goes with each call; Ray itself puts arguments of 100 KiB into its object store."""


@dataclass(frozen=True)
class Payload:
    """What a worker process needs: unpacked once per process."""

    token: str
    work: str
    pickled: bytes
    cpus: float
    environment: dict[str, str]


def pack(thing: object, resources: Resources) -> Payload | ray.ObjectRef[Payload]:
    """Return an argument for calls that a worker, or a factory of workers, is to serve.

    Large ones are put into Ray's object store, from which each process takes them once. Others are not: when a node
    dies, Ray at once tries to recover what a driver there has put, and without its raylet that ends the driver, before
    it can say why.
    """
    # Pickled apart from the payload, so that the variables are set before any module is imported for it.
    environment = {name: text for name, text in os.environ.items() if name.startswith(CARRIED_VARIABLES)}
    pickled: bytes = cloudpickle.dumps(thing)  # type: ignore[no-untyped-call]
    name = type(thing).__name__.strip("_")
    payload = Payload(uuid.uuid4().hex, name, pickled, resources.cpus, environment)
    return payload if len(pickled) <= MOST_INLINE_BYTES else ray.put(payload)


def _unpack(payload: Payload) -> Any:
    os.environ.update(payload.environment)
    log_as_chosen()
    thing = cloudpickle.loads(payload.pickled)
    limit_threads(payload.cpus)  # after the imports: libraries not yet loaded cannot be limited
    return thing


_unpacked: dict[str, Worker] = {}  # in a worker process: the worker of the pool it served last


def _serve(payload: Payload, units: tuple[Hashable, ...]) -> Iterator[Receipt | Crash]:
    if payload.token not in _unpacked:
        _unpacked.clear()
        _unpacked[payload.token] = _unpack(payload)
    yield from metered(run_worker(_unpacked[payload.token], units, place()), payload.work)


@ray.remote(num_returns="streaming", max_retries=0)
def run_task(payload: Payload, units: tuple[Hashable, ...], every: float) -> Iterator[Item]:
    """Serve a task of a stateless worker."""
    if payload.token not in _unpacked:
        yield sign_of_life(0.0)  # unpacking imports libraries, which can take long
    yield from report(lambda: _serve(payload, units), every)


class Holder:
    """The actor: holds one worker."""

    def start(self, payload: Payload) -> None:
        """Call the factory: here and not in ``__init__``, so that Ray knows what it raised from a lost actor."""

        def make() -> Worker:
            worker: Worker = _unpack(payload)()
            self._work = payload.work
            limit_threads(payload.cpus)  # again: the factory may have loaded libraries
            return worker

        self._worker = in_work_thread(make).result()

    def run(self, units: tuple[Hashable, ...], every: float) -> Iterator[Item]:
        """Serve a task."""
        yield from report(lambda: metered(run_worker(self._worker, units, place()), self._work), every)


new_actor: Any = ray.remote(Holder)

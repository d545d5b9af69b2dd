"""How a Ray worker reports: its work runs in a thread of its own, while another sends packed receipts, not too often.

A driver takes milliseconds for each message, whatever is in it. So a worker sends at once what has come since its last
message, and not more often than the driver can follow; no receipt waits for the unit after it.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias, TypeVar

from semrsm_dist.engine.protocol import Crash, Receipt, pack_receipts, stack_of

LIFE_SECONDS = 5.0
"""A task that has no receipt by then says that it has begun."""

SILENT_SECONDS = 20.0
"""A task of which nothing comes for so long, and again for twice as long, says where in its code it is."""


@dataclass(frozen=True)
class SignOfLife:
    """A worker works at a task: where, for how long, and where in its code it is if it has been silent for long."""

    place: str
    seconds: float
    stack: str = ""


Item: TypeAlias = Receipt | Crash | SignOfLife
_Result = TypeVar("_Result")


@cache
def _work_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="semrsm-worker")  # one: workers keep things by thread


def in_work_thread(do: Callable[[], _Result]) -> Future[_Result]:
    """Call a function in the thread in which this process works."""
    return _work_thread().submit(do)


def sign_of_life(seconds: float, stack: str = "") -> SignOfLife:
    """Return that this process has been at work on a task for so long."""
    return SignOfLife(place(), seconds, stack)


def place() -> str:
    """Return the name of this process among workers."""
    return f"{socket.gethostname()} (process {os.getpid()})"


class _Clock:
    """When this process sent its last receipts."""

    last = -float("inf")


def report(work: Callable[[], Iterator[Receipt | Crash]], every: float) -> Iterator[Item]:
    """Do work in this process's work thread, and yield what comes of it.

    Parameters
    ----------
    work
        Returns an iterator over receipts, which is consumed in the work thread.
    every
        Least seconds between two messages, except for the last of a task.
    """
    items: queue.SimpleQueue[Receipt | Crash | None] = queue.SimpleQueue()  # None at the end

    thread: list[int] = []

    def consume() -> None:
        thread.append(threading.get_ident())
        try:
            for item in work():
                items.put(item)
        finally:
            items.put(None)

    future, started = in_work_thread(consume), time.monotonic()
    silence = LIFE_SECONDS
    while True:
        got = _get(items, silence)
        if not got:
            stack = stack_of(thread[0]) if silence >= SILENT_SECONDS and thread else ""
            yield sign_of_life(time.monotonic() - started, stack)
            silence = max(2 * silence, SILENT_SECONDS)
            continue
        silence = SILENT_SECONDS
        while got[-1] is not None and (more := _get(items, _Clock.last + every - time.monotonic())):
            got += more
        receipts = [item for item in got if isinstance(item, Receipt)]
        if receipts:
            _Clock.last = time.monotonic()
        crashes = (item for item in got if isinstance(item, Crash))
        messages: list[Item] = [*pack_receipts(receipts), *crashes]
        yield from (message for message in messages)  # Ray sends into generators, not into lists
        if got[-1] is None:
            future.result()  # raises what escaped the worker
            return


def _get(items: queue.SimpleQueue[Receipt | Crash | None], seconds: float) -> list[Receipt | Crash | None]:
    """Return the next item in a list, which is empty if there is none in time."""
    try:
        return [items.get(timeout=seconds) if seconds > 0 else items.get_nowait()]
    except queue.Empty:
        return []

"""Interrupts (SIGINT, SIGTERM, SIGHUP) of the command: they end it while it loads, and stop it in order while it works.

Python's own way, a KeyboardInterrupt wherever the main thread is, cannot be relied on while modules load: raised in a
callback of the import system it is printed and forgotten, and extension modules turn it into errors of their own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeAlias

from semrsm_dist.pipeline.signals import find_cause, watching_signals

INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Handler: TypeAlias = Callable[[int, FrameType | None], None]


def end_while_loading() -> None:
    """From now on, end the process when it is interrupted: there is nothing yet to clean up."""
    _install(_end)


def ignore_from_now_on() -> None:
    """Let no interrupt change the exit status any more: the interpreter, which is about to end, would die of it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def stopping_in_order() -> Iterator[threading.Event]:
    """Raise KeyboardInterrupt in the block when it is interrupted, and set an event in case the exception gets lost.

    The event is for code that checks from time to time whether it has to stop.

    Raises
    ------
    KeyboardInterrupt
        If it was interrupted, even if a library turned that into another error; its text is the signal's name.
    WorkError
        If a library raised KeyboardInterrupt although no signal came.
    """
    stop = threading.Event()
    with watching_signals() as came:

        def interrupt(number: int, frame: FrameType | None) -> None:
            came.append(signal.Signals(number).name)
            stop.set()
            raise KeyboardInterrupt

        before = _install(interrupt)
        try:
            yield stop
        except BaseException as error:
            cause = find_cause(error)
            if cause is error:
                raise
            raise cause from error
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):  # nobody may be reading any more
        os.write(2, f"semrsm: interrupted by {signal.Signals(number).name}\n".encode())
    os._exit(INTERRUPTED)


def _install(handler: Handler) -> dict[signal.Signals, Any]:
    """Set a handler for every interrupt that is not ignored on purpose, as with nohup; return the previous ones."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    kept = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in kept:
        signal.signal(number, handler)
    return kept

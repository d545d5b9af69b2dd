"""How workers handle exceptions: each becomes a receipt, by which the driver decides."""

from __future__ import annotations

import logging
import socket
import traceback
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from semrsm_dist.engine.protocol import Receipt
from semrsm_dist.engine.schedule import Failure
from semrsm_dist.errors import SemrsmError, StorageError, WorkerLostError
from semrsm_dist.store.chunks import limit_threads
from semrsm_dist.store.directory import FATAL_ERRNOS, RunDirectory
from semrsm_dist.store.paths import RunPath

log = logging.getLogger(__name__)

Unit = TypeVar("Unit", bound=Hashable)

SHOWN = 10
"""Lines of a list in a message."""


def attempt_each(units: Iterable[Unit], do: Callable[[Unit], Receipt], run: RunPath) -> Iterator[Receipt]:
    """Yield a receipt for each unit; one that fails is recorded, to be tried again, and the others continue.

    Raises WorkerLostError as `do` raises it.
    """
    limit_threads()  # of this process, if it is not the driver's
    for unit in units:
        try:
            receipt = do(unit)
        except WorkerLostError:  # which is not the unit's fault
            raise
        except Exception as error:
            log.info("%s failed here", unit, exc_info=True)
            receipt = failure_receipt(unit, error, run)
        yield receipt


def first_cause(failures: Sequence[Failure]) -> str:
    """Return the gist of the first failure: its message, or the last line of its traceback."""
    return _gist(failures[0].error)


def list_failures(failures: Sequence[Failure]) -> str:
    """Return one line per failed unit, for a message."""
    return list_some([f"{failure.unit}: {_gist(failure.error)}" for failure in failures])


def list_some(lines: Sequence[str]) -> str:
    """Return the first of some lines, for a message, and how many more there are."""
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join(f"  {line}" for line in [*lines[:SHOWN], *more])


def _gist(error: str) -> str:
    return error.strip().splitlines()[-1] if error.startswith("Traceback") else error.strip()


def failure_receipt(unit: Hashable, error: Exception, run: RunPath | None = None) -> Receipt:
    """Describe a failed unit: the message of an error meant for users, the traceback of any other.

    Causes that would fail every other unit too are marked fatal: a full or read-only file system, and a run directory
    (`run`) that cannot be seen where the unit was tried.
    """
    if run is not None and not RunDirectory(run).is_visible():
        return Receipt(
            unit,
            fatal=True,
            error=f"{socket.gethostname()} does not see the run directory {run}, so nothing can be read or written "
            "there; put the run on a file system that all nodes share, at the same path on each",
        )
    if isinstance(error, OSError) and error.errno in FATAL_ERRNOS:
        return Receipt(
            unit,
            fatal=True,
            error=f"{type(error).__name__}: {error}; make room or make the place writable, then start the run's "
            "command again",
        )
    if isinstance(error, SemrsmError) and not isinstance(error, StorageError):
        return Receipt(unit, error=str(error))
    if isinstance(error, OSError):
        return Receipt(unit, error=f"{type(error).__name__}: {error}")
    return Receipt(unit, error="".join(traceback.format_exception(error)))

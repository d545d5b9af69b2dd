"""What comes back from a call of a worker: news in the engine's terms, or the cause of a worker that cannot begin."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any, NoReturn, TypeAlias

import ray
from ray.exceptions import RayError, RayTaskError

from semrsm_dist.engine.engines.ray.reporting import SignOfLife
from semrsm_dist.engine.protocol import Begun, Crash, Event, Finished, Progress, Task
from semrsm_dist.errors import SemrsmError, WorkerLostError, first_line, shorten

MESSAGE_SECONDS = 0.005
"""The driver's time for each message of a worker."""

CLOSE_SECONDS = 60.0
"""How long a pool that is closed waits for its tasks."""

MOST_NAMED = 5
"""Tasks that are named of those that did not end."""

Call: TypeAlias = ray.ObjectRefGenerator

log = logging.getLogger(__name__)


def wait_for_news(waitables: list[Any], timeout: float) -> list[Any]:
    """Return all that have news, waiting up to `timeout` seconds for the first of them."""
    if not waitables:
        time.sleep(timeout)
        return []
    if not ray.wait(waitables, timeout=timeout, fetch_local=False)[0]:
        return []
    ready, _ = ray.wait(waitables, num_returns=len(waitables), timeout=0, fetch_local=False)
    return list(ready)


def await_end(calls: Iterable[tuple[Call, Task]]) -> list[Call]:
    """Wait at most `CLOSE_SECONDS` until calls have ended; report and return those that have not."""
    ends = {call.completed(): (call, task) for call, task in calls}
    if not ends:
        return []
    _, left = ray.wait(list(ends), num_returns=len(ends), timeout=CLOSE_SECONDS, fetch_local=False)
    late = [ends[end] for end in left]
    if late:
        log.warning(
            "tasks that have not ended %.0f s after their pool was closed, whose processes are killed: %d (first "
            "units: %s)",
            CLOSE_SECONDS,
            len(late),
            shorten((task.units[0] for _, task in late), MOST_NAMED),
        )
    return [call for call, _ in late]


def read_news(call: Call, task: Task) -> list[Event]:
    """Return what a call with news has to say; its end is always the last event.

    Raises RayTaskError if the worker could not be loaded.
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
            return [*events, Finished(task, error=one_line(error), system=True)]
        if isinstance(item, Crash):
            return [*events, Finished(task, error=item.error, system=item.lost)]
        if isinstance(item, SignOfLife):
            events.append(Begun(task, item.place, item.seconds, item.stack))
        else:
            events.append(Progress(task, item))
        if not call.next_ready():
            return events


def report_seconds(workers: int) -> float:
    """Return how often each of this many workers may report, so that one driver can follow."""
    return MESSAGE_SECONDS * workers


def raise_cause_of_many(error: RayTaskError, failed: int, most: int) -> None:
    """Raise what a worker met before it could work, if that is meant for users or happened too often in a row.

    One node may lack what others have.
    """
    if is_meant_for_users(error) or failed > most:
        raise_cause(error)
    warn_of_load(error)


def is_meant_for_users(error: RayTaskError) -> bool:
    """Return whether what a worker met would be met everywhere, and says to the user what to do."""
    return isinstance(error.cause, SemrsmError) and not isinstance(error.cause, WorkerLostError)


def warn_of_load(error: RayTaskError) -> None:
    """Warn of a worker that could not begin, and is started again."""
    log.warning("a worker could not be loaded, and is tried elsewhere: %s", first_line(error.cause or error))


def raise_cause(error: RayTaskError) -> NoReturn:
    """Raise in the driver what a worker met before it could work, in its own type."""
    cause = error.cause
    if isinstance(cause, SemrsmError):
        raise cause from None
    if isinstance(cause, Exception):
        raise cause from error
    raise error


def one_line(error: Exception) -> str:
    """Return an error's type and text in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"

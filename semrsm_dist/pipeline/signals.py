"""What ended a run: a signal, or a library that raised KeyboardInterrupt or hid one behind an error of its own."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

from semrsm_dist.errors import SemrsmError, WorkError

_watched: list[list[str]] = []
"""The names of the signals that came, for each block that watches."""


@contextlib.contextmanager
def watching_signals() -> Iterator[list[str]]:
    """Yield a list, to which the caller's handlers of signals add the name of each that comes in this block."""
    came: list[str] = []
    _watched.append(came)
    try:
        yield came
    finally:
        _watched.pop()


def find_cause(error: BaseException) -> BaseException:
    """Return what an error really is: a KeyboardInterrupt with the signal's name if one came, or no interrupt at all.

    A library may raise KeyboardInterrupt by itself, and make another error of one that a signal caused. What is meant
    for the user stays what it is, as does everything where nobody watches, as in a notebook.
    """
    if (
        not _watched
        or isinstance(error, SemrsmError)
        or not isinstance(error, (Exception, KeyboardInterrupt))
    ):
        return error
    if came := _watched[-1]:
        return KeyboardInterrupt(came[0])
    return _without_signal(error) if isinstance(error, KeyboardInterrupt) else error


def _without_signal(error: KeyboardInterrupt) -> WorkError:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return WorkError(
        f"the command ended by a KeyboardInterrupt, but no signal came: a library raised it, at {place.filename}:"
        f"{place.lineno} ({place.name}); what was finished is kept: start the same command"
    )

"""Errors meant for the user, and their exit status.

Every message names the cause, the consequence and the remedy. Any other exception is a defect of the package and keeps
its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SemrsmError(Exception):
    """Base of all errors meant for the user; `exit_code` is the status of the command `semrsm`."""

    exit_code = 1


class ConfigError(SemrsmError, ValueError):
    """The configuration or command line requests something that does not exist or is impossible."""

    exit_code = 2


class InputError(SemrsmError, ValueError):
    """The given images or features cannot be used."""

    exit_code = 2


class ResumeError(SemrsmError):
    """The run directory belongs to another configuration, or another driver is at work on it."""

    exit_code = 2


class StorageError(SemrsmError, OSError):
    """The store cannot be read or written: full, read-only, or damaged."""

    exit_code = 1


class WorkError(SemrsmError):
    """Some of the work failed; what succeeded is kept, and a resume tries the rest again."""

    exit_code = 1


class IncompleteError(SemrsmError):
    """A result was requested that the run has not computed yet."""

    exit_code = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` did you mean 'a' or 'b'?`` for the names closest to `name`, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""

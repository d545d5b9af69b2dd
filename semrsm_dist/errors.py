"""Errors meant for the user, and their exit status.

Every message names the cause, the consequence and the remedy. Any other exception is a defect of the package and keeps
its traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class SemrsmError(Exception):
    """Base of all errors meant for the user; `exit_code` is the status of the command `semrsm`.

    Its text has no control characters but line breaks and tabs, so that a file's name cannot drive the terminal.
    """

    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(SemrsmError, ValueError):
    """The configuration or command line requests something that does not exist or is impossible."""

    exit_code = 2


class InputError(SemrsmError, ValueError):
    """The given images or features cannot be used."""

    exit_code = 2


class MissingInputError(InputError):
    """There is nothing where an input should be; see `semrsm_dist.pipeline.kept` for those that may be gone."""


class ResumeError(SemrsmError):
    """The run directory belongs to another configuration, or another driver is at work on it."""

    exit_code = 2


class StorageError(SemrsmError, OSError):
    """The store cannot be read or written: full, read-only, or damaged."""

    exit_code = 1


class LimitError(SemrsmError):
    """The work would need more than there is, or than was allowed; nothing was begun."""

    exit_code = 1


class WorkError(SemrsmError):
    """Some of the work failed; what succeeded is kept, and a resume tries the rest again."""

    exit_code = 1


class IncompleteError(SemrsmError):
    """A result was requested that the run has not computed yet."""

    exit_code = 3


_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return a text with all that could drive a terminal written as escapes; line breaks and tabs are kept.

    >>> printable("a\x1b[2J.png")
    'a\\x1b[2J.png'
    """
    return _CONTROL.sub(lambda found: repr(found.group())[1:-1], text)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type if it has none, for the message of another error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def reason_of(error: BaseException) -> str:
    """Return what went wrong: of an error of the operating system without its number and path, else its first line.

    >>> reason_of(FileNotFoundError(2, "No such file or directory", "a.npy"))
    'No such file or directory'
    """
    return getattr(error, "strerror", None) or first_line(error)


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return `` did you mean 'a' or 'b'?`` for the names closest to `name`, or an empty string if none is."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5) if isinstance(name, str) else ()
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def require_known(kind: str, name: object, known: Iterable[str], where: str = "") -> None:
    """Refuse a name that is not known.

    Raises
    ------
    ConfigError
        With the names that it may have meant, and all that are known; `where` begins the message.
    """
    known = list(known)
    if not isinstance(name, str) or name not in known:
        raise ConfigError(
            f"{where}unknown {kind} {name!r}: known are {', '.join(known)}{did_you_mean(name, known)}"
        )

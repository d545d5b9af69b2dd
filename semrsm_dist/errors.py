"""Errors meant for the user, and their exit status.

Every message names the cause, the consequence and the remedy. Any other exception is a defect of the package and keeps
its traceback.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable


class SemrsmError(Exception):
    """Base of all errors meant for the user; `exit_code` is the status of the command `semrsm`.

    Its text is `printable`, so that a file's name cannot drive the terminal.
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
    """There is nothing where an input should be; see `semrsm_dist.pipeline.gone_inputs` for those that may be gone."""


class ResumeError(SemrsmError):
    """The run directory belongs to another configuration, or another driver is at work on it."""

    exit_code = 2


class StorageError(SemrsmError, OSError):
    """The store cannot be read or written: full, read-only, or damaged."""

    exit_code = 1


class UnreadableFileError(StorageError):
    """The file system does not let a file be read, for lack of permission or as the disk fails: it may be intact."""


def unreadable(
    path: object, error: OSError, what: str = "cannot be read", so: str = ""
) -> UnreadableFileError:
    """Return the error of what the file system does not let be read, with what is not known then."""
    consequence = f", so {so}" if so else ""
    lacks_handles = error.errno in (errno.EMFILE, errno.ENFILE)
    remedy = (
        "raise the limit of open files (ulimit -n)" if lacks_handles else "check the disk and the permissions"
    )
    return UnreadableFileError(
        f"{path}: {what} ({reason_of(error)}){consequence}; nothing was changed: {remedy}, then repeat the command"
    )


class LimitError(SemrsmError):
    """The work would need more than there is, or than was allowed; nothing was begun."""

    exit_code = 1


class WorkError(SemrsmError):
    """Some of the work failed; what succeeded is kept, and a resume tries the rest again."""

    exit_code = 1


class WorkerLostError(WorkError):
    """A worker can do nothing any more, such as when its GPU failed; others may do what it was to do."""


class UnusableGpuError(ConfigError, WorkerLostError):
    """A worker's GPU cannot be used at all, such as for its driver; workers on other GPUs may do its work."""


class IncompleteError(SemrsmError):
    """A result was requested that the run has not computed yet."""

    exit_code = 3


_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_FOREIGN = 200
"""Characters that are repeated of an error of another package."""
_SECRET = re.compile(
    r"(?<=://)[^\s/@:\['\"]*:(?!\d+/)[^\s@'\"]+(?=@)"  # user:password, but not host:port/...
    r"|(?<=[?&])([\w-]*(?:secret|secret_key|password|token|signature|access_?key|api_?key)=|sig=)[^&\s'\"]+",
    re.IGNORECASE,
)


def printable(text: str) -> str:
    r"""Return a text that may be shown and logged: what could drive a terminal as escapes, and no secrets of URIs.

    Line breaks and tabs are kept.

    >>> printable("a\x1b[2J.png")
    'a\\x1b[2J.png'
    """
    return _CONTROL.sub(lambda found: repr(found.group())[1:-1], hide_secrets(text))


def printable_name(name: str) -> str:
    r"""Return `printable` text in one line: a name with a line break must not look like a line of its own.

    >>> printable_name("a.png\nwarning: none")
    'a.png\\nwarning: none'
    """
    return printable(name).replace("\n", "\\n").replace("\t", "\\t")


def counted(n: float, noun: str, plural: str = "") -> str:
    """Return a number with its noun, in the plural but for one.

    >>> counted(1, "image"), counted(0, "image"), counted(2, "query", "queries")
    ('1 image', '0 images', '2 queries')
    """
    return f"{format(n, 'g') if isinstance(n, float) else n} {noun if n == 1 else plural or f'{noun}s'}"


def shorten(names: Iterable[object], n: int = 5, *, counts: bool = False) -> str:
    """Write out the first few of some names; `counts` says how many others there are.

    >>> shorten("abc", 2), shorten("abc", 2, counts=True)
    ('a, b, ...', 'a, b and 1 more')
    """
    shown = [printable_name(str(name)) for name in names]
    others = f" and {len(shown) - n} more" if counts else ", ..."
    return ", ".join(shown[:n]) + (others if len(shown) > n else "")


def hide_secrets(text: str) -> str:
    """Return a text with asterisks for passwords, keys and tokens that are written into URIs.

    >>> hide_secrets("s3://AKIA:abc@bucket/images?region=eu-west-1&session_token=xyz")
    's3://***@bucket/images?region=eu-west-1&session_token=***'
    """
    return _SECRET.sub(lambda found: f"{found[1] or ''}***", text)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type if it has none, for the message of another error.

    A long line of a foreign error is cut; one of ours ends with the remedy.

    >>> first_line(ConfigError(f"{'a' * 300}; choose b"))[-10:], len(first_line(ValueError("a" * 300)))
    ('; choose b', 201)
    """
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if isinstance(error, SemrsmError) or len(line) <= _FOREIGN else f"{line[:_FOREIGN]}\u2026"


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

    Raises ConfigError with the names that it may have meant, and all that are known; `where` begins the message.
    """
    known = list(known)
    if not isinstance(name, str) or name not in known:
        raise ConfigError(
            f"{where}unknown {kind} {name!r}: known are {', '.join(known)}{did_you_mean(name, known)}"
        )

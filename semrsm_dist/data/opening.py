"""Opening files for reading: only what is a file is opened.

Opening a pipe waits for a writer, perhaps for ever; a device may never end. Whatever opens a local file for reading, of
users or of a run, looks here first.
"""

from __future__ import annotations

import errno
import stat
from pathlib import Path

from semrsm_dist.errors import InputError, MissingInputError, reason_of

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

NO_SUCH_NAME = frozenset({errno.ENAMETOOLONG, errno.ELOOP})
"""Errors of names that lead to no file on any disk: too long, or a link that leads back to itself."""


class NotAFileError(OSError):
    """What is in the place of a file is none, and is not opened."""


NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, NotAFileError)
"""Errors that say that there is no file in a place. After any other error, there may well be one."""


def require_file(path: str | Path) -> None:
    """Check that there is a file, or a link to one.

    Raises
    ------
    FileNotFoundError, NotADirectoryError, IsADirectoryError, NotAFileError
        If there is none.
    OSError
        If the file system does not tell.
    """
    try:
        mode = Path(path).stat().st_mode
    except ValueError:  # a name with a null character
        raise NotAFileError(errno.EINVAL, "no file can have this name", str(path)) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise NotAFileError(error.errno, error.strerror, str(path)) from error
        raise
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise NotAFileError(errno.EINVAL, f"it is {kind}, not a file", str(path))


def read_file(path: Path) -> bytes:
    """Return the content of a file; raises what `require_file` and reading raise."""
    require_file(path)
    return path.read_bytes()


def require_input(path: Path) -> None:
    """Check that a file that a user names, and another library opens, is there and may be read.

    Raises MissingInputError or InputError if it is not there, or cannot be read.
    """
    try:
        require_file(path)
        path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingInputError(f"{path}: there is no such file; check the path") from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({reason_of(error)}); grant access, or give the path of a file that can be read"
        ) from error

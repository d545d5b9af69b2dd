"""What a command writes: results on standard output, all else on standard error."""

from __future__ import annotations

import contextlib
import os
import sys

from semrsm_dist.errors import StorageError, printable


def show(text: str) -> None:
    """Write a result on standard output. That nobody reads it does not make the command fail."""
    try:
        print(printable(text), flush=True)
    except OSError as error:
        # Give the interpreter nothing to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise StorageError(
                f"standard output cannot be written ({error.strerror}); what was computed is kept"
            ) from error


def complain(message: str) -> None:
    """Write what is wrong on standard error."""
    with contextlib.suppress(OSError):  # nobody reads standard error any more
        print(printable(f"semrsm: {message}"), file=sys.stderr, flush=True)

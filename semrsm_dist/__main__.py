"""The entry point of `semrsm` and `python -m semrsm_dist`."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from semrsm_dist.cli.interrupts import end_while_loading, ignore_from_now_on
from semrsm_dist.errors import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; an interrupt while it loads ends it at once."""
    _open_missing_streams()
    sys.excepthook = _show_defect
    end_while_loading()
    from semrsm_dist.cli.commands import main as command  # noqa: PLC0415 - it is what takes time to load

    status = command(arguments)
    ignore_from_now_on()
    _end_despite_hung_threads(status)
    return status


def _end_despite_hung_threads(status: int) -> None:
    """End the process at once if threads of an engine hang: the interpreter could wait for them for ever."""
    engines = [sys.modules.get(f"semrsm_dist.engine.engines.{name}") for name in ("local", "ray")]
    if any(engine is not None and engine.has_hung_threads() for engine in engines):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # nobody may be reading any more
                stream.flush()
        os._exit(status)


def _show_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an exception that is no `SemrsmError`; its text may hold the name of any file."""
    sys.stderr.write(printable("".join(traceback.format_exception(kind, error, trace))))


def _open_missing_streams() -> None:
    """Open standard streams that were closed (`2>&-`): else the next file opened would get what is meant for them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
        if getattr(sys, name) is None:  # Ray fails on it
            setattr(sys, name, Path(os.devnull).open("w" if number else "r"))  # noqa: SIM115 - until the process ends


if __name__ == "__main__":
    sys.exit(main())

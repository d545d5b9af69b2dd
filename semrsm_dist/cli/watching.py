"""Following a run: its status again and again, in place on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from textwrap import wrap
from typing import Any

from semrsm_dist.errors import printable
from semrsm_dist.progress import LINE_SECONDS
from semrsm_dist.results.status_text import format_line, format_status

CLEAR = "\x1b[{lines}F\x1b[J"
"""Moves the cursor up this many lines, and clears all that follows."""


def follow(
    statuses: Iterable[dict[str, Any]], write: Callable[[str], None], *, as_json: bool
) -> dict[str, Any]:
    """Show statuses as they come, at least one, and return the last; as JSON, all of them."""
    in_place = sys.stdout.isatty()
    show = _in_place(write) if in_place else _by_line(write)
    status: dict[str, Any] = {}
    for status in statuses:
        if as_json:
            write(json.dumps(status))
        else:
            show(status)
    if not as_json and not in_place:
        write(format_status(status))
    return status


def _in_place(write: Callable[[str], None]) -> Callable[[dict[str, Any]], None]:
    shown: list[str] = []

    def show(status: dict[str, Any]) -> None:
        if shown:
            sys.stdout.write(CLEAR.format(lines=len(shown)))
        columns = os.get_terminal_size(sys.stdout.fileno()).columns or 80
        lines = printable(format_status(status)).split("\n")
        # Broken here: a line that the terminal breaks would be two, which nobody counts.
        shown[:] = [part for line in lines for part in wrap(line, columns - 1, subsequent_indent="    ")]
        write("\n".join(shown))

    return show


def _by_line(write: Callable[[str], None]) -> Callable[[dict[str, Any]], None]:
    last: dict[str, Any] = {}

    def show(status: dict[str, Any]) -> None:
        stage = status["stage"] or {}
        step = (stage.get("name"), stage.get("n_set_aside"), (status["driver"] or {}).get("state"))
        is_due = stage.get("done") != last.get("done") and time.monotonic() - last["time"] >= LINE_SECONDS
        if status["working"] and (step != last.get("step") or is_due):
            last.update(step=step, done=stage.get("done"), time=time.monotonic())
            write(format_line(status))

    last["time"] = -LINE_SECONDS
    return show

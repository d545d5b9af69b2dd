"""The progress of a run in words: all of it, or in one line."""

from __future__ import annotations

import math
import time
from typing import Any

from semrsm_dist.errors import printable_name
from semrsm_dist.progress import format_seconds

AGAIN = "start the run's command again to continue"

QUIET_SECONDS = 30.0
"""A stage that has finished nothing for so long says so."""


def format_status(status: dict[str, Any]) -> str:
    """Format what `semrsm_dist.results.status.read_status` returns, in several lines."""
    state = "complete" if status["complete"] else "incomplete"
    activity = "a driver is at work" if status["working"] else "no driver is at work"
    lines = [
        f"{status['run']}: {state}, {activity}",
        *map(_layer, status["layers"], status["layers"].values()),
    ]
    if not status["layers"]:
        lines.append("it is checking the images and the model; nothing is computed yet")
    lines += [*_driver(status), *_workers(status)]
    for failure in status["failed"]:
        error = failure["error"].strip().rpartition("\n")[2]
        lines.append(
            f"failed: {printable_name(failure['stage'])} {printable_name(failure['unit'])}: {printable_name(error)}"
        )
    if not status["complete"] and not status["working"]:
        lines.append(AGAIN)
    return "\n  ".join(lines)


def format_line(status: dict[str, Any]) -> str:
    """Format the same in one line."""
    parts = [time.strftime("%H:%M:%S"), f"{_stage(status)}{_failures(status)}"]
    return " ".join(part for part in parts if part)


def _layer(layer: str, facts: dict[str, Any]) -> str:
    chunks, tiles, pairs = facts["chunks"], facts["tiles"], facts["pairs"]
    return (
        f"{layer}: features {chunks[0]}/{chunks[1]} chunks, {tiles[0]}/{tiles[1]} tiles, "
        f"{pairs[0]}/{pairs[1]} pairs ({100 * pairs[0] / pairs[1]:.0f} %){', complete' if facts['complete'] else ''}"
        f"{', matrices not stored yet' if facts['stored'] is False else ''}"
        f"{'' if facts['requested'] else ' (of an earlier session; no longer requested)'}"
    )


def _driver(status: dict[str, Any]) -> list[str]:
    """Return what the driver is at, or how it ended and what to do then."""
    driver, stage = status["driver"], status["stage"]
    if driver is None:
        return []
    place, ago = printable_name(driver["place"]), format_seconds(driver["silent_seconds"])
    at = f", at {printable_name(stage['name'])}" if stage else ""
    if status["working"]:
        lines = [
            f"{place}, for {format_seconds(time.time() - driver['started'])}",
            _stage(status) + _failures(status),
        ]
        if driver["state"] == "silent":
            lines.append(
                f"nothing was heard of it for {ago}: it is stopped, its machine is overloaded, or the storage hangs; "
                f"if that does not change, end this process, and {AGAIN}"
            )
        return list(filter(None, lines))
    if driver["state"] == "lost":
        return [
            f"the last driver ({place}) was last heard of {ago} ago{at}, and ended without saying so: it was killed, "
            "or its machine was lost; what is finished is kept"
        ]
    if driver["state"] == "failed":
        reason, *more = map(printable_name, driver["reason"].splitlines() or [""])
        return [f"the last driver ({place}) failed {ago} ago{at}: {reason}", *(f"  {line}" for line in more)]
    return (
        [f"the last driver ({place}) was interrupted {ago} ago{at}"]
        if driver["state"] == "interrupted"
        else []
    )


def _stage(status: dict[str, Any]) -> str:
    """Return what is done of the stage, how fast, and how long it will take."""
    stage = status["stage"]
    if stage is None:
        return "" if status["layers"] else "checking the images and the model"
    name, unit = printable_name(stage["name"]), printable_name(stage["unit"])
    if not stage["total"]:
        return f"{name}, for {format_seconds(time.time() - stage['started'])}"
    share = 100 * stage["done"] / stage["total"]
    parts = [f"{name}: {stage['done']}/{stage['total']} {unit} ({share:.0f} %)"]
    if stage["rate"] is not None:
        parts.append(f"{_rate(stage['rate'])} {unit}/s ({_rate(stage['overall_rate'])} in all)")
    left = math.nan if stage["seconds_left"] is None else stage["seconds_left"]
    parts.append(f"{format_seconds(left)} left")
    quiet = time.time() - (stage["heard"] or stage["started"])
    if quiet >= QUIET_SECONDS:
        parts.append(f"nothing new for {format_seconds(quiet)}")
    return ", ".join(parts)


def _rate(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"


def _failures(status: dict[str, Any]) -> str:
    stage = status["stage"]
    if stage is None:
        return ""
    counts = (
        (stage["failures"], "failed attempts"),
        (stage["retries"], "retries"),
        (stage["n_set_aside"], "set aside"),
    )
    return "".join(f", {count} {name}" for count, name in counts if count)


def _workers(status: dict[str, Any]) -> list[str]:
    """Return who is slow, while there is work."""
    stage = status["stage"]
    if stage is None or not status["working"] or not stage["slowest"]:
        return []
    slow = ", ".join(
        f"{printable_name(one['place'])} {one['speed']:.2f} (last result "
        f"{format_seconds(max(time.time() - one['last'], 0.0))} ago)"
        for one in stage["slowest"]
    )
    return [f"slowest of {stage['n_workers']} workers, 1 being the usual speed: {slow}"]

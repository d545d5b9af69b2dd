"""How far a run is, told while it works: a bar on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from typing import Protocol, TextIO

from tqdm import tqdm

LINE_SECONDS = 10.0


class Stage(Protocol):
    """A stage under way."""

    def advance(self, amount: int) -> None:
        """Say that `amount` more units are done."""
        ...

    def tick(self) -> None:
        """Give the display a chance to refresh; called about once a second."""
        ...


class Reporter(Protocol):
    """Where a run tells its progress."""

    def stage(
        self, name: str, total: int, unit: str, done: int = 0
    ) -> contextlib.AbstractContextManager[Stage]:
        """Open a stage of `total` units, `done` of which an earlier session finished."""
        ...

    def note(self, message: str) -> None:
        """Say one line."""
        ...


class SilentReporter:
    """Tells nothing; for use as a library."""

    @contextlib.contextmanager
    def stage(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Stage]:
        """Open a stage that shows nothing."""
        yield _Silence()

    def note(self, message: str) -> None:
        """Say nothing."""


class ConsoleReporter:
    """Tells progress on a stream, standard error by default."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    @contextlib.contextmanager
    def stage(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Stage]:
        """Show a stage until the block ends."""
        shown: _Bar | _Lines = (
            _Bar(name, total, unit, done, self._stream)
            if self._stream.isatty()
            else _Lines(name, total, unit, done, self._stream)
        )
        try:
            yield shown
        finally:
            shown.close()

    def note(self, message: str) -> None:
        """Write one line, above a bar if there is one."""
        tqdm.write(message, file=self._stream)
        self._stream.flush()


class _Silence:
    def advance(self, amount: int) -> None:
        pass

    def tick(self) -> None:
        pass


class _Bar:
    def __init__(self, name: str, total: int, unit: str, done: int, stream: TextIO) -> None:
        self._bar = tqdm(
            desc=f"{name:<12}",
            total=total,
            initial=done,
            unit=f" {unit}",
            file=stream,
            dynamic_ncols=True,
            smoothing=0.05,
            unit_scale=True,
        )

    def advance(self, amount: int) -> None:
        self._bar.update(amount)

    def tick(self) -> None:
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


class _Lines:
    def __init__(self, name: str, total: int, unit: str, done: int, stream: TextIO) -> None:
        self._name, self._total, self._unit, self._stream = name, total, unit, stream
        self._done = self._before = done
        self._started = self._told = time.monotonic()

    def advance(self, amount: int) -> None:
        self._done += amount
        self.tick()

    def tick(self) -> None:
        now = time.monotonic()
        if now - self._told >= LINE_SECONDS:
            self._told = now
            self._write(now)

    def close(self) -> None:
        self._write(time.monotonic())

    def _write(self, now: float) -> None:
        elapsed = max(now - self._started, 1e-9)
        rate = (self._done - self._before) / elapsed
        left = (self._total - self._done) / rate if rate > 0 else float("nan")
        share = 100 * self._done / self._total if self._total else 100.0
        ending = (
            f"{format_seconds(left)} left" if self._done < self._total else f"took {format_seconds(elapsed)}"
        )
        self._stream.write(
            f"{self._name}: {self._done}/{self._total} {self._unit} ({share:.0f} %), "
            f"{rate:.1f} {self._unit}/s, {ending}\n"
        )
        self._stream.flush()


def format_seconds(seconds: float) -> str:
    """Write a duration for people: `0.4 s`, `12 s`, `3 min 20 s`, `5 h 07 min`; `unknown time` if it is not finite."""
    if not math.isfinite(seconds):
        return "unknown time"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

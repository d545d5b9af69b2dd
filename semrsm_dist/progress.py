"""Progress of a run while it works: a bar on a terminal or in a notebook, a line every ten seconds elsewhere."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Protocol, TextIO, runtime_checkable

from tqdm import tqdm

from semrsm_dist.errors import ConfigError, printable

LINE_SECONDS = 10.0
WIDGET_COLUMNS = 200
"""What fits into a line beside a widget's bar, about: a notebook is as wide as its window."""

QUIET_SECONDS = 30.0
"""After so long without news, progress says how old the last news is: the time left is then a guess."""


class Stage(Protocol):
    """A stage in progress."""

    def advance(self, amount: int, effort: float | None = None) -> None:
        """Report that `amount` more units are done, and how much of the stage's effort they were.

        An effort of 0 is for what is found done: where no other comes, and some is left, another stage goes on with it.
        """
        ...

    def tick(self) -> None:
        """Give the display a chance to refresh; called about once a second."""
        ...


@runtime_checkable
class Reporter(Protocol):
    """Where a run reports its progress."""

    def stage(
        self, name: str, total: int, unit: str, done: int = 0, *, effort: float | None = None
    ) -> contextlib.AbstractContextManager[Stage]:
        """Open a stage.

        Parameters
        ----------
        name
            What it is called.
        total, unit, done
            How many units it has, what they are, and how many an earlier session finished.
        effort
            How much work is left, in the same measure as `advance` uses: the time left is estimated from it. Without
            it, all units count as equally long.
        """
        ...

    def note(self, message: str) -> None:
        """Write one line."""
        ...


def require_reporter(reporter: object) -> Reporter:
    """Return a reporter, or refuse what is none; None means a bar in a notebook, and nothing elsewhere.

    Raises ConfigError if it lacks a method.
    """
    if reporter is None:
        return ConsoleReporter(sys.stdout) if in_notebook() else SilentReporter()
    if not isinstance(reporter, Reporter):
        raise ConfigError(
            f"reporter: {reporter!r}: expected a reporter, such as semrsm_dist.ConsoleReporter(); leave it out to "
            "report nothing"
        )
    return reporter


def in_notebook() -> bool:
    """Return whether this code runs in a Jupyter kernel, which shows what it prints in a notebook or console."""
    ipython = sys.modules.get("IPython")
    return getattr(ipython and ipython.get_ipython(), "kernel", None) is not None


class SilentReporter:
    """Reports nothing; for use as a library."""

    @contextlib.contextmanager
    def stage(
        self, name: str, total: int, unit: str, done: int = 0, *, effort: float | None = None
    ) -> Iterator[Stage]:
        """Open a stage that shows nothing."""
        yield _Silence()

    def note(self, message: str) -> None:
        """Report nothing."""


class ConsoleReporter:
    """Reports progress on a stream, standard error by default.

    A stream that can no longer be written to is left alone: progress never ends a run.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = _Display(stream or sys.stderr)

    @contextlib.contextmanager
    def stage(
        self, name: str, total: int, unit: str, done: int = 0, *, effort: float | None = None
    ) -> Iterator[Stage]:
        """Show a stage until the block ends."""
        pace = _Pace(float(total - done) if effort is None else effort)
        kind = _Bar if self._stream.isatty() or self._stream.is_in_notebook() else _Lines
        shown = kind(name, total, unit, done, pace, self._stream)
        try:
            yield shown
        finally:
            # It failed before anything was done, or all of it failed; or what took no effort was only looked up.
            if pace.is_idle and not shown.is_complete:
                shown.discard()
            shown.close()

    def note(self, message: str) -> None:
        """Write one line, above a bar if there is one."""
        tqdm.write(printable(message), file=self._stream)
        self._stream.flush()


class NoteHandler(logging.Handler):
    """Shows log records with a reporter's notes, each text once, however often it is logged."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self._reporter = reporter
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Show `warning: what is wrong`."""
        text = f"{record.levelname.lower()}: {record.getMessage()}"
        if text not in self._shown:
            self._shown.add(text)
            self._reporter.note(text)


class _Display:
    """A stream as tqdm needs it, without its errors: nobody may be reading, or only ASCII may be written."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream  # None once it cannot be written to
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        with self._until_it_fails() as stream:
            stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        with self._until_it_fails() as stream:
            stream.flush()

    def isatty(self) -> bool:
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def is_in_notebook(self) -> bool:
        return self._stream in (sys.stdout, sys.stderr) and in_notebook()

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError("the stream is closed")
        return self._stream.fileno()

    @contextlib.contextmanager
    def _until_it_fails(self) -> Iterator[TextIO]:
        try:
            yield self._stream or io.StringIO()
        except (OSError, ValueError):  # a terminal or pipe that has gone, a full disk, a closed file
            self._stream = None


class _Silence:
    def advance(self, amount: int, effort: float | None = None) -> None:
        pass

    def tick(self) -> None:
        pass


class _Pace:
    """How fast a session works through its effort."""

    def __init__(self, effort: float) -> None:
        self._left = effort
        self._done = 0.0
        self._started = self._last = time.monotonic()

    def advance(self, effort: float) -> None:
        self._done += effort
        self._left -= effort
        self._last = time.monotonic()

    def __str__(self) -> str:
        quiet = time.monotonic() - self._last
        age = f", nothing new for {format_seconds(quiet)}" if quiet >= QUIET_SECONDS else ""
        return f"{format_seconds(self.seconds_left)} left{age}"

    @property
    def is_idle(self) -> bool:
        """Whether nothing is done yet."""
        return self._done == 0

    @property
    def elapsed(self) -> float:
        return max(time.monotonic() - self._started, 1e-9)

    @property
    def seconds_left(self) -> float:
        """Seconds left at the present rate; NaN before anything is done."""
        return max(self._left, 0.0) * self.elapsed / self._done if self._done > 0 else math.nan


class _Bar:
    def __init__(self, name: str, total: int, unit: str, done: int, pace: _Pace, stream: _Display) -> None:
        self._pace = pace
        bar, columns = _choose_bar(stream)
        self._bar = bar(
            desc=f"{name:<12}",
            total=total,
            initial=done,
            unit=f" {unit}",
            file=stream,
            # 0 columns would show no bar.
            **({"dynamic_ncols": True} if columns else {"ncols": 80, "nrows": 24}),
            smoothing=0.05,
            bar_format=_bar_format(total, unit, columns or 80),
        )

    def advance(self, amount: int, effort: float | None = None) -> None:
        self._pace.advance(amount if effort is None else effort)
        self._bar.set_postfix_str(str(self._pace), refresh=False)
        self._bar.update(amount)

    def tick(self) -> None:
        self._bar.set_postfix_str(str(self._pace))

    @property
    def is_complete(self) -> bool:
        return bool(self._bar.n >= self._bar.total)

    def discard(self) -> None:
        self._bar.leave = False

    def close(self) -> None:
        self._bar.set_postfix_str("", refresh=False)
        self._bar.close()


def _choose_bar(stream: _Display) -> tuple[type[tqdm], int]:
    """Return the class of a bar, and how many columns it has, 0 if that is not known."""
    if not stream.is_in_notebook():
        return tqdm, _columns(stream)
    if not find_spec("ipywidgets"):
        return tqdm, 0
    from tqdm.notebook import tqdm as widget  # noqa: PLC0415 - it needs ipywidgets

    return widget, WIDGET_COLUMNS


def _columns(stream: _Display) -> int:
    """Return the width of a terminal, 0 where it says none, as new pseudo-terminals do."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return 0


def _bar_format(total: int, unit: str, columns: int) -> str:
    """Return what fits beside a bar in a line of this many columns; the time left comes first."""
    counts = 2 * len(str(total)) + len(unit) + 2
    for needed, ending in (
        (62 + counts + len(unit), "| {n_fmt}/{total_fmt}{unit} [{elapsed}, {rate_fmt}{postfix}]"),
        (42 + counts, "| {n_fmt}/{total_fmt}{unit}{postfix}"),
        (42, "|{postfix}"),
    ):
        if columns >= needed:
            return "{desc}{percentage:3.0f}%|{bar}" + ending
    return "{desc}{percentage:3.0f}%{postfix}"


class _Lines:
    def __init__(self, name: str, total: int, unit: str, done: int, pace: _Pace, stream: _Display) -> None:
        self._name, self._total, self._unit, self._stream = name, total, unit, stream
        self._done = self._before = done
        self._pace = pace
        self._reported = time.monotonic()
        self._is_discarded = False

    def advance(self, amount: int, effort: float | None = None) -> None:
        self._done += amount
        self._pace.advance(amount if effort is None else effort)
        if self._done < self._total:  # the last line is the one that closes the stage
            self.tick()

    def tick(self) -> None:
        now = time.monotonic()
        if now - self._reported >= LINE_SECONDS:
            self._reported = now
            self._write(str(self._pace) if self._done < self._total else "finishing")

    @property
    def is_complete(self) -> bool:
        return self._done >= self._total

    def discard(self) -> None:
        self._is_discarded = True

    def close(self) -> None:
        if self._total and not self._is_discarded:
            word = "ended after" if self._done < self._total else "took"
            self._write(f"{word} {format_seconds(self._pace.elapsed)}")

    def _write(self, ending: str) -> None:
        rate = (self._done - self._before) / self._pace.elapsed
        share = 100 * self._done / self._total if self._total else 100.0
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

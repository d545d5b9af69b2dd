"""Logs as JSON, one object per line, for machines that collect them: of drivers and of workers, in the same form."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, TextIO

from semrsm_dist.errors import printable

log = logging.getLogger(__name__)

FORMATS = ("text", "json")

VARIABLE = "SEMRSM_LOG_FORMAT"
"""The environment variable that chooses the format; engines hand it on to workers."""

PROGRESS_SECONDS = 10.0


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object: time (UTC), level, logger, message, where it is from, and further facts."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage()),
            "host": socket.gethostname(),
            "process": record.process,
            "thread": record.threadName,
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = printable(self.formatException(record.exc_info))
        return json.dumps(line, default=str)


def log_json(stream: TextIO | None = None) -> logging.Handler:
    """Write the log of this process as JSON from now on; return the handler, for `logging.Logger.removeHandler`."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.getLogger().addHandler(handler)
    logging.getLogger("semrsm_dist").setLevel(logging.INFO)
    return handler


def log_as_chosen() -> None:
    """In a worker process, log in the driver's format: `VARIABLE` has it."""
    is_json = any(isinstance(one.formatter, JsonFormatter) for one in logging.getLogger().handlers)
    if os.environ.get(VARIABLE) == "json" and not is_json:
        log_json()


class LogReporter:
    """Reports progress to the log; see `semrsm_dist.progress.Reporter`."""

    @contextlib.contextmanager
    def stage(
        self, name: str, total: int, unit: str, done: int = 0, *, effort: float | None = None
    ) -> Iterator[_LoggedStage]:
        """Log a stage every ten seconds and at its end."""
        stage = _LoggedStage(name, total, unit, done)
        try:
            yield stage
        finally:
            stage.log("goes on" if stage.is_looked_up else "ended")

    def note(self, message: str) -> None:
        """Log one line."""
        log.info("%s", message)


class _LoggedStage:
    def __init__(self, name: str, total: int, unit: str, done: int) -> None:
        self._name, self._total, self._unit, self._done = name, total, unit, done
        self._started = time.monotonic()
        self._found = 0  # without effort
        self._before = done
        self.log("began")

    @property
    def is_looked_up(self) -> bool:
        """Whether part of it was found done, and another stage goes on with the rest."""
        return 0 < self._found == self._done - self._before and self._done < self._total

    def advance(self, amount: int, effort: float | None = None) -> None:
        self._done += amount
        self._found += amount if effort == 0 else 0
        self.tick()

    def tick(self) -> None:
        if time.monotonic() - self._logged >= PROGRESS_SECONDS:
            self.log("goes on")

    def log(self, what: str) -> None:
        self._logged = time.monotonic()
        facts = {
            "stage": self._name,
            "unit": self._unit,
            "done": self._done,
            "total": self._total,
            "seconds": round(self._logged - self._started, 3),
        }
        message = f"{self._name} {what}: {self._done}/{self._total} {self._unit}"
        log.info("%s", message, extra={"facts": facts})

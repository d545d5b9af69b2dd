"""What a run takes outside of its stages, measured: to load the package, to start workers, and to draw its picture."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from semrsm_dist.engine import Engine, Resources, Task, run_tasks
from semrsm_dist.engine.protocol import Receipt
from semrsm_dist.errors import WorkError
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.plot.overview import draw_overview
from semrsm_dist.results.run import Run
from semrsm_dist.store.paths import RunPath, read_file

LOADED = """
import json, sys
import semrsm_dist.pipeline.driver, semrsm_dist.plot.overview
from semrsm_dist.matching.matchers import make_matcher
make_matcher(sys.argv[1], **json.loads(sys.argv[2])).compile()
"""
"""What the command `semrsm run` loads before it begins, as a program."""


@dataclass(frozen=True)
class Starter:
    """A worker that gets ready for matching and does nothing."""

    matcher: Matcher

    def __call__(self, units: tuple[Hashable, ...]) -> Iterator[Receipt]:
        """Yield a receipt for each unit once everything is loaded."""
        self.matcher.compile()
        for unit in units:
            yield Receipt(unit)


def time_loading(matcher: Matcher) -> float:
    """Return the seconds in which a process starts and loads what a run needs, its matcher compiled before.

    Raises WorkError if a process of its own cannot.
    """
    program = [sys.executable, "-c", LOADED, matcher.name, json.dumps(matcher.parameters)]
    started = time.perf_counter()
    done = subprocess.run(program, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise WorkError(
            f"a process of its own cannot load the package or the matcher {matcher.name!r}, so a run could not be "
            f"started: install what is missing for {sys.executable}. {done.stderr.strip().rpartition(chr(10))[2]}"
        )
    return time.perf_counter() - started


def time_workers(engine: Engine, matcher: Matcher, count: int) -> float:
    """Return the seconds in which an engine starts this many workers of matching, and ends them."""
    started = time.perf_counter()
    pool = engine.start_tasks(Starter(matcher), Resources(cpus=matcher.cpus, gpus=matcher.gpus))
    run_tasks(pool, [Task((number,)) for number in range(count)], on_receipt=lambda _: None)
    pool.close()
    return time.perf_counter() - started


class Picture(NamedTuple):
    """The seconds in which a run's picture is drawn, with what that loads, and its bytes."""

    seconds: float
    n_bytes: int


def draw_picture(run: RunPath) -> Picture:
    """Draw the picture of a run, and return what that takes."""
    started = time.perf_counter()
    path = draw_overview(Run(run))
    return Picture(time.perf_counter() - started, len(read_file(path)))

"""What a fault can reach, and what a kind of fault is."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from disturb.nodes import Cluster

ENGINES = ("local", "ray", "cluster")
"""`local` and `ray` start what they need themselves; `cluster` joins nodes that the job has started."""

FEATURES, TILES = "features.zarr/*/*/features/c/*/0/0", "tiles.zarr/*/tiles/c/0/*/*"
"""Chunks that cost time: they are never to be computed twice."""


@dataclass
class Scene:
    """What a fault can reach: a run, the process at work on it if there is one, and the cluster.

    Attributes
    ----------
    rng
        Chooses.
    run
        The run directory.
    engine
        One of `ENGINES`.
    cluster
        The nodes that the run joins, if it does.
    process
        The driver at work.
    is_finished
        Whether the last session completed the run.
    damaged
        Files that may be written again.
    undo
        What is to be done at the end of the session.
    may_repeat
        Whether work may be done twice, as a worker was out of reach for long.
    has_progress
        Whether this session has finished anything.
    """

    rng: random.Random
    run: Path
    engine: str
    cluster: Cluster | None = None
    process: subprocess.Popen[bytes] | None = None
    is_finished: bool = False
    damaged: set[Path] = field(default_factory=set)
    undo: list[Callable[[], object]] = field(default_factory=list)
    may_repeat: bool = False
    has_progress: bool = False

    def find(self, *patterns: str) -> list[Path]:
        """Return the files of the run that match, sorted."""
        return sorted(path for pattern in patterns for path in self.run.glob(pattern) if path.is_file())

    def pick(self, *patterns: str) -> Path | None:
        """Return a random file of the run; None if there is none."""
        paths = self.find(*patterns)
        return self.rng.choice(paths) if paths else None

    def workers(self, title: str = "ray::") -> list[psutil.Process]:
        """Return Ray's worker processes of the run whose titles begin so."""
        root = psutil.Process(self.process.pid if self.engine == "ray" else os.getpid())
        titles = {each: title_of(each) for each in root.children(recursive=True)}
        return [each for each, its in titles.items() if its.startswith(title) and "Agent" not in its]


def title_of(process: psutil.Process) -> str:
    """Return the title of a process; empty if it has ended."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes
    ----------
    name
        For the table.
    moment
        `before` a session, at its `launch` (it returns options of the process), `during` it, or during its `extraction`
        of features.
    do
        Does it to a scene; false if there is nothing to do it to.
    engines
        Where it can happen.
    """

    name: str
    moment: str
    do: Callable[[Scene], Any]
    engines: tuple[str, ...] = ENGINES


def stamps(run: Path) -> dict[Path, tuple[int, int]]:
    """Return inode and time of every finished chunk of features and every tile."""
    found = {}
    for folder in [*run.glob(FEATURES.rpartition("/")[0]), *run.glob(TILES.rpartition("/")[0])]:
        with contextlib.suppress(OSError), os.scandir(folder) as files:
            for file in files:
                if file.name.isdigit():
                    with contextlib.suppress(FileNotFoundError):
                        stat = file.stat()
                        found[folder / file.name] = stat.st_ino, stat.st_mtime_ns
    return found

"""One start of a run's command: disturbed, watched, and checked after its end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from disturb.scene import Fault, Scene, stamps, title_of

SESSION_SECONDS = 600.0
GRACE_SECONDS = 60.0
POLL_SECONDS = 0.03

MARK = "SEMRSM_CHAOS"
"""An environment variable by which the processes of a session are known."""

LIBRARIES_FOLDERS = ("torchinductor_", "ray")
"""Folders in which PyTorch and Ray keep caches and logs beyond the end of a process."""

STATUSES = {0, 1, 2, 3, 130}
REMEDY = re.compile(
    "start|again|repeat|interrupted|continues|room|writable|choose|restore|check|delete|remove|add nodes"
)


class Session:
    """One start of a command on a scene's run.

    Parameters
    ----------
    scene
        The run, and what can reach it.
    command
        The command.
    folder
        Where log and temporary files go.
    number
        Of the session, for their names.

    Attributes
    ----------
    happened
        The faults that were done.
    problems
        What the session should not have done.
    """

    def __init__(self, scene: Scene, command: list[str], folder: Path, number: int) -> None:
        self.happened: list[Fault] = []
        self.problems: list[str] = []
        self._scene, self._command = scene, command
        self._log = folder / f"session-{number}.log"
        self._mark = f"{os.getpid()}-{number}"
        self._temporary = Path(tempfile.mkdtemp(dir=folder, prefix="t"))
        self._shared = _shared_memory()

    def run(self, faults: list[Fault], n_features: int, n_chunks: int) -> int:
        """Start it with faults, wait for its end, check, and return its exit status.

        Parameters
        ----------
        faults
            Of any moment; one at most during the session.
        n_features, n_chunks
            Chunks of features, and all chunks that cost time, that an undisturbed run has: they tell how far it is.
        """
        scene = self._scene
        scene.may_repeat = scene.has_progress = False
        self.happened = [fault for fault in faults if fault.moment == "before" and fault.do(scene)]
        before = stamps(scene.run)
        options: dict[str, Any] = {}
        for fault in faults:
            if fault.moment == "launch":
                options |= fault.do(scene)
                self.happened.append(fault)
        later = next((fault for fault in faults if fault.moment in ("during", "extraction")), None)
        is_early = later is not None and later.moment == "extraction"
        with self._log.open("wb") as output:
            scene.process = subprocess.Popen(
                self._command,
                env=os.environ
                | {
                    MARK: self._mark,
                    "TMPDIR": str(self._temporary),
                    "RAY_TMPDIR": tempfile.gettempdir(),
                },
                **({"stdout": output, "stderr": output} | options),
            )
            try:
                self._watch(later, before, n_features if is_early else n_chunks)
            finally:
                scene.process.kill()  # where this job itself is interrupted
                for undo in reversed(scene.undo):
                    undo()
                scene.undo.clear()
        status = scene.process.returncode
        scene.is_finished = status == 0
        self.problems += self._check(status)
        shutil.rmtree(self._temporary, ignore_errors=True)
        return status

    def _watch(self, fault: Fault | None, before: dict[Path, tuple[int, int]], n_chunks: int) -> None:
        """Wait for the end; do a fault on the way, and see that nothing finished is written again."""
        scene, process = self._scene, self._scene.process
        moment = scene.rng.uniform(0, 4) if scene.rng.random() < 0.15 else None
        wanted = len(before) + scene.rng.random() * max(0, n_chunks - len(before))
        started, known, repeated = time.monotonic(), dict(before), set()
        while process.poll() is None:
            passed = time.monotonic() - started
            now = stamps(scene.run)
            repeated |= {path for path in now.keys() & known.keys() if now[path] != known[path]}
            known |= now
            scene.has_progress = len(now) > len(before)
            is_time = passed > moment if moment is not None else len(now) >= wanted
            if fault is not None and is_time and fault.do(scene):
                self.happened.append(fault)
                fault = None
            if passed > SESSION_SECONDS:
                self.problems.append("it does not end")
                process.kill()
            time.sleep(POLL_SECONDS)
        again = repeated - scene.damaged
        if again and not scene.may_repeat:
            self.problems.append(f"written again: {sorted(again)[:5]}")

    def _check(self, status: int) -> Iterator[str]:
        """Yield what the session should not have done."""
        yield from self._check_end(status, self._log.read_text(errors="replace"))
        left = _await_none(lambda: _marked(self._mark))
        if left:
            yield f"processes are left: {[(each.pid, title_of(each)[:80]) for each in left]}"
            for each in left:
                with contextlib.suppress(psutil.Error):
                    each.kill()
        if self._scene.engine == "cluster":
            busy = _await_none(lambda: [p for p in self._scene.workers() if "IDLE" not in title_of(p)])
            if busy:
                yield f"workers are left: {[(each.pid, title_of(each)[:80]) for each in busy]}"
        if _is_locked(self._scene.run / "lock"):
            yield "the lock is still held"
        files = [path for path in self._temporary.iterdir() if not path.name.startswith(LIBRARIES_FOLDERS)]
        if files:
            yield f"temporary files are left: {files}"
        mine = _await_none(lambda: [name for name in _shared_memory() - self._shared if not _is_open(name)])
        if mine:
            yield f"shared memory is left: {mine}"

    def _check_end(self, status: int, text: str) -> Iterator[str]:
        """Yield what is wrong with an exit status, or with what was written to the terminal."""
        names = {fault.name for fault in self.happened}
        deadly = {-signal.SIGKILL for name in names if "SIGKILL of the driver" in name}
        if not text:  # Python itself was being loaded
            deadly |= {-signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP}
        if status not in STATUSES | deadly:
            yield f"status {status}: {text[-300:]}"
        if "Traceback" in text:
            yield f"a traceback: {text[-1500:]}"
        if status > 0 and "closed standard error" not in names:
            said = [line for line in text.splitlines() if line.startswith("semrsm: ")]
            if not said or not REMEDY.search(text, text.index(said[0])):
                yield f"status {status} without reason and remedy: {text[-500:]}"


def _await_none(look: Callable[[], list[Any]]) -> list[Any]:
    """Return what is still there after some time."""
    deadline = time.monotonic() + GRACE_SECONDS
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _marked(mark: str) -> list[psutil.Process]:
    """Return the living processes of a session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _shared_memory() -> set[str]:
    """Return the names of all shared memory but semaphores, which nothing here uses and other programs do."""
    return {path.name for path in Path("/dev/shm").iterdir() if not path.name.startswith("sem.")}


def _is_open(name: str) -> bool:
    """Return whether a process has a file of shared memory open."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if any(region.path == f"/dev/shm/{name}" for region in process.memory_maps()):
                return True
    return False


def _is_locked(lock: Path) -> bool:
    """Return whether a driver holds a lock, seen without the code that is tested."""
    if not lock.is_file():  # a pipe may be in its place
        return False
    try:
        with lock.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False

"""The run directory: its layout, its lock, and the record that a resume is checked against.

Layout::

    run.json         the record: fingerprint, layers and their sizes, configuration, versions
    run.copy.json    the same, for the case that run.json is lost
    images.parquet   the manifest (queries.parquet in a rectangular run)
    features.zarr/   <side>/<layer>/: features, squared norms, pooled vectors
    tiles.zarr/      <layer>: solved tiles, which a resume counts
    candidates.zarr/ <layer>/: the candidates of each tile, in a run that keeps neighbours instead of tiles
    neighbours.zarr/ <layer>/: the neighbours that were chosen from them, for xarray
    rsm.zarr/        <layer>/: the final matrices, for xarray
    events.jsonl     what happened when, for people
    summary.json     the last summary
    figures/         pictures of the matrices
    lock             held by the driver at work
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import random
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from semrsm_dist.errors import ConfigError, ResumeError, StorageError
from semrsm_dist.store.record import OtherFormatError, RunRecord, read_record

log = logging.getLogger(__name__)

FATAL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
"""Storage errors that no retry fixes."""

RECORD, RECORD_COPY = "run.json", "run.copy.json"

BEFORE_THE_RECORD = re.compile(
    r"lock|events\.jsonl(\.tmp\d+)?|run(\.copy)?\.json\.tmp\d+|(images|queries)\.parquet|\.(images|queries)\.parquet\.\d+\.partial"
)
"""Names of files that a session can leave when it is killed before it has written the record."""

LEDGER_BYTES, LONGEST_TEXT = 4 * 2**20, 4096
"""Size of the ledger of events, and characters of a text in it."""

LOCK_SECONDS = 30.0
"""How long a driver waits for those that only look: each of them holds the shared lock for an instant."""


class RunDirectory:
    """Paths and small files of one run.

    Parameters
    ----------
    path
        The run directory. On a cluster it must be on a file system that all nodes share.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._held: tuple[int, int] | None = None  # device and inode of the lock file

    @property
    def features(self) -> Path:
        """The Zarr group of features."""
        return self.path / "features.zarr"

    @property
    def tiles(self) -> Path:
        """The Zarr group of solved tiles."""
        return self.path / "tiles.zarr"

    @property
    def candidates(self) -> Path:
        """The Zarr group of candidates, in a run that keeps neighbours."""
        return self.path / "candidates.zarr"

    @property
    def neighbours(self) -> Path:
        """The Zarr group of neighbours, in a run that keeps them."""
        return self.path / "neighbours.zarr"

    @property
    def matrices(self) -> Path:
        """The Zarr group of final matrices."""
        return self.path / "rsm.zarr"

    @property
    def figures(self) -> Path:
        """The folder of pictures."""
        return self.path / "figures"

    def manifest(self, side: str) -> Path:
        """Return the path of the manifest of `images` or `queries`."""
        return self.path / f"{side}.parquet"

    def create(self) -> None:
        """Make the directory, or check that what is there is a run or the beginning of one.

        Raises
        ------
        ConfigError
            If something else is there, which is left untouched, or there can be no such directory.
        StorageError
            If it cannot be made for lack of room or permission.
        """
        self._refuse_foreign_files()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ConfigError(
                f"{self.path}: run: must name a directory, but it or a folder above it is a file; choose another path"
            ) from error
        except OSError as error:
            # No room or no permission can change; where nothing can ever be made, the configuration is wrong.
            kind = StorageError if error.errno in FATAL_ERRNOS else ConfigError
            raise kind(
                f"{self.path}: the run directory cannot be made ({error.strerror}); nothing was computed: choose a "
                "directory that can be written to with run: or --set run=..."
            ) from error

    def read_record(self) -> RunRecord | None:
        """Return the record of the run that the directory holds, or its copy; None if it holds neither.

        Raises
        ------
        StorageError
            If the record cannot be read, or is one of another format.
        """
        problems = []
        for name in (RECORD, RECORD_COPY):
            try:
                record = read_record(self.path / name)
            except OtherFormatError:
                raise
            except StorageError as error:
                problems.append(str(error))
            except (FileNotFoundError, NotADirectoryError):
                continue
            else:
                if name == RECORD_COPY:
                    log.warning("%s: missing or damaged; its copy %s is used", self.path / RECORD, name)
                return record
        if problems:
            raise StorageError(
                f"{'; '.join(problems)}; without it nothing can be resumed safely, and nothing was changed: restore "
                "the file, or start a new run directory"
            )
        return None

    def write_record(self, record: RunRecord) -> None:
        """Replace the record and its copy, each in one step and durable against a crash."""
        text = record.model_dump_json(indent=1) + "\n"
        for name in (RECORD_COPY, RECORD):
            write_atomically(self.path / name, text)

    def remove_partial_files(self) -> None:
        """Remove temporary files of writers that were killed."""
        for group in (self.features, self.tiles, self.matrices, self.candidates, self.neighbours):
            for path in group.rglob("*.partial"):
                if not path.is_dir():  # as that of a layer of such a name is
                    path.unlink(missing_ok=True)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Keep the summary beside the results."""
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=1) + "\n")

    def read_summary(self) -> dict[str, Any] | None:
        """Return the last summary, or None."""
        try:
            summary = json.loads((self.path / "summary.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise StorageError(
                f"{self.path / 'summary.json'}: cannot be read ({error}); delete it"
            ) from error
        return summary if isinstance(summary, dict) else None

    def append_event(self, event: str, **facts: object) -> None:
        """Add a line to the ledger, whose oldest lines go once it is larger than `LEDGER_BYTES`.

        It is for people: nothing depends on it, and nothing fails without it. Of a long text the end is kept.
        """
        short = {
            name: fact[-LONGEST_TEXT:] if isinstance(fact, str) else fact for name, fact in facts.items()
        }
        line = json.dumps({"time": time.time(), "event": event, **short})
        try:
            with (self.path / "events.jsonl").open("ab+") as ledger:
                if ledger.tell() and not _ends_a_line(ledger):  # a kill cut the last line short
                    line = "\n" + line
                ledger.write(line.encode() + b"\n")
                if ledger.tell() > LEDGER_BYTES:
                    ledger.seek(-LEDGER_BYTES // 2, os.SEEK_END)
                    ledger.readline()  # a part of one
                    write_atomically(self.path / "events.jsonl", ledger.read().decode(errors="replace"))
        except OSError as error:
            log.warning("%s: cannot be written (%s)", self.path / "events.jsonl", error.strerror or error)

    def read_events(self) -> Iterator[dict[str, Any]]:
        """Yield the ledger's events, oldest first; a line truncated by a kill is skipped."""
        try:
            text = (self.path / "events.jsonl").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        for line in text.splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                event = json.loads(line)
                if isinstance(event, dict):
                    yield event

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for one driver.

        The lock is the operating system's (`flock`), so the end of the process releases it, however it ends.

        Raises
        ------
        ResumeError
            If another driver holds it.
        StorageError
            If the directory cannot be written to or its file system has no locks.
        """
        path = self.path / "lock"
        try:
            handle = path.open("ab+", buffering=0)
        except OSError as error:
            raise StorageError(
                f"{path}: the run directory cannot be written to ({error.strerror}); nothing was computed: make it "
                "writable, or choose another with run: or --set run=..."
            ) from error
        with handle:
            try:
                _lock(handle)
            except BlockingIOError as error:
                handle.seek(0)
                owner = handle.read().decode(errors="replace").strip() or "unknown"
                raise ResumeError(
                    f"{self.path}: another driver is working on this run ({owner}); two would do the work twice: wait "
                    "for it (semrsm status), or stop it first"
                ) from error
            except OSError as error:
                raise StorageError(
                    f"{path}: the file system has no locks ({error.strerror}), so two drivers could not be kept apart: "
                    "put the run on a file system with flock, such as a local disk or NFS version 4"
                ) from error
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            with contextlib.suppress(OSError):  # a full disk: the lock is held nevertheless
                handle.truncate(0)
                handle.write(f"process {os.getpid()} on {socket.gethostname()}, since {since}".encode())
            stat = os.fstat(handle.fileno())
            self._held = stat.st_dev, stat.st_ino
            try:
                yield
            finally:
                self._held = None

    def require_held(self) -> None:
        """Check that the run directory and its lock file are still those that this driver locked, if it locked any.

        Raises
        ------
        StorageError
            If one of them was removed: what is written now would be lost, or another driver may be at work.
        """
        if self._held is None:
            return
        try:
            stat = (self.path / "lock").stat()
        except FileNotFoundError:
            found = None
        except OSError:  # of a file system that does not answer now; reading and writing say more
            return
        else:
            found = stat.st_dev, stat.st_ino
        if found == self._held:
            return
        if (self.path / RECORD).exists():
            raise StorageError(
                f"{self.path / 'lock'}: the lock was removed while this driver was at work, so another one may have "
                "begun; stopped, what is finished is kept: leave this file alone, and start the same command once no "
                "other driver is at work (semrsm status)"
            )
        raise StorageError(
            f"{self.path}: the run directory was removed or emptied while this driver was at work, so nothing is left: "
            "start the same command to begin anew"
        )

    def remove_remains(self) -> None:
        """Remove what workers still wrote after a run had been removed: chunks that nothing describes."""
        for group in (self.features, self.tiles, self.matrices, self.candidates, self.neighbours):
            if _is_remains(group):
                shutil.rmtree(group)

    def is_visible(self) -> bool:
        """Return whether this machine sees the directory of a run at work: every driver's lock is a file in it."""
        return (self.path / "lock").exists()

    def is_locked(self) -> bool:
        """Return whether a driver is at work on the run."""
        try:
            with (self.path / "lock").open("r", encoding="utf-8") as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def _refuse_foreign_files(self) -> None:
        try:
            if not self.path.is_dir() or any((self.path / name).exists() for name in (RECORD, RECORD_COPY)):
                return
            names = sorted(entry.name for entry in self.path.iterdir())
        except OSError as error:
            raise StorageError(f"{self.path}: the run directory cannot be read ({error.strerror})") from error
        groups = {group.name for group in (self.features, self.tiles, self.matrices) if _is_remains(group)}
        strangers = [name for name in names if not BEFORE_THE_RECORD.fullmatch(name) and name not in groups]
        if strangers:
            raise ConfigError(
                f"{self.path}: not empty and not a run (found {', '.join(strangers[:3])}); nothing was touched: choose "
                "an empty or new directory"
            )


def _is_remains(group: Path) -> bool:
    """Return whether a folder holds chunks without any `zarr.json`: no Zarr group of anybody is like that."""
    return group.is_dir() and all(path.name != "zarr.json" for path in group.rglob("*"))


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _lock(handle: BinaryIO) -> None:
    """Take the exclusive lock, waiting only for holders of the shared one: a driver's refuses that, too, at once."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(handle, fcntl.LOCK_UN)
            if time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0, 0.002))  # not in step with those that look


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file so that a reader or a crash sees the old or the new content, never a part.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}); what was computed so far is kept: make room or make it "
            "writable, then start the same command"
        ) from error

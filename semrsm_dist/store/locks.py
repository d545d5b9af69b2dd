"""The lock that keeps the drivers of a run apart."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

from semrsm_dist.data.opening import NOT_THERE, require_file
from semrsm_dist.errors import ResumeError, StorageError, unreadable

LOCK_SECONDS = 30.0
"""How long a driver waits for those that only look: each of them holds the shared lock for an instant."""


class DriverLock(Protocol):
    """A lock that at most one process holds, and that its end releases, however it ends."""

    def hold(self) -> AbstractContextManager[None]:
        """Hold the lock.

        Raises
        ------
        ResumeError
            If another driver holds it.
        StorageError
            If it cannot be had there at all.
        """

    def share(self) -> AbstractContextManager[bool]:
        """Keep drivers from taking the lock meanwhile, if that can be done; yield whether one holds it already."""

    def is_held(self) -> bool:
        """Return whether a driver holds it, in this process or in any other.

        Raises UnreadableFileError if it cannot be looked at, so that nobody knows.
        """

    def loss(self) -> str | None:
        """Return how this object has lost the lock that it holds; None if it has not, or holds none."""


def describe_holder() -> str:
    """Return who takes a lock now, for people."""
    return f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"


NOT_KNOWN = "whether a driver is at work is not known"


def held_by_another(path: object, holder: str) -> ResumeError:
    """Return the error of a driver that finds the run held."""
    return ResumeError(
        f"{path}: another driver is working on this run ({holder}); two would do the work twice: wait for it (semrsm "
        "status), or stop it first"
    )


class FileLock:
    """A lock of the operating system (`flock`) on a file, which is made if it is missing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: tuple[int, int] | None = None  # device and inode of the file

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """As `DriverLock.hold`."""
        try:
            handle = self._path.open("ab+", buffering=0)
        except OSError as error:
            raise StorageError(
                f"{self._path}: the run directory cannot be written to ({error.strerror}); nothing was computed: make "
                "it writable, or choose another with run: or --set run=..."
            ) from error
        with handle:
            try:
                _lock(handle)
            except _SharedError as error:
                raise ResumeError(
                    f"{self._path.parent}: the run is being verified, and must not change meanwhile; nothing was "
                    "computed: repeat the command once that has ended"
                ) from error
            except BlockingIOError as error:
                handle.seek(0)
                holder = handle.read().decode(errors="replace").strip() or "unknown"
                raise held_by_another(self._path.parent, holder) from error
            except OSError as error:
                raise StorageError(
                    f"{self._path}: the file system has no locks ({error.strerror}), so two drivers could not be kept "
                    "apart: put the run on a file system with flock, such as a local disk or NFS version 4"
                ) from error
            with contextlib.suppress(OSError):  # a full disk: the lock is held nevertheless
                handle.truncate(0)
                handle.write(describe_holder().encode())
            stat = os.fstat(handle.fileno())
            self._held = stat.st_dev, stat.st_ino
            try:
                yield
            finally:
                self._held = None

    @contextlib.contextmanager
    def share(self) -> Iterator[bool]:
        """As `DriverLock.share`; without a file, as in a copy of a run, nothing is locked."""
        handle = self._open()
        if handle is None:
            yield False
            return
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                is_held = False
            except BlockingIOError:
                is_held = True
            except OSError:  # a file system without locks, on which no driver can work
                is_held = False
            yield is_held

    def is_held(self) -> bool:
        """As `DriverLock.is_held`."""
        with self.share() as is_held:
            return is_held

    def _open(self) -> BinaryIO | None:
        """Open the file for reading; None if there is none."""
        try:
            require_file(self._path)
            return self._path.open("rb")
        except NOT_THERE:
            return None
        except OSError as error:
            raise unreadable(self._path, error, so=NOT_KNOWN) from error

    def loss(self) -> str | None:
        """As `DriverLock.loss`: the file may have been removed."""
        if self._held is None:
            return None
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            pass
        except OSError:  # of a file system that does not answer now; reading and writing say more
            return None
        else:
            if (stat.st_dev, stat.st_ino) == self._held:
                return None
        return "the lock was removed while this driver was at work"


class _SharedError(BlockingIOError):
    """Only holders of the shared lock are in the way, and have been for `LOCK_SECONDS`."""


def _lock(handle: BinaryIO) -> None:
    """Take the exclusive lock, waiting only for holders of the shared one: a driver's refuses that, too, at once."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(handle, fcntl.LOCK_UN)
            if time.monotonic() > deadline:
                raise _SharedError(*error.args) from error
        time.sleep(random.uniform(0, 0.002))  # not in step with those that look

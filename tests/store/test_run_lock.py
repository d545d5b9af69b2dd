"""The lock of a run directory: of one driver at a time, whatever happens to it."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from semrsm_dist.errors import ResumeError, StorageError, UnreadableFileError
from semrsm_dist.store import locks
from semrsm_dist.store.directory import RunDirectory
from tests.store.conftest import RECORD

HOLD = (
    "import sys, time; from semrsm_dist.store.directory import RunDirectory\n"
    "with RunDirectory(sys.argv[1]).locked():\n"
    "    print('locked', flush=True); time.sleep(60)\n"
)


@pytest.fixture(autouse=True)
def short_wait(monkeypatch):
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.1)


@pytest.fixture
def owner(run):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, run.path], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_driver_is_refused_and_told_who_is_at_work(run, owner):
    assert run.is_locked()
    with pytest.raises(ResumeError, match="another driver is working on this run") as caught, run.locked():
        pytest.fail("two drivers")
    assert f"(process {owner.pid} on {os.uname().nodename}, since 2" in str(caught.value)
    assert caught.value.exit_code == 2
    assert run.is_locked()


def test_a_killed_driver_holds_nothing(run, owner):
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert not run.is_locked()
    with run.locked():
        assert (run.path / "lock").read_text().startswith(f"process {os.getpid()} on ")
    assert not run.is_locked()


def test_a_driver_that_is_stopped_still_holds_it(run, owner):
    owner.send_signal(signal.SIGSTOP)
    assert run.is_locked()
    with pytest.raises(ResumeError), run.locked():
        pytest.fail("two drivers")


def test_threads_of_one_process_exclude_each_other(run):
    with run.locked(), pytest.raises(ResumeError), RunDirectory(run.path).locked():
        pytest.fail("two drivers")
    with run.locked():
        pass


def test_an_exception_releases_it(run):
    with pytest.raises(ZeroDivisionError), run.locked():
        raise ZeroDivisionError
    with run.locked():
        pass


def test_children_do_not_inherit_it(run):
    """A worker that outlives its driver must not block the next one."""
    with run.locked():
        child = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        with run.locked():
            pass
    finally:
        child.kill()
        child.wait()


def test_drivers_that_start_together_work_one_at_a_time(run):
    inside, most, refused = [], [], []

    def drive():
        try:
            with RunDirectory(run.path).locked():
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.02)
                inside.pop()
        except ResumeError:
            refused.append(1)

    threads = [threading.Thread(target=drive) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) + len(refused) == 16


def test_looking_does_not_disturb_a_driver(run):
    """`semrsm status` in a loop takes the lock for instants, in which a driver must be able to start."""
    (run.path / "lock").touch()
    stop = threading.Event()

    def look():
        while not stop.is_set():
            run.is_locked()

    watchers = [threading.Thread(target=look) for _ in range(3)]
    for watcher in watchers:
        watcher.start()
    try:
        for _ in range(20):
            with run.locked():
                pass
    finally:
        stop.set()
        for watcher in watchers:
            watcher.join()


def test_a_lock_that_cannot_be_read_does_not_count_as_free(run, monkeypatch):
    def closed(path, *_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (run.path / "lock").touch()
    monkeypatch.setattr(Path, "open", closed)  # permissions would not bind root
    for look in (run.is_locked, run.shared().__enter__):
        with pytest.raises(UnreadableFileError, match=r"lock: .* whether a driver is at work is not known"):
            look()


def test_looking_at_nothing_creates_nothing(tmp_path):
    assert not RunDirectory(tmp_path / "none").is_locked()
    assert not RunDirectory(tmp_path).is_locked()
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_refused(run, monkeypatch):
    def no_locks(handle, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(
        StorageError, match=r"the file system has no locks .* put the run on a file system with flock"
    ):
        run.locked().__enter__()
    assert not run.is_locked()


def test_a_directory_that_cannot_be_written_to_is_refused(run):
    run.path.rmdir()  # permissions would not bind root
    with pytest.raises(
        StorageError, match=r"lock: the run directory cannot be written to .* nothing was computed"
    ):
        run.locked().__enter__()


def test_a_full_disk_does_not_break_the_lock(run, monkeypatch):
    (run.path / "lock").write_text("process 1 on elsewhere")

    class Full:
        def __init__(self, handle):
            self.handle = handle

        def __getattr__(self, name):
            return getattr(self.handle, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.handle.close()

        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *args, **kwargs: Full(real(path, *args, **kwargs)))
    with run.locked():
        monkeypatch.undo()
        assert run.is_locked()


def test_a_lock_that_was_removed_is_noticed(run):
    run.require_held()  # nothing is locked, so there is nothing to lose
    with run.locked():
        run.require_held()
        (run.path / "lock").unlink()
        RunDirectory(run.path).write_record(RECORD)
        with pytest.raises(StorageError, match=r"the lock was removed .* another one may have begun"):
            run.require_held()
        with RunDirectory(run.path).locked(), pytest.raises(StorageError, match="the lock was removed"):
            run.require_held()
    run.require_held()


def test_a_directory_that_was_removed_is_noticed(run):
    with run.locked():
        shutil.rmtree(run.path)
        with pytest.raises(StorageError, match=r"the run directory was removed .* begin anew"):
            run.require_held()

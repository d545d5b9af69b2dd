"""A run directory: one driver, whole records, nothing of strangers touched, whatever was killed before."""

import errno
import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.data.manifest import Manifest
from semrsm_dist.errors import ConfigError, ResumeError, StorageError, UnreadableFileError
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.store import directory as module
from semrsm_dist.store import locks
from semrsm_dist.store.directory import FATAL_ERRNOS, RunDirectory
from semrsm_dist.store.paths import write_atomically
from semrsm_dist.store.record import FORMAT, Answers, LayerRecord, RunRecord

SIZES = {"n_tokens": 3, "n_channels": 2, "tile_size": 2, "pair_seconds": 1e-6}
RECORD = RunRecord(
    fingerprint={"a": [1, "ü"], "c": 0.1},
    layers={"z": LayerRecord(**SIZES, facts={"z.sha256": "0"}), "a": LayerRecord(**SIZES)},
    requested=("a",),
    chunk_size=4,
    counts={"images": 5, "queries": 3},
    cached=Answers(listings={"images": None}),
    config={"run": "r"},
)
HOLD = (
    "import sys, time; from semrsm_dist.store.directory import RunDirectory\n"
    "with RunDirectory(sys.argv[1]).locked():\n"
    "    print('locked', flush=True); time.sleep(60)\n"
)


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.create()
    return run


@pytest.fixture(autouse=True)
def short_wait(monkeypatch):
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.1)


def content_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


# --- the lock --------------------------------------------------------------------------------------------


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


# --- new and foreign directories -------------------------------------------------------------------------


def test_a_new_directory_is_made_with_those_above(tmp_path):
    run = RunDirectory(tmp_path / "a" / "b")
    run.create()
    run.create()
    assert run.path.is_dir()
    assert run.read_record() is None


@pytest.mark.parametrize(
    "names",
    [
        ["thesis.tex"],
        ["images.parquet", "notes"],
        [".git"],
        ["features.zarr"],
        ["lock", "locker"],
        ["run.json.bak"],
        ["summary.json"],
        ["images.parquet.csv"],
        ["events.jsonl", "events.jsonl.1"],
    ],
)
def test_a_foreign_directory_is_refused_untouched(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text(name)
    before = content_of(tmp_path)
    with pytest.raises(ConfigError, match="not empty and not a run") as caught:
        RunDirectory(tmp_path).create()
    assert names[-1] in str(caught.value)
    assert "nothing was touched: choose an empty or new directory" in str(caught.value)
    assert content_of(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    [
        "lock",
        "events.jsonl",
        "images.parquet",
        "queries.parquet",
        "run.json.tmp4711",
        "run.copy.json.tmp4711",
        "events.jsonl.tmp4711",
        "images.parquet.tmp4711",
        "queries.parquet.tmp1",
    ],
)
def test_what_a_kill_leaves_before_the_record_is_no_stranger(tmp_path, name):
    (tmp_path / name).write_text("half")
    RunDirectory(tmp_path).create()


def test_what_workers_write_after_a_run_was_removed_is_no_stranger_and_goes(tmp_path):
    run = RunDirectory(tmp_path)
    foreign = tmp_path / "rsm.zarr" / "zarr.json"
    for path in (run.tiles / "a" / "c" / "0" / "0", run.features / "images" / "a" / "c" / "1", foreign):
        path.parent.mkdir(parents=True)
        path.touch()
    with pytest.raises(ConfigError, match=r"\(found rsm\.zarr\)"):
        run.create()
    foreign.unlink()
    run.create()
    with pytest.raises(
        StorageError, match=r"lost .*, and so is what describes its chunks .*tiles\.zarr.* removes"
    ):
        run.require_record()
    foreign.touch()
    run.remove_remains()
    assert sorted(tmp_path.rglob("*")) == [foreign.parent, foreign]


def test_a_run_may_hold_anything_else(run):
    run.write_record(RECORD)
    (run.path / "notes.txt").write_text("mine")
    run.create()
    assert run.read_record() == RECORD


def test_a_file_in_the_way_is_a_mistake_of_the_configuration(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(
            ConfigError, match="run: must name a directory, but it or a folder above it is a file"
        ):
            RunDirectory(path).create()
    assert (tmp_path / "file").read_text() == "mine"


def test_a_directory_that_can_never_be_made_is_a_mistake_of_the_configuration():
    with pytest.raises(ConfigError, match=r"/proc/x: the run directory cannot be made .*run: or --set run="):
        RunDirectory("/proc/x").create()


@pytest.mark.parametrize("number", sorted(FATAL_ERRNOS))
def test_a_directory_that_cannot_be_made_is_reported(tmp_path, monkeypatch, number):
    def refuse(path, *args, **kwargs):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError) as caught:
        RunDirectory(tmp_path / "run").create()
    assert f"the run directory cannot be made ({os.strerror(number)})" in str(caught.value)
    assert "run: or --set run=..." in str(caught.value)


# --- the record ------------------------------------------------------------------------------------------


def test_the_record_is_what_was_written_in_its_order(run):
    run.write_record(RECORD)
    assert run.read_record() == RECORD
    assert list(run.read_record().layers) == ["z", "a"]
    assert sorted(path.name for path in run.path.iterdir()) == ["run.copy.json", "run.json"]


@pytest.mark.parametrize("lost", ["run.json", "run.copy.json"])
@pytest.mark.parametrize("content", [None, "", "{", "{}", "ÿ", "[" * 100_000])
def test_either_record_may_be_lost(run, caplog, lost, content):
    run.write_record(RECORD)
    if content is None:
        (run.path / lost).unlink()
    else:
        (run.path / lost).write_text(content, encoding="latin-1")
    run.create()
    assert run.read_record() == RECORD
    used = f"{run.path / 'run.json'}: missing or damaged; its copy run.copy.json is used"
    assert (used in caplog.text) == (lost == "run.json")
    run.write_record(RECORD)
    assert (run.path / "run.json").read_bytes() == (run.path / "run.copy.json").read_bytes()


@pytest.mark.parametrize(
    "content", ["", "{", '{"fingerprint": {}', "\0\0\0", "ÿ", "[" * 100_000, '{"config":' * 100_000]
)
def test_a_damaged_record_is_never_taken_for_a_new_run(run, content):
    (run.path / "run.json").write_text(content, encoding="latin-1")
    with pytest.raises(
        StorageError, match=r"run\.json: the record of the run cannot be read .*restore the file"
    ):
        run.read_record()


@pytest.mark.parametrize("content", ["[]", "3", "null", "{}", f'{{"fingerprint": {{}}, "format": {FORMAT}}}'])
def test_something_else_is_no_record(run, content):
    (run.path / "run.json").write_text(content)
    with pytest.raises(StorageError, match=r"not the record of a run \(.*restore the file"):
        run.read_record()


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"chunk_size": 0}, "chunk_size"),
        ({"counts": {"queries": 3}}, "counts"),
        ({"counts": {"images": 3, "others": 3}}, "counts"),
        ({"layers": {"a": {"n_tokens": 3}}}, "layers.a.n_channels"),
        ({"layers": {"../evil": SIZES}}, r"layers.\.\./evil"),
        ({"requested": ["/evil"]}, "requested.0"),
        ({"more": 1}, "more"),
        ({"format": str(FORMAT)}, "format"),
        ({"format": True}, "format"),
        ({"counts": {"images": -1}}, "counts.images"),
        ({"counts": {"images": 3, "queries": 0}}, "counts.queries"),
        ({"requested": ["b"]}, "requested: no layers of these names: \\['b'\\]"),
        ({"requested": []}, "requested"),
        ({"layers": {}}, "layers"),
        ({"batch_size": -1}, "batch_size"),
        ({"layers": {"a": SIZES | {"pair_seconds": math.inf}}}, "layers.a.pair_seconds"),
        ({"layers": {"a": SIZES | {"tile_size": "2"}}}, "layers.a.tile_size"),
    ],
)
def test_a_record_with_a_wrong_part_is_refused_and_the_part_named(run, change, place):
    (run.path / "run.json").write_text(json.dumps(json.loads(RECORD.model_dump_json()) | change))
    with pytest.raises(StorageError, match=rf"run\.json: not the record of a run \({place}"):
        run.read_record()


def test_a_run_of_another_format_is_refused_with_a_way_out(run):
    old = {"fingerprint": {"format": 1}, "layers": {}, "chunk_size": 4, "row_side": "images", "counts": {}}
    for content, number in ((old, 1), ({"format": 9, **old}, 9), ({"format": 2}, 2)):
        (run.path / "run.json").write_text(json.dumps(content))
        with pytest.raises(
            StorageError, match=rf"has format {number}, .* use the version that began the run, or"
        ):
            run.read_record()


def test_a_record_tells_how_matrices_are_cut():
    assert RECORD.row_side == "queries"
    assert RECORD.layout("a") == Layout(3, 5, 2, symmetric=False)
    symmetric = RECORD.model_copy(update={"counts": {"images": 5}})
    assert symmetric.row_side == "images"
    assert symmetric.layout("a") == Layout(5, 5, 2, symmetric=True)


def test_a_directory_for_a_record_is_reported(run):
    (run.path / "run.json").mkdir()
    with pytest.raises(StorageError, match="cannot be read"):
        run.read_record()
    run.write_record(RECORD)
    assert run.read_record() == RECORD
    assert (run.path / "run.json.aside-1").is_dir()


def test_a_write_that_fails_leaves_the_old_text_and_no_rest(run, monkeypatch):
    run.write_record(RECORD)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        StorageError, match=r"cannot be written \(No space left on device\).* is kept: make room"
    ):
        run.write_record(RECORD.model_copy(update={"chunk_size": 5}))
    assert run.read_record() == RECORD
    assert sorted(path.name for path in run.path.iterdir()) == ["run.copy.json", "run.json"]


def test_readers_never_see_a_part(run):
    path = run.path / "text"
    texts = {letter * 200_000 for letter in "abc"}
    write_atomically(path, b"a" * 200_000)
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for text in texts:
                write_atomically(path, text.encode())

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert {path.read_text() for _ in range(200)} <= texts
    finally:
        stop.set()
        writer.join()


def test_a_manifest_is_replaced_as_a_whole(run, monkeypatch):
    with pytest.raises(StorageError, match=r"images\.parquet: the manifest cannot be read \(No such file"):
        run.read_manifest("images")
    old = Manifest.from_ids(["a"])
    run.write_manifest("images", old)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        run.write_manifest("images", Manifest.from_ids(["b"]))
    assert run.read_manifest("images") == old
    assert [path.name for path in run.path.iterdir()] == ["images.parquet"]


def test_the_summary_is_kept_beside(run):
    assert run.read_summary() is None
    run.write_summary({"z": None, "a": [1.5]})
    assert list(run.read_summary().items()) == [("z", None), ("a", [1.5])]
    for content in ("{", "[" * 100_000):
        (run.path / "summary.json").write_text(content)
        assert run.read_summary() is None
    run.write_summary({"z": 1.5, "k": {3: 4}})
    assert run.read_summary() == {"z": 1.5, "k": {"3": 4}}
    file = run.path / "summary.json"
    file.write_text(file.read_text().replace("1.5", "1.7"))
    assert run.read_summary() is None


# --- the ledger ------------------------------------------------------------------------------------------


def events_of(run):
    return [{name: fact for name, fact in event.items() if name != "time"} for event in run.read_events()]


def test_events_come_back_in_order(run):
    assert events_of(run) == []
    run.append_event("started", engine={"name": "local"})
    run.append_event("failed", error="two\nlines \u2028 ü \x85")
    assert events_of(run) == [
        {"event": "started", "engine": {"name": "local"}},
        {"event": "failed", "error": "two\nlines \u2028 ü \x85"},
    ]
    assert abs(next(run.read_events())["time"] - time.time()) < 60


@given(st.integers(1, 60), st.binary(max_size=20))
def test_a_line_that_a_kill_cut_short_takes_no_other_along(tmp_path_factory, length, rest):
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    run.append_event("first")
    with (run.path / "events.jsonl").open("ab") as ledger:
        ledger.write(json.dumps({"event": "cut", "x": "y" * 60}).encode()[:length] + rest)
    run.append_event("next")
    run.append_event("last")
    names = [event.get("event") for event in run.read_events()]
    assert [name for name in names if name in ("first", "next", "last")] == ["first", "next", "last"]


@pytest.mark.parametrize(
    "line", [b"[" * 100_000 + b"\n", b"[1, 2]\n", b"3\n", b"\xff\xfe\n", b"\0\0\0\0\n", b"\n", b"null\n"]
)
def test_strange_lines_are_passed_over(run, line):
    run.append_event("first")
    with (run.path / "events.jsonl").open("ab") as ledger:
        ledger.write(line)
    run.append_event("last")
    assert [event["event"] for event in run.read_events()] == ["first", "last"]


@pytest.mark.slow
def test_the_ledger_is_bounded_and_keeps_what_is_new(run, monkeypatch):
    monkeypatch.setattr(module, "LEDGER_BYTES", 20_000)
    for number in range(200):
        run.append_event("failed", unit=str(number), error=f"{'long' * 10_000} end {number}")
        assert (run.path / "events.jsonl").stat().st_size <= 20_000
    events = events_of(run)
    assert [int(event["unit"]) for event in events] == list(range(200 - len(events), 200))
    assert len(events) > 1
    assert all(event["error"].endswith(f" end {event['unit']}") for event in events)


def test_nothing_fails_for_want_of_the_ledger(run, caplog):
    (run.path / "events.jsonl").mkdir()
    assert events_of(run) == []
    run.append_event("started")
    assert events_of(run) == [{"event": "started"}]
    assert "events.jsonl: there was a folder in its place" in caplog.text


# --- what lies where -------------------------------------------------------------------------------------


def test_the_layout_on_disk_is_the_documented_one(run):
    names = [
        run.features,
        run.tiles,
        run.matrices,
        run.figures,
        run.manifest("images"),
        run.manifest("queries"),
    ]
    assert [str(path.relative_to(run.path)) for path in names] == [
        "features.zarr",
        "tiles.zarr",
        "rsm.zarr",
        "figures",
        "images.parquet",
        "queries.parquet",
    ]
    for path in names[:4]:
        assert path.name in module.__doc__


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    directory = RunDirectory(tmp_path)
    kept = [
        directory.tiles / "a" / "c" / "0" / "0",
        directory.features / "zarr.json",
        tmp_path / "mine.partial",
    ]
    small = [tmp_path / name for name in ("run.json.tmp12", "summary.json.tmp7", "images.parquet.tmp12")]
    litter = [
        directory.tiles / "a" / "c" / "0" / "1.5f.partial",
        directory.matrices / "zarr.9a.partial",
        directory.tiles / "a" / "zarr.json.tmp12",
    ]
    for path in (*kept, *small, *litter):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    directory.remove_partial_files()
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in (*small, *litter))

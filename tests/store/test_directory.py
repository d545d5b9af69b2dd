"""A run directory: new or foreign, its ledger, and what lies where."""

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.errors import ConfigError, StorageError
from semrsm_dist.store import directory as module
from semrsm_dist.store.directory import FATAL_ERRNOS, RunDirectory
from tests.store.conftest import RECORD


def content_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


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

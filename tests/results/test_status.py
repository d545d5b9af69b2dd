"""The status of a run: while a driver is at work, after it has ended in any way, and followed from another shell."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import yaml

import semrsm_dist as srs
from semrsm_dist.cli.commands import main
from semrsm_dist.cli.interrupts import stopping_in_order
from semrsm_dist.cli.watching import follow
from semrsm_dist.engine.protocol import Receipt, Task
from semrsm_dist.engine.schedule import Schedule
from semrsm_dist.errors import WorkError
from semrsm_dist.pipeline.pulse import Pulse
from semrsm_dist.progress import SilentReporter
from semrsm_dist.results.status import read_status, watch_status
from semrsm_dist.results.status_text import format_line, format_status
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.heartbeat import Heartbeat, StageProgress

COMMAND = (sys.executable, "-m", "semrsm_dist")


def write_config(folder, n=12, tokens=4, **changes):
    np.save(folder / "z.npy", np.random.default_rng(0).normal(size=(n, tokens, 8)).astype(np.float32))
    data = {"source": "features", "layers": {"last": str(folder / "z.npy")}}
    document = {"run": str(folder / "run"), "data": data, "matching": {"tile": 4}} | changes
    (folder / "c.yaml").write_text(yaml.safe_dump(document))
    return folder / "c.yaml"


@pytest.fixture
def run(tmp_path):
    return srs.run(write_config(tmp_path)).directory


def beat(**changes):
    stage = StageProgress(
        name="matching",
        unit="pairs",
        started=time.time() - 60,
        heard=time.time() - 3,
        done=30,
        total=66,
        rate=2.0,
    )
    stage = stage.model_copy(update={"overall_rate": 1.5, "seconds_left": 18.0} | changes.pop("stage", {}))
    now = time.time()
    return Heartbeat(driver="process 7 on here", started=now - 90, time=now, stage=stage).model_copy(
        update=changes
    )


# --- who drives, and how it ended ----------------------------------------------------------------------


def test_a_finished_run_says_how_its_driver_ended(run):
    status = read_status(run.path)
    assert (status["complete"], status["working"], status["driver"]["state"]) == (True, False, "finished")
    assert status["driver"]["place"].startswith(f"process {os.getpid()} on ")
    assert status["seconds_left"] is None
    assert "complete, no driver is at work" in format_status(status)


def test_a_driver_at_work_is_described(run):
    run.write_heartbeat(beat(stage={"retries": 2, "failures": 3, "n_set_aside": 1}))
    with run.locked():
        status = read_status(run.path)
    assert (status["pairs_per_second"], status["seconds_left"]) == (2.0, 18.0)
    assert 2 < status["last_tile_seconds"] < 60
    text = format_status(status)
    assert "a driver is at work" in text
    assert re.search(r"process 7 on here, for 1 min \d\d s", text)
    assert "matching: 30/66 pairs (45 %), 2 pairs/s (1.5 in all), 18 s left" in text
    assert "3 failed attempts, 2 retries, 1 set aside" in text
    assert "matching: 30/66 pairs" in format_line(status)


def test_a_driver_that_says_nothing_is_reported_with_the_remedy(run):
    run.write_heartbeat(beat(time=time.time() - 300))
    with run.locked():
        status = read_status(run.path)
    assert status["driver"]["state"] == "silent"
    assert "nothing was heard of it for 5 min" in format_status(status)
    run.write_heartbeat(beat(time=time.time() - 300, stage={"total": 0}))  # a stage of the driver's own
    with run.locked():
        assert read_status(run.path)["driver"]["state"] == "working"


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (
            "working",
            r"\(process 7 on here\) was last heard of .* ago, at matching, and ended without saying so",
        ),
        ("interrupted", r"\(process 7 on here\) was interrupted .* ago, at matching"),
        ("failed", r"\(process 7 on here\) failed .* ago, at matching: no room\\x1b\[2J\n +more\n"),
    ],
)
def test_a_driver_that_has_ended_is_reported_with_the_time_and_what_to_do(run, state, text, capsys):
    next((run.path / "tiles.zarr").rglob("c/0/1/2")).unlink()
    run.write_heartbeat(beat(state=state, reason="no room\x1b[2J\nmore", time=time.time() - 200))
    assert main(["status", str(run.path)]) == 3
    shown = capsys.readouterr().out
    assert re.search(text, shown)
    assert "3 min 20 s ago" in shown
    assert "start the run's command again to continue" in shown


@pytest.mark.parametrize("state", ["failed", "interrupted"])
def test_a_run_is_interrupted_by_signals_alone(tmp_path, state):
    class Raising(SilentReporter):
        def stage(self, name, *arguments, **options):
            if state == "failed":
                raise KeyboardInterrupt  # a library's own
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
            raise ValueError("made of it by a library")

    expected = {"failed": WorkError, "interrupted": KeyboardInterrupt}[state]
    with pytest.raises(expected), stopping_in_order():
        srs.run(write_config(tmp_path), reporter=Raising())
    directory = RunDirectory(tmp_path / "run")
    beat = directory.read_heartbeat()
    assert (beat.state, "no signal came" in beat.reason) == (state, state == "failed")
    assert ("interrupted" in [event["event"] for event in directory.read_events()]) == (
        state == "interrupted"
    )


def test_matrices_that_are_to_be_stored_and_are_not_yet_are_not_complete_and_no_fault(tmp_path):
    class Interrupting(SilentReporter):
        def stage(self, name, *arguments, **options):
            if name == "assembly":
                raise KeyboardInterrupt
            return super().stage(name, *arguments, **options)

    config = write_config(tmp_path, output={"matrices": "stored"})
    with pytest.raises(KeyboardInterrupt):
        srs.run(config, reporter=Interrupting())
    status = read_status(tmp_path / "run")
    assert (status["complete"], status["layers"]["last"]["stored"]) == (False, False)
    assert "66/66 pairs (100 %), matrices not stored yet" in format_status(status)
    report = srs.open_run(tmp_path / "run").verify(fast=True)
    assert (report.faults, report.exit_code) == ((), 3)
    assert "its matrices are to be stored" in report.incomplete[0]
    directory = srs.run(config).directory
    assert read_status(directory.path)["complete"]
    shutil.rmtree(directory.matrices / "last")
    assert not read_status(directory.path)["complete"]
    assert srs.open_run(directory.path).verify(fast=True).exit_code == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 2}', b"\xff\xfe", None])
def test_without_a_heartbeat_that_can_be_read_what_is_finished_is_still_counted(run, content):
    (run.path / "progress.json").unlink()
    if content is not None:
        (run.path / "progress.json").write_bytes(content)
    status = read_status(run.path)
    assert status["complete"]
    assert status["driver"] is None
    assert status["layers"]["last"]["pairs"] == [66, 66]
    with run.locked():
        assert "a driver is at work" in format_status(read_status(run.path))


def test_the_heartbeat_of_an_earlier_session_is_not_that_of_a_new_driver(run):
    with run.locked():
        status = read_status(run.path)
    assert status["working"]
    assert status["driver"] is None


def test_units_set_aside_are_listed_before_their_stage_ends(run):
    aside = [{"unit": "last/0/1", "error": "broken\x1b[2J"}]
    run.write_heartbeat(
        Heartbeat.model_validate(
            beat().model_dump() | {"stage": beat().stage.model_dump() | {"set_aside": aside}}
        )
    )
    with run.locked():
        status = read_status(run.path)
        assert status["failed"] == [{"stage": "matching", "unit": "last/0/1", "error": "broken\x1b[2J"}]
        assert r"failed: matching last/0/1: broken\x1b[2J" in format_status(status)
        run.append_event("failed", stage="matching", unit="last/0/1", error="broken\x1b[2J")
        assert len(read_status(run.path)["failed"]) == 1


# --- what a driver says --------------------------------------------------------------------------------


def test_a_killed_driver_is_missed_and_its_work_continued(tmp_path):
    config = write_config(tmp_path, 400, 64, matching={"matcher": "hungarian", "tile": 8}, workers=2)
    driver = subprocess.Popen(
        [*COMMAND, "run", str(config)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        deadline, status = time.monotonic() + 120, None
        while time.monotonic() < deadline and driver.poll() is None:
            if (tmp_path / "run" / "run.json").exists():
                status = read_status(tmp_path / "run")
                if status["stage"] and status["stage"]["name"] == "matching" and status["stage"]["done"]:
                    break
            time.sleep(0.1)
        assert status["working"]
        assert status["driver"]["state"] == "working"
        assert status["driver"]["place"].startswith(f"process {driver.pid} on ")
        assert status["pairs_per_second"] > 0
        assert status["seconds_left"] > 0
        assert status["stage"]["n_workers"] >= 1
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    status = read_status(tmp_path / "run")
    assert (status["working"], status["driver"]["state"]) == (False, "lost")
    assert status["driver"]["silent_seconds"] < 60
    done = subprocess.run(
        [*COMMAND, "status", str(tmp_path / "run"), "--watch"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert "ended without saying so" in done.stdout


def test_a_stage_knows_its_rates_its_slow_workers_and_its_failures(tmp_path):
    directory, now = RunDirectory(tmp_path), time.monotonic()
    schedule = Schedule([Task((unit,)) for unit in ("a", "b", "c", "lost", 0, 1)], attempts=2)
    watch = Pulse(directory).begin("matching", "pairs", 100, 20, left=200.0, schedule=schedule)
    for place, seconds in (("a", 1.0), ("b", 2.0), ("c", 4.0), ("lost", 9.0)):
        task, receipt = schedule.next_task(now), Receipt(place, seconds=seconds, place=place)
        schedule.receive(task, receipt, now)
        for _ in range(3):
            watch.receive(receipt, 5, 10.0)
        schedule.finish(task, None, now, is_lost=place == "lost")
    for attempt in range(2):
        task = schedule.next_task(attempt)
        while task.units != (0,):
            task = schedule.next_task(attempt)
        watch.fail()
        schedule.receive(task, Receipt(0, error="Traceback\nValueError: broken at s3://k:s@b"), attempt)
        schedule.finish(task, None, attempt)
    time.sleep(0.05)
    found = watch.progress()
    assert (found.done, found.before, found.total) == (80, 20, 100)
    assert found.n_workers == 3
    assert found.rate == pytest.approx(found.overall_rate, rel=0.2)
    assert 0 < found.seconds_left < 60
    assert [(one.place, round(one.speed, 3)) for one in found.slowest] == [("c", 0.5), ("b", 1.0), ("a", 2.0)]
    assert (found.failures, found.retries, found.n_set_aside) == (2, 1, 1)
    assert found.set_aside[0].error == "ValueError: broken at s3://***@b"


def test_a_slow_storage_gets_fewer_heartbeats(tmp_path, monkeypatch):
    directory, written = RunDirectory(tmp_path), []

    def write(found):
        written.append(found)
        time.sleep(0.05)

    monkeypatch.setattr(directory, "write_heartbeat", write)
    monkeypatch.setattr("semrsm_dist.pipeline.pulse.BEAT_SECONDS", 0.0)
    pulse = Pulse(directory)
    pulse.begin("matching")
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        pulse.look()
    assert len(written) == 1  # a hundredth of the time is five seconds


def test_a_run_directory_that_cannot_be_written_to_stops_no_work_for_the_heartbeat(tmp_path):
    pulse = Pulse(RunDirectory(tmp_path / "gone"))
    pulse.begin("matching")
    pulse.end(None)
    assert not (tmp_path / "gone").exists()


# --- following -----------------------------------------------------------------------------------------


def test_watching_ends_with_the_driver_and_with_its_outcome(run, capsys):
    done = threading.Event()

    def drive():
        with run.locked():
            held.set()
            run.write_heartbeat(beat())
            done.wait(30)
            run.write_heartbeat(beat(state="finished"))

    held = threading.Event()
    thread = threading.Thread(target=drive)
    thread.start()
    held.wait(30)
    statuses = []
    for status in watch_status(run.path):
        statuses.append(status)
        done.set()
    thread.join()
    assert [statuses[0]["working"], statuses[-1]["working"]] == [True, False]
    assert main(["status", str(run.path), "--watch", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"]


def statuses_of(run):
    for done in (10, 20):
        run.write_heartbeat(beat(stage={"done": done}))
        with run.locked():
            yield read_status(run.path)
    run.write_heartbeat(beat(stage={"name": "evaluation", "done": 1, "total": 2, "unit": "rows"}))
    with run.locked():
        yield read_status(run.path)
    run.write_heartbeat(beat(state="finished"))
    yield read_status(run.path)


def test_elsewhere_than_on_a_terminal_each_change_is_a_line(run):
    lines = []
    assert follow(statuses_of(run), lines.append, as_json=False)["complete"]
    assert ["matching: 10/66" in lines[0], "evaluation: 1/2" in lines[1]] == [True, True]
    assert "complete, no driver is at work" in lines[2]
    assert len(lines) == 3
    lines.clear()
    follow(statuses_of(run), lines.append, as_json=True)
    assert [json.loads(line)["working"] for line in lines] == [True, True, True, False]


def test_on_a_terminal_the_status_is_renewed_in_place(run, monkeypatch):
    master, slave = os.openpty()
    with io.TextIOWrapper(os.fdopen(slave, "wb", 0), write_through=True) as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        follow(statuses_of(run), lambda text: terminal.write(text + "\n"), as_json=False)
        shown = ""
        while "no driver is at work" not in " ".join(shown.rpartition("\x1b[J")[2].split()):
            shown += os.read(master, 4096).decode()
    os.close(master)
    assert len(re.findall(r"\x1b\[\d+F\x1b\[J", shown)) == 3
    assert "matching: 20/66" in shown.split("\x1b[J")[1]
    assert all(len(line) < 80 for line in re.split(r"\r\n|\x1b\[J", shown))

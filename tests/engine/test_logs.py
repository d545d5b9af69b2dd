"""Logs as JSON: every line of a command's standard error is an object, whatever happens."""

import io
import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import yaml

from semrsm_dist.engine.logs import LogReporter, log_json
from semrsm_dist.progress import require_reporter


@pytest.fixture
def config(tmp_path):
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(8, 4, 3)))
    data = {"source": "features", "layers": {"last": str(tmp_path / "z.npy")}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"run": str(tmp_path / "run"), "data": data}))
    return tmp_path / "c.yaml"


def run(*arguments):
    command = [sys.executable, "-m", "semrsm_dist", "run", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def test_progress_and_warnings_are_objects_and_the_summary_is_text(config):
    done = run(config, "--log-format", "json", "--set", "workers=500")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    last = next(line for line in reversed(lines) if line.get("stage") == "matching")
    assert (last["done"], last["total"], last["unit"]) == (28, 28, "pairs")
    assert any(line["level"] == "warning" and "500" in line["message"] for line in lines)
    assert all(
        {"time", "level", "logger", "message", "host", "process", "thread"} <= line.keys() for line in lines
    )
    assert "8 images, 1 layer, complete" in done.stdout


def test_an_error_is_an_object_too(config):
    done = run(config, "--log-format", "json", "--set", "matching.tile=0")
    assert done.returncode == 2
    [line] = map(json.loads, done.stderr.splitlines())
    assert line["level"] == "error"
    assert "matching.tile" in line["message"]


def test_what_is_logged_cannot_drive_a_terminal_and_tells_no_secret():
    stream = io.StringIO()
    handler = log_json(stream)
    try:
        try:
            int("s3://key:sesame@bucket\x1b[2J")
        except ValueError:
            logging.getLogger("semrsm_dist.mine").exception("a\nb \u202e s3://key:sesame@bucket")
        reporter = require_reporter(LogReporter())
        with reporter.stage("scan", 3, "images", 1) as stage:
            stage.advance(2)
        with reporter.stage("scan", 3, "images") as stage:
            stage.advance(2, 0.0)  # found done: another stage does the rest
        reporter.note("hello")
    finally:
        logging.getLogger().removeHandler(handler)
    first, began, ended, _, found, note = map(json.loads, stream.getvalue().splitlines())
    assert first["message"] == r"a" "\n" r"b \u202e s3://***@bucket"
    assert "ValueError" in first["traceback"]
    assert not {"\x1b", "\u202e"} & set(stream.getvalue() + first["traceback"])
    assert "sesame" not in stream.getvalue()
    assert (began["done"], ended["done"], ended["stage"]) == (1, 3, "scan")
    assert (ended["message"], found["message"]) == ("scan ended: 3/3 images", "scan goes on: 2/3 images")
    assert note["message"] == "hello"

"""The command `semrsm` as its users meet it: processes, streams, statuses, terminals."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
from importlib import metadata

import numpy as np
import pytest
import yaml
from PIL import Image

import semrsm_dist as srs
from semrsm_dist.cli import commands as cli
from semrsm_dist.cli.options import make_parser
from semrsm_dist.matching.matchers import make_matcher
from semrsm_dist.pipeline.forecast.text import format_plan
from semrsm_dist.store.directory import RunDirectory

COMMAND = (sys.executable, "-m", "semrsm_dist")
SLOW_TO_LOAD = (
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "zarr",
    "numba",
    "matplotlib",
    "sklearn",
    "ray",
    "torch",
    "timm",
)
COMMANDS = ("run", "plan", "validate", "status", "models", "layers", "export")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with features, a configuration, and its finished run."""
    path = tmp_path_factory.mktemp("a place")
    np.save(path / "z.npy", np.random.default_rng(0).normal(size=(24, 6, 4)).astype(np.float32))
    (path / "table.csv").write_text("image_id,labels\n" + "".join(f"i{k},{'ab'[k % 2]}\n" for k in range(24)))
    document = {
        "run": "runs/mine",
        "data": {"source": "features", "layers": {"last": "z.npy", "other": "z.npy"}, "table": "table.csv"},
        "kernels": ["cosine", "rbf"],
        "matching": {"tolerance": 1e-3, "tile": 6},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(document))
    done = semrsm(path, "run", "config.yaml")
    assert done.returncode == 0, done.stderr
    (path / "first.out").write_text(done.stdout)
    (path / "first.err").write_text(done.stderr)
    return path


def semrsm(path, *arguments):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=path, capture_output=True, text=True, timeout=300, check=False
    )


def call(monkeypatch, path, *arguments):
    """Run a command in this process, which spares the time that libraries take to load."""
    monkeypatch.chdir(path)
    return cli.main(list(map(str, arguments)))


# --- help and usage --------------------------------------------------------------------------------------


def loaded_by(place, *arguments):
    """Run a command in a process of its own, and return its output and which slow libraries it has loaded."""
    program = (
        "import atexit, sys; from semrsm_dist.__main__ import main; "
        f"atexit.register(lambda: print('loaded:', *set({SLOW_TO_LOAD}) & sys.modules.keys())); "
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, cwd=place
    )
    assert (done.returncode, done.stderr) == (0, "")
    output, _, loaded = done.stdout.rpartition("loaded:")
    return output, set(loaded.split())


@pytest.mark.parametrize("command", ["report", "export", "evaluate"])
@pytest.mark.parametrize("option", ["-o", "--out"])
def test_output_has_the_same_option_in_all_commands(command, option):
    assert str(make_parser().parse_args([command, "name", option, "there"]).out) == "there"


def test_help_loads_nothing_slow(tmp_path):
    output, loaded = loaded_by(tmp_path, "--help")
    assert all(name in output for name in COMMANDS)
    assert loaded == set()


def test_the_version_is_that_of_the_distribution(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"semrsm {metadata.version('semrsm-dist')}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert "usage: semrsm " + name in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [(), ("rum",), ("run",), ("run", "c.yaml", "--workers", "two"), ("export", "r", "--to", "xls")],
)
def test_wrong_usage_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    assert caught.value.code == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert "usage: semrsm" in found.err


# --- run -------------------------------------------------------------------------------------------------


def test_a_run_tells_results_on_stdout_and_progress_on_stderr(place):
    out, err = (place / "first.out").read_text(), (place / "first.err").read_text()
    assert "24 images, 2 layers, complete" in out
    assert re.search(r"^last +6 +4 +276 +\S+ +\S+ +0$", out, re.M)
    assert re.search(r"^time: .*import.*matching.*assembly", out, re.M)
    assert re.search(r"^matching: 552 pairs, \d+ pairs/s", out, re.M)
    assert "matching: 20 tiles computed, 0 already there" in out
    assert re.search(r"^layer +k +spatio-semantic F1@k +average pooling F1@k +semantic F1@k$", out, re.M)
    assert "open_run('runs/mine')" in out
    assert (place / "runs" / "mine" / "figures" / "overview.png").stat().st_size > 1000
    assert "pairs/s" in err
    assert re.search(r"^matching: 552/552 pairs \(100 %\)", err, re.M)
    assert all(line not in out for line in err.splitlines())


def test_the_summary_holds_the_retrieval_scores(place):
    scores = srs.open_run(place / "runs" / "mine").summary()["retrieval"]
    assert {score["method"] for score in scores} == {"semantic", "spatio-semantic", "average pooling"}
    assert all(0 <= score["f1"] <= 1 and score["n_queries"] == 24 for score in scores)


def test_a_finished_run_computes_nothing_and_loads_nothing_to_compute_with(place):
    output, loaded = loaded_by(place, "run", "config.yaml")
    assert "nothing was computed" in output
    assert not loaded & {"ray", "torch", "timm", "sklearn", "matplotlib"}


def test_settings_on_the_command_line_replace_those_of_the_file(place, monkeypatch, capsys):
    settings = ["--set", "matching.matcher=batch-optimal", "--set", "matching.tolerance=null"]
    settings += ["--set", "matching.window=3", "--set", "kernels=[linear]", "--set", "run=runs/other"]
    assert (
        call(monkeypatch, place, "run", "config.yaml", *settings, "--workers", "1", "--engine", "local") == 0
    )
    capsys.readouterr()
    record = json.loads((place / "runs" / "other" / "run.json").read_text())
    assert record["fingerprint"]["matching.matcher"] == "batch-optimal"
    assert record["fingerprint"]["matching.window"] == 3
    assert record["config"]["workers"] == 1
    assert "semantic_linear" in srs.open_run(place / "runs" / "other").dataset("last")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.yaml"], ["nowhere.yaml", "cannot be read"]),
        (["config.yaml", "--set", "matching.tolerence=1"], ["matching.tolerence", "'tolerance'"]),
        (["config.yaml", "--set", "matcher"], ["--set matcher", "key=value"]),
        (["config.yaml", "--set", "matching.matcher=auctoin"], ["auctoin", "'auction'"]),
        (["config.yaml", "--set", "data.layers.last=nowhere.npy"], ["nowhere.npy"]),
        (["config.yaml", "--set", "matching.tolerance=0.5"], ["matching.tolerance", "0.001 -> 0.5"]),
        (["config.yaml", "--set", "run=z.npy"], ["z.npy", "must name a directory"]),
        (["config.yaml", "--set", "run=/proc/x"], ["/proc/x", "cannot be made"]),
        (["config.yaml", "--workers", "0"], ["semrsm: --workers=0: workers: 0"]),
        (["config.yaml", "--engine", "local", "--address", "h:1"], ["'local' has nothing to join"]),
        (["config.yaml", "--engine", "rey"], ["engine: 'rey'", "did you mean 'ray'"]),
    ],
)
def test_mistakes_end_with_2_on_stderr(place, monkeypatch, capsys, arguments, words):
    assert call(monkeypatch, place, "run", *arguments) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("semrsm: ")
    for word in words:
        assert word in found.err


def test_mistakes_in_the_file_name_its_line(place, monkeypatch, capsys):
    (place / "wrong.yaml").write_text(
        "run: r\ndata:\n  source: features\n  layrs: {last: z.npy}\nkernls: [cosine]\n"
    )
    assert call(monkeypatch, place, "validate", "wrong.yaml") == 2
    error = capsys.readouterr().err
    assert re.search(r"wrong\.yaml:4: .*'data\.layrs'.*'layers'", error)
    assert re.search(r"wrong\.yaml:5: .*'kernls'.*'kernels'", error)


@pytest.fixture
def pictures(place):
    """A configuration of three images and a network."""
    (place / "pictures").mkdir(exist_ok=True)
    for index in range(3):
        Image.new("RGB", (40, 40), (index, 90, 30)).save(place / "pictures" / f"{index}.png")
    document = {
        "run": "runs/pictures",
        "data": {"source": "folder", "path": "pictures"},
        "model": {"name": "test_resnet", "weights": "random", "layers": ["layer4"], "input_size": 64},
    }
    (place / "pictures.yaml").write_text(yaml.safe_dump(document))
    return place


@pytest.mark.parametrize("command", ["validate", "run", "plan"])
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.name=test_resnat", ["unknown model 'test_resnat'", "'test_resnet'"]),
        ("model.layers=[layer9]", ["no layer 'layer9'", "'layer4'"]),
        (
            "model.weights=pretrained",
            ["which pretrained weights", "test_resnet.r160_in1k"],
        ),
        ("model.weights=nowhere.pth", ["nowhere.pth"]),
        ("data.path=nowhere", ["nowhere"]),
    ],
)
def test_mistakes_in_model_and_data_are_found_before_any_image_is_read(
    pictures, monkeypatch, capsys, command, setting, words
):
    monkeypatch.setattr(Image, "open", pytest.fail)
    assert call(monkeypatch, pictures, command, "pictures.yaml", "--set", setting) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert "scan:" not in found.err
    for word in words:
        assert word in found.err


def test_the_summary_names_what_the_similarities_are_of(pictures, monkeypatch, capsys):
    assert call(monkeypatch, pictures, "run", "pictures.yaml") == 0
    assert (
        "\ntest_resnet, random weights (seed 0, untrained); matcher auction, tolerance 0.001; no labels\n"
        in (capsys.readouterr().out)
    )


# --- streams that nobody reads ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("redirection", "status"),
    [
        (">&- 2>&-", 0),
        ("2>/dev/full", 0),
        (">/dev/full", 1),
        ("</dev/null | true", 0),
    ],
)
def test_streams_that_cannot_be_written_do_not_end_a_run(place, redirection, status):
    for name in ("run.json", "summary.json", "tiles.zarr/last/tiles/c/0/1/2"):
        assert (place / "runs" / "mine" / name).exists()
    command = " ".join([*map(str, COMMAND), "run", "config.yaml", redirection])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert ("standard output cannot be written (No space left on device)" in done.stderr) == bool(status)


def test_an_ascii_terminal_and_a_foreign_backend_get_their_results(place, tmp_path):
    (place / "größe").mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONIOENCODING": "ascii",
        "MPLBACKEND": "module://matplotlib_inline.of_somebody_else",
    }
    done = subprocess.run(
        [*COMMAND, "run", "config.yaml", "--set", "run=größe/run", "--set", "data.layers={last: z.npy}"],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert r"gr\xf6\xdfe/run/figures/overview.png" in done.stdout
    with Image.open(place / "größe" / "run" / "figures" / "overview.png") as picture:
        assert picture.width > 500


# --- validate and plan -----------------------------------------------------------------------------------


def test_validate_prints_a_configuration_that_can_be_run(place, monkeypatch, capsys):
    assert call(monkeypatch, place, "validate", "config.yaml", "--set", "workers=2") == 0
    text = capsys.readouterr().out
    (place / "resolved.yaml").write_text(text)
    assert yaml.safe_load(text)["workers"] == 2
    assert call(monkeypatch, place, "run", "resolved.yaml") == 0
    assert "nothing was computed" in capsys.readouterr().out
    assert call(monkeypatch, place, "validate", "config.yaml", "--json") == 0
    assert json.loads(capsys.readouterr().out)["matching"]["tolerance"] == 1e-3


@pytest.mark.parametrize("matcher", ["auction", "greedy", "subsample"])
def test_validate_prints_defaults_that_load_again(matcher, place, monkeypatch, capsys):
    document = {
        "run": "runs/short",
        "data": {"source": "digits", "n_images": 4},
        "model": {"name": "test_resnet", "weights": "digits", "layers": "layer4"},  # one needs no list
        "matching": {"matcher": matcher},
    }
    (place / "short.yaml").write_text(yaml.safe_dump(document))
    assert call(monkeypatch, place, "validate", "short.yaml") == 0
    text = capsys.readouterr().out
    printed = yaml.safe_load(text)
    assert {"tile", *make_matcher(matcher).parameters} <= printed["matching"].keys()
    assert printed["workers"] is printed["model"]["input_size"] is None
    (place / "long.yaml").write_text(text)
    assert call(monkeypatch, place, "validate", "long.yaml") == 0
    assert capsys.readouterr().out == text


def test_validate_refuses_scenes_that_cannot_be(place, monkeypatch, capsys):
    document = {
        "run": "runs/scenes",
        "data": {"source": "digits", "digits": [1, 40]},
        "model": {"name": "test_resnet", "weights": "digits", "layers": ["layer4"]},
    }
    (place / "scenes.yaml").write_text(yaml.safe_dump(document))
    assert call(monkeypatch, place, "validate", "scenes.yaml") == 2
    assert "40 digits" in capsys.readouterr().err


def test_plan_computes_nothing_but_a_calibration(place, monkeypatch, capsys):
    before = sorted(place.rglob("*"))
    assert call(monkeypatch, place, "plan", "config.yaml", "--json", "--set", "run=runs/planned") == 0
    shown = capsys.readouterr()
    plan = json.loads(shown.out)
    assert re.search(r"^calibration: 9/9 trials \(100 %\)", shown.err, re.M), "it takes a while"
    assert sorted(place.rglob("*")) == before
    assert plan["images"] == {"images": 24}
    assert (plan["pairs"], plan["tiles"]) == (552, 20)
    assert plan["layers"]["last"]["pairs"] == 276
    assert plan["layers"]["last"]["tile"] == 6
    assert plan["layers"]["last"]["pair_seconds"] > 0
    assert plan["matching_core_hours"] == pytest.approx(
        sum(layer["core_seconds"] for layer in plan["layers"].values()) / 3600
    )
    assert plan["core_hours"] == plan["matching_core_hours"]
    assert plan["gpu_hours"] == 0
    assert 0.2 < plan["start_seconds"] < plan["seconds"], "a process of its own has to load the package"
    low, high = plan["seconds_interval"]
    assert 0 < low < plan["seconds"] < high
    assert plan["confidence"] == 0.9
    assert plan["fits"]
    assert plan["disk_bytes"] < plan["disk_free_bytes"]
    assert 50e6 < plan["peak_memory_bytes"] < 20e9
    assert {1, 10, 100, 1000} <= {row["workers"] for row in plan["scaling"]}
    assert plan["scaling"][-1]["limit"] in ("work", "driver"), (
        "of 276 pairs, a thousand workers are left idle"
    )
    assert plan["limit"] in ("workers", "memory", "storage", "driver", "work")
    text = format_plan(plan)  # as `plan` shows it to people
    assert re.search(r"^last +6 +4 +276", text, re.M)
    assert re.search(r"with 90 % confidence between .* and ", text)
    assert re.search(r"^ +1000 .* too little work to share$", text, re.M)
    assert re.search(r"; limited by ", text)


@pytest.mark.usefixtures("few_trials")
def test_a_plan_that_the_disk_cannot_hold_fails_as_its_run_does(place, monkeypatch, capsys):
    np.save(place / "many.npy", np.random.default_rng(0).normal(size=(6000, 1, 1)).astype(np.float16))
    (place / "many.yaml").write_text(
        yaml.safe_dump(
            {"run": "runs/many", "data": {"source": "features", "layers": {"last": "many.npy"}}, "workers": 1}
        )
    )
    usage = shutil.disk_usage(place)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=150_000_000))
    assert call(monkeypatch, place, "plan", "many.yaml") == 1
    assert "the disk may be too small, and the run would be refused: free space" in capsys.readouterr().out
    assert call(monkeypatch, place, "run", "many.yaml") == 1
    assert "nothing was computed: free space" in capsys.readouterr().err


@pytest.mark.usefixtures("few_trials")
def test_a_run_that_takes_more_core_hours_than_allowed_is_refused_before_work(place, monkeypatch, capsys):
    new = ("run", "config.yaml", "--set", "run=runs/limited")
    assert call(monkeypatch, place, *new, "--max-core-hours", "1e-9") == 1
    refusal = capsys.readouterr().err
    assert "core-hours, more than --max-core-hours 1e-09; nothing was computed" in refusal
    assert "calibration: 5/5 trials" in refusal
    assert call(monkeypatch, place, *new, "--max-core-hours", "nan") == 2
    assert "--max-core-hours: nan: expected a finite number" in capsys.readouterr().err
    assert not (place / "runs" / "limited").exists()
    assert call(monkeypatch, place, *new, "--max-core-hours", "1") == 0


@pytest.mark.usefixtures("few_trials")
def test_plan_of_images_skips_unreadable_ones_where_the_run_would(place, monkeypatch, capsys):
    (place / "images").mkdir()
    for index in range(3):
        Image.new("RGB", (40, 40), (index, 90, 30)).save(place / "images" / f"{index}.png")
    (place / "images" / "0.png").write_bytes(b"no image")
    document = {
        "run": "runs/images",
        "data": {"source": "folder", "path": "images"},
        "model": {"name": "test_resnet", "weights": "random", "layers": ["layer4"], "input_size": 64},
    }
    (place / "images.yaml").write_text(yaml.safe_dump(document))
    assert call(monkeypatch, place, "plan", "images.yaml") == 2
    assert "0.png" in capsys.readouterr().err
    assert call(monkeypatch, place, "plan", "images.yaml", "--set", "unreadable=skip", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["image_seconds"] > 0
    assert plan["seconds"] > plan["start_seconds"] > 0
    assert (
        "\nmodel test_resnet, weights random, input_size [64, 64], precision float32, batch_size 32\n"
        in format_plan(plan)
    )


# --- status, models, layers, export ----------------------------------------------------------------------


def test_status_of_a_finished_run(place, monkeypatch, capsys):
    assert call(monkeypatch, place, "status", "runs/mine") == 0
    text = capsys.readouterr().out
    assert "complete, no driver is at work" in text
    assert "10/10 tiles, 276/276 pairs (100 %), complete" in text
    assert call(monkeypatch, place, "status", "runs/mine", "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert status["complete"] is True
    assert status["layers"]["other"]["pairs"] == [276, 276]


def test_status_of_an_unfinished_run_ends_with_3(place, monkeypatch, capsys):
    assert call(monkeypatch, place, "run", "config.yaml", "--set", "run=runs/cut") == 0
    capsys.readouterr()
    run = place / "runs" / "cut"
    (run / "tiles.zarr" / "last" / "tiles" / "c" / "0" / "1" / "2").unlink()
    (run / "tiles.zarr" / "last" / "zarr.json").unlink()
    assert call(monkeypatch, place, "status", "runs/cut") == 3
    text = capsys.readouterr().out
    assert "incomplete" in text
    assert "last: features 1/1 chunks, 9/10 tiles, 240/276 pairs (87 %)" in text
    assert call(monkeypatch, place, "export", "runs/cut") == 3
    found = capsys.readouterr()
    assert found.out == ""
    assert "not complete yet" in found.err
    assert not (run / "export").exists()


def test_status_while_a_driver_looks_at_the_images(place, monkeypatch, capsys):
    directory = RunDirectory(place / "runs" / "beginning")
    directory.create()
    assert call(monkeypatch, place, "status", "runs/beginning") == 2
    with directory.locked():
        assert call(monkeypatch, place, "status", "runs/beginning") == 3
    assert "a driver is at work" in capsys.readouterr().out


def test_control_characters_of_names_and_events_stay_off_the_terminal(place, monkeypatch, capsys):
    directory = RunDirectory(place / "runs" / "mine")
    directory.append_event("failed", stage="matching", unit="\x1b[2J", error="broken\x07\u202e")
    assert call(monkeypatch, place, "status", "runs/mine") == 0
    assert r"failed: matching \x1b[2J: broken\x07\u202e" in capsys.readouterr().out
    assert call(monkeypatch, place, "status", "run\x1b]0;mine\x07") == 2
    assert r"run\x1b]0;mine\x07: there is no run" in capsys.readouterr().err
    directory.append_event("started")


@pytest.mark.parametrize("path", ["runs/nowhere", "z.npy", "runs"])
def test_status_of_what_is_no_run(place, monkeypatch, capsys, path):
    assert call(monkeypatch, place, "status", path) == 2
    assert "there is no run here" in capsys.readouterr().err


def test_export_writes_the_matrices_of_the_run(place, monkeypatch, capsys):
    run = srs.open_run(place / "runs" / "mine")
    assert call(monkeypatch, place, "export", "runs/mine", "--out", "out") == 0
    listed = capsys.readouterr().out.split()
    matrices = [
        f"out/{layer}.{kind}.{kernel}.{suffix}"
        for layer in ("last", "other")
        for kind in ("semantic", "spatio-semantic")
        for kernel in ("cosine", "rbf")
        for suffix in ("npy", "json")
    ]
    assert listed == matrices + [
        f"out/{name}_{suffix}.txt" for suffix in "ij" for name in ("image", "labels")
    ]
    assert (place / "out" / "labels_i.txt").read_text().splitlines() == [
        "|".join(labels) for labels in run.manifest().labels()
    ]
    assert np.array_equal(np.load(place / listed[0]), run.similarity("last").values)
    assert np.array_equal(np.load(place / listed[2]), run.similarity("last", "rbf").values)
    assert (place / "out" / "image_j.txt").read_text().split() == [f"i{index}" for index in range(24)]
    choice = ["--kernel", "linear", "--kind", "spatio-semantic", "--layer", "other"]
    assert call(monkeypatch, place, "export", "runs/mine", *choice) == 0
    written = place / "runs" / "mine" / "export" / "other.spatio-semantic.linear.npy"
    assert np.array_equal(np.load(written), run.similarity("other", "linear", "spatio-semantic").values)
    for choice in (["--kernel", "cosin"], ["--kind", "semantics"], ["--layer", "lats"]):
        assert call(monkeypatch, place, "export", "runs/mine", *choice) == 2
        assert "did you mean" in capsys.readouterr().err


def test_export_to_where_nothing_can_be_written_says_what_helps(place, monkeypatch, capsys):
    assert call(monkeypatch, place, "export", "runs/mine", "--out", "/proc/x") == 1
    assert re.search(
        r"/proc/x: cannot be written \(No such file.*another folder with --out", capsys.readouterr().err
    )


@pytest.mark.parametrize("out", ["config.yaml", "config.yaml/below"])
def test_an_output_folder_that_is_a_file_is_refused_before_anything_is_computed(
    place, monkeypatch, capsys, out
):
    commands = (
        ["export", "runs/mine"],
        ["evaluate", "retrieval", "config.yaml", "--set", "run=runs/not-begun"],
    )
    for command in commands:
        assert call(monkeypatch, place, *command, "--out", out) == 2
        found = capsys.readouterr()
        assert "config.yaml is a file, not a folder; choose another folder with --out" in found.err
    assert not (place / "runs" / "not-begun").exists()


def test_ids_with_line_breaks_keep_one_line_each(place, monkeypatch, capsys):
    (place / "odd.csv").write_text("image_id,labels\n" + "".join(f'"i\n{k}",\n' for k in range(24)))
    settings = ["--set", "data.table=odd.csv", "--set", "run=runs/odd"]
    assert call(monkeypatch, place, "run", "config.yaml", *settings) == 0
    assert call(monkeypatch, place, "export", "runs/odd", "--out", "odd") == 0
    capsys.readouterr()
    assert (place / "odd" / "image_i.txt").read_text().splitlines() == [f"i\\n{index}" for index in range(24)]


def test_models_and_layers(place, monkeypatch, capsys):
    assert call(monkeypatch, place, "models", "test_vit*") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["test_vit", "digits", "96", "x", "96"] in rows
    assert all(row[0].startswith("test_vit") for row in rows)
    assert call(monkeypatch, place, "models", "nothing-like-this") == 2
    assert call(monkeypatch, place, "models", "vit_tiny*", "--weights", "digits") == 2
    told = capsys.readouterr()
    assert re.search(r"none has the weights digits, only pretrained; .*models --weights digits", told.err)
    assert told.out == ""
    assert call(monkeypatch, place, "layers", "test_resnet", "--input-size", "96") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["layer3", "36", "192", "6", "x", "6", "stage"] in rows
    assert call(monkeypatch, place, "layers", "test_vit") == 0
    assert (
        "\nclass tokens, as layers of one token: blocks.0@class, ..., blocks.5@class"
        in capsys.readouterr().out
    )
    assert call(monkeypatch, place, "layers", "test_resne") == 2
    assert "'test_resnet'" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error_of_ours(place):
    models = subprocess.Popen([*COMMAND, "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    models.stdout.readline()
    models.stdout.close()
    assert b"Traceback" not in models.stderr.read()
    models.stderr.close()
    assert models.wait(60) in (0, 1)


# --- progress --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow(place):
    """A configuration whose matching takes a while, in 15 tiles."""
    np.save(place / "slow.npy", np.random.default_rng(0).normal(size=(20, 144, 8)).astype(np.float32))
    document = {
        "data": {"source": "features", "layers": {"last": "slow.npy"}},
        "matching": {"matcher": "hungarian", "tile": 4},
        "workers": 1,
    }
    (place / "slow.yaml").write_text(yaml.safe_dump(document))
    return place / "slow.yaml"


@pytest.mark.parametrize("size", [(0, 0), (30, 100)], ids=["of-no-size", "of-100-columns"])
def test_a_terminal_gets_a_bar(place, slow, size):
    terminal, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, size)
    process = subprocess.Popen(
        [*COMMAND, "run", "slow.yaml", "--set", f"run=runs/bar{size[0]}"],
        cwd=place,
        env={**os.environ, "TQDM_MININTERVAL": "0"},  # as often as there is news, however fast the machine
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes to it any more
        while select.select([terminal], [], [], 120)[0]:
            shown += os.read(terminal, 4096)
    os.close(terminal)
    out = process.stdout.read().decode()
    process.stdout.close()
    assert process.wait(60) == 0
    bars = [text for text in shown.decode().split("\r") if "matching" in text]
    assert len(bars) > 3  # it moves
    assert any(re.search(r"\d+%.*\d/190.*pairs/s", bar) for bar in bars), bars
    assert "pairs/s, took" not in shown.decode()  # which is for files
    assert "complete" in out
    assert "\r" not in out


def test_elsewhere_a_line_comes_every_so_often(place, slow, monkeypatch, capsys):
    monkeypatch.setattr("semrsm_dist.progress.LINE_SECONDS", 0.0)
    assert call(monkeypatch, place, "run", "slow.yaml", "--set", "run=runs/lines") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("matching")]
    assert len(lines) >= 3
    done = [
        int(re.match(r"matching: (\d+)/190 pairs \(\d+ %\), [\d.]+ pairs/s, ", line)[1]) for line in lines
    ]
    assert done == sorted(done)
    assert done[-1] == 190
    assert all(line.endswith((" left", ", finishing")) for line in lines[:-1])
    assert "took" in lines[-1]


# The interpreter tells on standard error what it has loaded, so that the moment is known.
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["semrsm_dist.cli.commands", "pydantic", "numba"])
def test_an_interrupt_while_the_command_still_loads_ends_it(place, slow, module, number):
    command = [
        sys.executable,
        "-X",
        "importtime",
        *COMMAND[1:],
        "run",
        "slow.yaml",
        "--set",
        "run=runs/early",
    ]
    with subprocess.Popen(
        command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        fcntl.fcntl(
            process.stderr, fcntl.F_SETPIPE_SZ, 4096
        )  # it gets no further than a page of unread lines
        for line in process.stderr:
            if line.split(b"|")[-1].strip() == module.encode():
                break
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == b""
    assert [line for line in err.splitlines() if not line.startswith(b"import time:")] == [
        f"semrsm: interrupted by {number.name}".encode()
    ]
    assert not (place / "runs" / "early").exists()


def raising(error):
    def fail(path):
        raise error

    return fail


def test_a_command_without_enough_memory_says_so(monkeypatch, capsys):
    swallowed = SystemError("returned a result with an exception set")
    swallowed.__cause__ = MemoryError()
    for error in (MemoryError(), swallowed):
        monkeypatch.setattr("semrsm_dist.results.status.read_status", raising(error))
        assert cli.main(["status", "run"]) == 1
        assert "semrsm: the memory does not suffice; what was finished is kept" in capsys.readouterr().err
    monkeypatch.setattr("semrsm_dist.results.status.read_status", raising(SystemError("another fault")))
    with pytest.raises(SystemError, match="another fault"):
        cli.main(["status", "run"])


def test_an_interrupt_that_a_library_swallows_stops_the_run_all_the_same(place, slow, monkeypatch, capsys):
    from semrsm_dist.pipeline import driver

    resolve_inputs = driver.resolve_inputs

    def resolve_and_swallow(*arguments):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        return resolve_inputs(*arguments)

    monkeypatch.setattr(driver, "resolve_inputs", resolve_and_swallow)
    assert call(monkeypatch, place, "run", "slow.yaml", "--set", "run=runs/swallowed") == 130
    assert (
        "interrupted by SIGINT; what was finished is kept, the same command continues"
        in capsys.readouterr().err
    )

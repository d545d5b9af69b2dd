"""Experiments are found by name, take parameters by name, and leave table and figure whole."""

import dataclasses
import inspect
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from semrsm_dist.cli.commands import main
from semrsm_dist.config.reading import parse_settings, read_document
from semrsm_dist.config.schema import parse_config
from semrsm_dist.errors import ConfigError, SemrsmError, StorageError
from semrsm_dist.experiments.embedded import DIGITS
from semrsm_dist.experiments.evidence import Evidence, read_settings
from semrsm_dist.experiments.parameters import PARAMETERS, check_parameters
from semrsm_dist.experiments.registry import EXPERIMENTS, evaluate, find_experiment

JOBS = Path(__file__).parents[2] / "jobs"


def draw(figure):
    figure.add_subplot().plot([0, 1])


EVIDENCE = Evidence(
    "trial", pd.DataFrame({"layer": ["a", "b"], "value": [0.5, None]}), draw, "text", {"seed": 3}
)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_can_be_called_and_takes_a_seed(name):
    assert callable(find_experiment(name))
    assert EXPERIMENTS[name].summary


def test_the_embedded_run_is_the_quick_start():
    document, _ = read_document(JOBS / "digits.yaml", ())
    assert document == DIGITS


def test_an_unknown_experiment_is_refused_with_near_names(capsys):
    assert main(["evaluate", "retrieva"]) == 2
    assert "unknown experiment 'retrieva'" in capsys.readouterr().err


def test_an_unknown_parameter_is_refused_before_anything_runs(tmp_path):
    name = next(iter(EXPERIMENTS))
    with pytest.raises(ConfigError, match="no parameter 'sead'"):
        evaluate(name, None, folder=tmp_path, sead=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_parameters_told_are_those_that_an_experiment_takes(name):
    taken = inspect.signature(find_experiment(name)).parameters
    assert list(PARAMETERS[name]) == [
        parameter for parameter in taken if parameter not in ("config", "reporter")
    ]
    for parameter, known in PARAMETERS[name].items():
        default = taken[parameter].default
        assert default is None or known.check(default) == (tuple(default) if known.many else default)


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        ("retrieval", "seed", 2**32),
        ("retrieval", "variance", 1.5),
        ("retrieval", "variance", 0.0),
        ("retrieval", "variance", float("nan")),
        ("retrieval", "centroids", 0),
        ("retrieval", "search", "fast"),
        ("kernels", "multiples", [0.0]),
        ("translation", "images", 1),
        ("translation", "share", 1.5),
        ("translation", "shifts", [-0.5]),
        ("conditions", "images", 1),
        ("conditions", "factors", ["weather"]),
        ("conditions", "kernel", "cosin"),
        ("output-similarity", "probabilities", "nowhere.npy"),
        ("output-similarity", "outputs", "words"),
        ("layers", "images", 1),
        ("layers", "variants", ["pruned"]),
        ("layers", "other", "nowhere.yaml"),
        ("layers", "kernel", "cosin"),
        ("approximation", "keep", 0.0),
        ("approximation", "n_rows", 0),
        ("approximation", "rounds", 0),
        ("approximation", "tolerances", [-1.0]),
        ("approximation", "sizes", [0]),
    ],
)
def test_an_impossible_value_is_refused_before_anything_runs(tmp_path, name, parameter, value):
    config = parse_config({**DIGITS, "run": str(tmp_path / "run")})
    with pytest.raises(SemrsmError):
        evaluate(name, config, folder=tmp_path, **{parameter: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("seed=x", "a whole number of at least 0 and of at most 4294967295"),
        ("seed=-1", "a whole number of at least 0"),
        ("seed=true", "a whole number of at least 0"),
        ("resamples=0", "a whole number of at least 1"),
        ("resamples=[3]", "a whole number of at least 1"),
        ("resamples=2.5", "a whole number of at least 1"),
        ("multiples=abc", "a list of numbers"),
        ("multiples=[1, x]", "a list of numbers"),
        ("multiples={a: 1}", "a list of numbers"),
    ],
)
def test_a_parameter_of_another_kind_is_refused_before_anything_runs(tmp_path, capsys, setting, expected):
    run = tmp_path / "run"
    assert main(["evaluate", "kernels", "--set", f"run={run}", "--with", setting]) == 2
    error = capsys.readouterr().err
    assert f"{setting.partition('=')[0]} is " in error
    assert f"it must be {expected}" in error
    assert not run.exists()


def test_one_value_of_many_and_none_for_the_default_are_taken():
    assert check_parameters("retrieval", {"k": 5, "seed": None}) == {"k": (5,)}
    assert check_parameters("translation", {"shifts": np.float64(0.25)}) == {"shifts": (0.25,)}


def test_numpys_numbers_become_pythons_which_json_knows():
    given = {"seed": np.int64(3), "multiples": np.array([1, 2.5], np.float32), "resamples": np.uint8(9)}
    checked = check_parameters("kernels", given)
    assert json.loads(json.dumps(checked)) == {"seed": 3, "multiples": [1, 2.5], "resamples": 9}
    assert check_parameters("retrieval", {"k": np.array([1, 5])}) == {"k": (1, 5)}
    assert isinstance(check_parameters("retrieval", {"k": np.array([1, 5])})["k"][0], int)


def test_help_tells_every_experiment_and_what_it_can_be_told(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    shown = capsys.readouterr().out
    for name, parameters in PARAMETERS.items():
        assert f"{name}: {EXPERIMENTS[name].summary}" in shown
        assert all(f"    {parameter} " in shown for parameter in parameters)


def test_saved_evidence_can_be_read_again_with_what_it_depends_on(tmp_path):
    table, figure = EVIDENCE.save(tmp_path / "folder")
    pd.testing.assert_frame_equal(pd.read_parquet(table), EVIDENCE.table)
    settings = read_settings(table)
    assert settings["seed"] == 3 and settings["version"]
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_failed_figure_leaves_the_old_one_and_nothing_partial(tmp_path):
    _, figure = EVIDENCE.save(tmp_path)
    before = figure.read_bytes()

    def fail(figure):
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left"):
        dataclasses.replace(EVIDENCE, draw=fail).save(tmp_path)
    assert figure.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trial.parquet", "trial.png"]


def test_settings_of_a_command_line_are_yaml_by_name():
    assert parse_settings(["seed=1", "windows=[8, 16]", "n-pairs=5"], "--with") == {
        "seed": 1,
        "windows": [8, 16],
        "n_pairs": 5,
    }


@pytest.mark.parametrize("settings", [["seed"], ["=1"], ["seed=1", "seed=2"]])
def test_settings_that_are_no_name_and_value_are_refused(settings):
    with pytest.raises(ConfigError, match="--with"):
        parse_settings(settings, "--with")


def test_settings_are_json_in_the_table(tmp_path):
    table, _ = EVIDENCE.save(tmp_path)
    assert json.dumps(read_settings(table))

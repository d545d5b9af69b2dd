"""Experiments are found by name, take parameters by name, and leave table and figure whole."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest

from semrsm_dist.cli import main
from semrsm_dist.config_yaml import parse_settings, read_document
from semrsm_dist.errors import ConfigError, StorageError
from semrsm_dist.experiments.embedded import DIGITS
from semrsm_dist.experiments.evidence import Evidence, read_settings
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

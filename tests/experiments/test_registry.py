"""Experiments are found by name, take parameters by name, and leave table and figure whole."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from semrsm_dist.cli.commands import main
from semrsm_dist.config.reading import parse_settings, read_document
from semrsm_dist.config.schema import parse_config
from semrsm_dist.errors import ConfigError, SemrsmError, StorageError
from semrsm_dist.experiments import EXPERIMENTS
from semrsm_dist.experiments.embedded import DIGITS
from semrsm_dist.experiments.evaluating import check_parameters, evaluate
from semrsm_dist.experiments.evidence import METADATA, Evidence
from semrsm_dist.experiments.experiment import Experiment
from tests import distributions

JOBS = Path(__file__).parents[2] / "jobs"
NAMES = EXPERIMENTS.names()


def draw(figure):
    figure.add_subplot().plot([0, 1])


EVIDENCE = Evidence(
    pd.DataFrame({"layer": ["a", "b"], "value": [0.5, None]}), draw, "text", {"seed": 3}, "trial"
)


def take(name, **given):
    """Return the given parameters as the experiment takes them."""
    return check_parameters(name, given).model_dump(mode="json", exclude_unset=True)


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_says_what_it_answers_and_describes_parameters_with_valid_defaults(name):
    experiment = EXPERIMENTS.load(name)
    assert callable(experiment.load())
    assert experiment.summary
    fields = experiment.parameters.model_fields
    assert "seed" in fields and all(field.description for field in fields.values())
    defaults = experiment.parameters().model_dump()
    assert check_parameters(name, defaults).model_dump() == defaults


def test_the_embedded_run_is_the_quick_start():
    document, _ = read_document(JOBS / "digits.yaml", ())
    assert document == DIGITS


def test_an_unknown_experiment_is_refused_with_near_names(capsys):
    assert main(["evaluate", "retrieva"]) == 2
    error = capsys.readouterr().err
    assert "unknown experiment 'retrieva'" in error and "did you mean 'retrieval'?" in error


def test_an_unknown_parameter_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match=r"no parameter 'sead': it takes seed, .* did you mean 'seed'\?"):
        evaluate(NAMES[0], None, folder=tmp_path, sead=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "parameter", "value", "words"),
    [
        ("retrieval", "seed", 2**32, "a whole number of at least 0 and of at most 4294967295"),
        ("retrieval", "k", [], "a list of whole numbers of at least 1, at least one"),
        ("retrieval", "k", [1.5], "a list of whole numbers of at least 1"),
        ("retrieval", "k", "1", "a list of whole numbers of at least 1"),
        ("retrieval", "variance", 1.5, "a number above 0 and of at most 1"),
        ("retrieval", "variance", 0.0, "a number above 0"),
        ("retrieval", "variance", float("nan"), "a number above 0"),
        ("retrieval", "centroids", 0, "a whole number of at least 1"),
        ("retrieval", "transport", 0.01, "a number of at least 0.03 and of at most 10"),
        ("retrieval", "gem", 0.5, "a number of at least 1"),
        ("retrieval", "near_duplicates", 0.0, "a number above 0 and of at most 1"),
        ("retrieval", "search", "matrx", "one of matrix, progressive; did you mean 'matrix'"),
        ("kernels", "multiples", [0.0], "a list of numbers above 0"),
        ("kernels", "multiples", [np.inf], "a list of numbers above 0, finite"),
        ("translation", "images", 1, "a whole number of at least 2"),
        ("translation", "share", 1.5, "a number above 0 and of at most 1"),
        ("translation", "shifts", [-0.5], "a list of numbers of at least 0"),
        ("translation", "shifts", [0.4], "moved by at most"),
        ("conditions", "images", 1, "a whole number of at least 2"),
        ("conditions", "layers", [], "a list of texts, at least one"),
        ("conditions", "factors", ["scales"], "did you mean 'scale'"),
        ("conditions", "kernel", "cosin", "did you mean 'cosine'"),
        ("output-similarity", "probabilities", "nowhere.npy", "there is no such file"),
        ("output-similarity", "probabilities", 3, "a path"),
        ("output-similarity", "outputs", "words", "one of classes, labels"),
        ("layers", "images", 1, "a whole number of at least 2"),
        ("layers", "variants", ["pruned"], "pruned-SHARE such as pruned-0.5"),
        ("layers", "variants", ["pruned-.5", "pruned-.5"], "a list of different variants"),
        ("layers", "other", "nowhere.yaml", "nowhere.yaml"),
        ("approximation", "keep", 0.0, "a number above 0"),
        ("approximation", "n_rows", 0, "a whole number of at least 1"),
        ("approximation", "rounds", 1.5, "a whole number of at least 1"),
        ("approximation", "tolerances", [-1.0], "a list of numbers of at least 0"),
        ("approximation", "inner_tolerances", ["fine"], "a list of numbers of at least 0"),
        ("approximation", "sizes", [8, 0], "a list of whole numbers of at least 1"),
    ],
)
def test_an_impossible_value_is_refused_before_anything_runs(tmp_path, name, parameter, value, words):
    config = parse_config({**DIGITS, "run": str(tmp_path / "run")})
    with pytest.raises(SemrsmError) as refused:
        evaluate(name, config, folder=tmp_path, **{parameter: value})
    assert words in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("seed=x", "a whole number of at least 0 and of at most 4294967295"),
        ("seed=-1", "a whole number of at least 0"),
        ("seed=true", "a whole number of at least 0"),
        ("resamples=[3]", "a whole number of at least 1"),
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


def test_all_that_is_wrong_is_reported_at_once():
    with pytest.raises(ConfigError) as refused:
        check_parameters("kernels", {"seed": -1, "multiples": [0, -1], "sead": 2})
    lines = str(refused.value).splitlines()
    assert [line.split(": ")[1].split(" ")[0] for line in lines] == ["seed", "multiples", "no"]


def test_one_value_of_many_and_none_for_the_default_are_taken():
    assert take("retrieval", k=5, seed=None) == {"k": [5]}
    assert take("translation", shifts=np.float64(0.25)) == {"shifts": [0.25]}
    assert take("layers", variants="fine-tuned", other=Path("a.yaml")) == {
        "variants": ["fine-tuned"],
        "other": "a.yaml",
    }


def test_numpys_numbers_become_pythons_which_json_knows():
    given = {"seed": np.int64(3), "multiples": np.array([1, 2.5], np.float32), "resamples": np.uint8(9)}
    assert json.loads(json.dumps(take("kernels", **given))) == {
        "seed": 3,
        "multiples": [1, 2.5],
        "resamples": 9,
    }
    for k in (np.array([1, 5]), [np.int32(1), np.int32(5)]):
        assert json.loads(json.dumps(take("retrieval", k=k))) == {"k": [1, 5]}


def test_help_lists_every_experiment_with_its_parameters_and_their_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    shown = capsys.readouterr().out
    for name in NAMES:
        experiment = EXPERIMENTS.load(name)
        assert f"{name}: {experiment.summary}" in shown
        assert all(f"    {parameter} " in shown for parameter in experiment.parameters.model_fields)
    assert "hits per query, with one score for each (default: [1, 3, 5, 10])" in shown


@pytest.mark.parametrize("more", [["--help"], ["my.yaml", "-h"], ["--with", "k=[1]", "--help"]])
def test_help_of_an_experiment_lists_its_parameters_alone(more, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "layers", *more])
    assert caught.value.code == 0
    shown, chosen = capsys.readouterr().out, EXPERIMENTS.load("layers")
    assert all(f"    {parameter} " in shown for parameter in chosen.parameters.model_fields)
    assert [name for name in NAMES if f"  {name}: " in shown] == ["layers"]


def test_help_of_an_unknown_experiment_says_so(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "retreival", "--help"])
    assert caught.value.code == 2
    assert "retrieval" in capsys.readouterr().err


TOY = """
import pandas as pd
from pydantic import Field
from semrsm_dist.experiments.evidence import Findings
from semrsm_dist.experiments.experiment import Experiment, Many, Parameters, Positive

class ToyParameters(Parameters):
    sizes: Many[Positive] = Field((2, 3), description="how many toys")

TOY = Experiment("how many toys there are", ToyParameters, "toy_experiment:count")


def count(config, parameters, reporter):
    table = pd.DataFrame({"size": parameters.sizes, "run": str(config.run)})
    return Findings(table, lambda figure: figure.add_subplot(), f"{len(table)} sizes")
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a distribution with the experiment `toy-count`."""

    def write(text):
        points = "[semrsm_dist.experiments]\ntoy-count = toy_experiment:TOY\n"
        distributions.install(tmp_path, "toy_experiment", points, text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.chdir(tmp_path)
        importlib.invalidate_caches()
        fresh = type(EXPERIMENTS)(
            "experiment", "semrsm_dist.experiments", Experiment, packages=True, check=EXPERIMENTS.check
        )
        monkeypatch.setattr("semrsm_dist.experiments.EXPERIMENTS", fresh)
        monkeypatch.setattr("semrsm_dist.experiments.evaluating.EXPERIMENTS", fresh)

    yield write
    sys.modules.pop("toy_experiment", None)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("toy_experiment:count", "toy_gone:count", "there is no module 'toy_gone' for its computation"),
        (
            "toy_experiment:count",
            "toy_experiment",
            "for its computation 'toy_experiment' (package.module:function)",
        ),
        ("toy_experiment:count", "toy_experiment:sum_up", "'toy_experiment' has no function 'sum_up'"),
        ('toys")', 'toys")\n    price: float', "'price' of toy_experiment.ToyParameters has no default"),
        (
            "    sizes:",
            "    folder: int = 0\n    sizes:",
            "'folder' of toy_experiment.ToyParameters has the name",
        ),
        (
            "ToyParameters(Parameters)",
            "ToyParameters",
            "toy_experiment.ToyParameters, not a model derived from",
        ),
        ('toys there are", ToyParameters', 'toys there are", 3', "its parameters are 3, not a model"),
    ],
)
def test_an_incomplete_experiment_is_refused_when_it_is_loaded(install, capsys, tmp_path, old, new, words):
    assert old in TOY
    install(TOY.replace(old, new))
    assert main(["evaluate", "toy-count"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "toy_experiment:TOY of the distribution toy_experiment 1.0) cannot be used" in error
    assert "update or remove the distribution" in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "count(config, parameters, reporter)",
            "count(config)",
            "toy_experiment:count cannot be used as the function",
        ),
        ("return Findings(", "return (", "toy_experiment:count returned ("),
        ("Findings(table,", "Findings(4,", "returned Findings with the table 4, but must return Findings"),
    ],
)
def test_a_function_of_another_kind_is_refused_in_words(install, capsys, old, new, words):
    install(TOY.replace(old, new))
    assert main(["evaluate", "toy-count"]) == 2
    error = capsys.readouterr().err
    assert words in error and "remove the distribution" in error


def test_a_module_without_what_it_imports_is_refused_in_words(install, tmp_path):
    install(TOY.replace("toy_experiment:count", "toy_counting:count"))
    (tmp_path / "toy_counting.py").write_text("import toy_gone\n")
    with pytest.raises(ConfigError, match=r"toy_counting:count cannot be used .*No module named 'toy_gone'"):
        evaluate("toy-count")


def test_an_experiment_of_another_distribution_is_found_by_its_entry_point(install, tmp_path, capsys):
    install(TOY)
    evidence = evaluate("toy-count", sizes=4)
    assert evidence.table.to_dict("list") == {"size": [4], "run": ["runs/digits"]}
    assert (tmp_path / "runs/digits/evaluation/toy-count.parquet").is_file()
    assert main(["evaluate", "toy-count", "--with", "sizes=[1, 0]"]) == 2
    assert "sizes is [1, 0], but it must be a list of whole numbers of at least 1" in capsys.readouterr().err


def test_saved_evidence_can_be_read_again_with_what_it_depends_on(tmp_path):
    table, figure = EVIDENCE.save(tmp_path / "folder")
    pd.testing.assert_frame_equal(pd.read_parquet(table), EVIDENCE.table)
    settings = json.loads(pyarrow.parquet.read_schema(table).metadata[METADATA])
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

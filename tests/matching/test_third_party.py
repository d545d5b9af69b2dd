"""A matcher that another distribution brings through an entry point works wherever one that ships does."""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml

from tests.distributions import finding, give, install

TOY = '''
from typing import Annotated, ClassVar

import numpy as np

from semrsm_dist.fields import Count
from semrsm_dist.matching.bounds import inner_product, norm_bound
from semrsm_dist.matching.matcher import Limits, Matcher


class Shift(Matcher):
    """Take the best of some cyclic shifts."""

    name: ClassVar[str] = "toy-shift"
    cpus: ClassVar[float] = 2

    shifts: Annotated[Count, Limits("tokens")] = 2
    """How many shifts are tried."""

    def pair_seconds(self, n_tokens, n_channels):
        return 1e-8 * self.shifts * n_tokens * n_channels + 1e-6

    def workspace_bytes(self, n_tokens, n_channels):
        return 8 * n_tokens * n_channels

    def match_prepared(self, rows, r, columns, c):
        orders = [np.roll(np.arange(rows.n_tokens), k) for k in range(self.shifts)]
        values = [inner_product(rows.raw[r], np.ascontiguousarray(columns.raw[c][order])) for order in orders]
        best = int(np.argmax(values))
        return values[best], max(values[best], norm_bound(rows, r, columns, c)), orders[best]


class Nameless(Matcher):
    """Declares nothing."""
'''

USE = """
import numpy as np
import semrsm_dist as srs
from semrsm_dist.experiments.approximation import ApproximationParameters
from semrsm_dist.experiments.approximation.experiment import evaluate
from semrsm_dist.progress import SilentReporter

z = np.load("z.npy")
found = srs.match(z[0], z[1], "toy-shift", shifts=3)
settings = ApproximationParameters(
    n_rows=2, n_columns=3, rounds=1, sizes=[2, 4], tolerances=[0.01], inner_tolerances=[0.0]
)
findings = evaluate(srs.load_config("job.yaml"), settings, SilentReporter())
np.savez(
    "found.npz",
    value=found.value,
    matrix=srs.similarity_matrix(z, kernel="linear", matcher="toy-shift", shifts=3),
    run=srs.open_run("run").similarity("last", kernel="linear").values,
)
from matplotlib.figure import Figure
findings.draw(Figure())
tried = findings.table[findings.table.matcher == "toy-shift"]
with open("found.json", "w") as file:
    json.dump([findings.text, sorted(set(tried["parameter"])), sorted(set(tried["size"]))], file)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    entry_points = (
        "[semrsm_dist.matchers]\ntoy-shift = toy:Shift\nother-name = toy:Shift\nbroken = toy_gone:Gone\n"
        "nameless = toy:Nameless\n"
        "[semrsm_dist.experiments]\nbroken = toy_gone:Gone\n"
        "[semrsm_dist.data_sources]\nbroken = toy_gone:Gone\n"
    )
    install(home / "site", "toy", entry_points, TOY)
    np.save(home / "z.npy", np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32))
    write_job(home, matcher="toy-shift", shifts=3)
    return home


def write_job(home, name="job.yaml", **matching):
    data = {"source": "features", "layers": {"last": "z.npy"}}
    job = {"run": "run", "data": data, "matching": matching, "kernels": ["linear"], "workers": 2}
    (home / name).write_text(yaml.safe_dump(job))


def best_of_shifts(z, shifts):
    z = z.astype(np.float64)
    values = [np.einsum("isc,jsc->ij", z, np.roll(z, k, axis=1)) for k in range(shifts)]
    return np.max(values, axis=0)


def test_it_matches_in_memory_in_a_run_and_in_the_experiment(home, answers):
    status, _, errors = answers["run"]
    assert status == 0, errors
    text, parameters, sizes = json.loads((home / "found.json").read_text())
    assert "toy-shift" in text
    assert (parameters, sizes) == (["shifts"], [2, 4])
    expected = best_of_shifts(np.load(home / "z.npy"), 3)
    found = np.load(home / "found.npz")
    upper = np.triu_indices(6, 1)
    assert found["value"] == pytest.approx(expected[0, 1])
    for name in ("matrix", "run"):
        np.testing.assert_allclose(found[name][upper], expected[upper])
        np.testing.assert_allclose(
            np.diag(found[name]), np.einsum("isc,isc->i", *[np.load(home / "z.npy")] * 2)
        )
    elsewhere = [sys.executable, "-m", "semrsm_dist", "status", "run"]  # without the distribution
    status = subprocess.run(elsewhere, cwd=home, env=finding(), capture_output=True, text=True, check=False)
    assert "15/15 pairs" in status.stdout, status.stderr
    record = json.loads((home / "run" / "run.json").read_text())
    assert record["fingerprint"]["matching.shifts"] == 3


WRONG = [
    ({"matcher": "toy-shift", "shift": 3}, "unknown key 'matching.shift'; did you mean 'shifts'?"),
    ({"matcher": "toy-shift", "shifts": 0}, "matching.shifts: 0: must be greater than or equal to 1"),
    (
        {"shifts": 3},
        "unknown key 'matching.shifts'; it belongs to data (source: crops) or matching (matcher: toy-shift)",
    ),
    ({"matcher": "other-name"}, "it calls itself 'toy-shift'"),
    (
        {"matcher": "nameless"},
        "toy:Nameless of the distribution toy 1.0) cannot be used: it does not define",
    ),
    (
        {"matcher": "broken"},
        "toy_gone:Gone of the distribution toy 1.0) cannot be loaded (ModuleNotFoundError: No module",
    ),
]


@pytest.fixture(scope="module")
def answers(home):
    """Status, output and errors of commands, all in one process; then the matcher is used in memory."""
    for number, (matching, _) in enumerate(WRONG):
        write_job(home, f"{number}.yaml", **matching)
    write_job(home, "plain.yaml")
    crops = ["--set", "data={source: crops, of: {source: digits, n_images: 4}}"]
    model = ["--set", "model={name: test_resnet, weights: digits, layers: [layer4]}"]
    commands = {number: ["validate", f"{number}.yaml"] for number in range(len(WRONG))}
    commands |= {
        "run": ["run", "job.yaml"],
        "plain": ["validate", "plain.yaml", *crops, *model],
        "help": ["evaluate", "--help"],
    }
    given = give([(home, each) for each in commands.values()], home / "site", more=USE)
    return dict(zip(commands, given, strict=True))


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_its_parameters_are_checked_like_any_others(answers, number):
    status, _, errors = answers[number]
    assert status == 2
    assert WRONG[number][1] in errors


def test_a_broken_distribution_costs_only_what_it_brings(answers):
    for command in ("plain", "help"):
        status, _, errors = answers[command]
        assert status == 0, errors
    assert "retrieval" in answers["help"][1]

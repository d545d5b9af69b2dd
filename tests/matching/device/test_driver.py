"""What talks to the driver, by a driver that runs kernels on the CPU: see `driver_on_cpu`.

It shows that the right functions are called with the right arguments, and what becomes of a card's errors. It cannot
show that a GPU runs the kernels.
"""

import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib

import pytest

from semrsm_dist.matching.device.forms import candidates, read_forms
from tests.matching.device.driver_on_cpu import HERE, environment

pytestmark = pytest.mark.slow
ROOT = HERE.parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("cuda.bindings", reason="needs the extra cuda")
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ to compile a driver")
    variables = environment(tmp_path_factory.mktemp("driver"))

    def run(*command):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    return run


TRIALS = ("memory", "beside_torch", "one_of_two", "the_only_one", "neighbours")


@pytest.fixture(scope="module")
def tried(run, tmp_path_factory):
    """The folder of each trial's process, and what all of them said."""
    folder = tmp_path_factory.mktemp("trials")
    said = run("-m", "tests.matching.device.driver_trials", str(folder), *TRIALS)
    return folder, said


@pytest.mark.parametrize("trial", TRIALS)
def test_a_gpu_that_fails_loses_nothing(tried, trial):
    folder, said = tried
    assert (folder / trial).exists()
    assert not (folder / trial / "failed").exists(), said


def test_what_needs_a_gpu_passes(run):
    plugin = "tests.matching.device.driver_on_cpu"
    chosen = "agrees_with_one_on_the_cpu or interrupted_run"
    out = run(
        "-m", "pytest", "-p", plugin, "-m", "gpu", "-k", chosen, "tests/pipeline/test_runs_on_a_device.py"
    )
    assert "2 passed" in out


def not_needed():
    """Return the modules among the package's dependencies that the job says it does without."""
    job = runpy.run_path(str(ROOT / "jobs/gpu_check.py"))
    needed = [*job["NEEDED"].values(), *job["NEEDED_BY_RUNS"].values(), "llvmlite"]  # which is Numba's
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.match(r"[\w-]+", one)[0] for one in required}.difference(needed)
    return [{"scikit-learn": "sklearn"}.get(name, name.replace("-", "_")) for name in names]


def test_the_job_that_checks_a_gpu_finds_nothing_off_with_what_it_says_it_needs(run):
    absent = not_needed()
    assert {"ray", "torch"} <= set(absent)
    code = (
        "import runpy, sys, tests.matching.device.driver_on_cpu;"
        f"sys.modules.update(dict.fromkeys({absent}));"  # so that their import fails
        "from semrsm_dist.matching.device import forms; known = forms.known_forms()[:1];"
        "forms.known_forms = lambda: known;"
        "sys.argv = ['gpu_check', '--sizes', '9x6', '--images', '4', '--runs', '9x6x12', '--skip-tests'];"
        "runpy.run_path('jobs/gpu_check.py', run_name='__main__')"
    )
    *rows, last = run("-c", code).splitlines()
    assert [row.split("  ")[0] for row in rows] == [
        *("GPU", "kernels", "product in float32", "product in halves"),
        *(f"S = 9, C = 6, tolerance {tolerance}" for tolerance in ("0.01", "0.001", "0.0001")),
        "run, S = 9, C = 6, N = 12",
    ]
    assert last == "all is right"


def test_the_job_that_checks_a_gpu_measures_forms_and_writes_their_table(run, tmp_path):
    table = tmp_path / "forms.json"
    code = (
        "import runpy, sys, tests.matching.device.driver_on_cpu;"
        "from semrsm_dist.matching.device import forms; forms.CAPACITIES = (64,);"
        f"sys.argv = ['gpu_check', '--images', '2', '--renew-forms', {str(table)!r}];"
        "runpy.run_path('jobs/gpu_check.py', run_name='__main__')"
    )
    *_, last = run("-c", code).splitlines()
    assert last == "all is right"
    (form,) = read_forms(table)
    assert form in candidates(64)
    assert json.loads(table.read_text())["measured_on"] == "GPU 0 (CPU in place of a GPU)"

"""Figures are drawn wherever matplotlib is installed, and leave the choice of a backend to the user."""

import os
import subprocess
import sys

import pytest

DRAW = """
import os
from semrsm_dist.plot.figures import new_figure
new_figure(layout="constrained").savefig(os.devnull, format="png")
import matplotlib
print(os.environ["MPLBACKEND"], matplotlib.rcParams["backend"] if "svg" in os.environ["MPLBACKEND"] else "")
"""


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense", "svg"])
def test_a_backend_that_is_not_installed_does_not_matter_and_one_that_is_stays_chosen(backend):
    found = subprocess.run(
        [sys.executable, "-c", DRAW],
        env={**os.environ, "MPLBACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ([backend, "svg"] if backend == "svg" else [backend])

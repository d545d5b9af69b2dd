"""The job that disturbs runs, in short: some faults of all that it knows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

JOB = Path(__file__).parents[1] / "jobs" / "chaos.py"


@pytest.mark.timeout(1200)  # a machine may be loaded
def test_a_run_that_is_disturbed_keeps_its_promises(tmp_path):
    kinds = "tile|chunk|SIG|disk|standard|storage|limit|permission"  # other files: tests/pipeline
    options = ["--faults", "3", "--data", "features", "--kinds", kinds]
    options += ["--folder", tmp_path, "--table", tmp_path / "table.md"]
    done = subprocess.run(
        [sys.executable, JOB, *options],
        env=os.environ | {"PYTHONPATH": str(JOB.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    rows = (tmp_path / "table.md").read_text().splitlines()
    assert rows[-1].startswith("| all ")
    assert int(rows[-1].split("|")[2]) >= 3

"""What all tests share."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# Before Ray is imported, here or in a child: no token file in the home folder, no usage report, and workers that are
# not put behind all else that runs on the machine, the tests beside them among it.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - so Ray spells it

# Machines are shared: how long an example takes says nothing about the code.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# A script's background jobs ignore interrupts, and their children inherit that: no test of interrupts would see one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

FIRST = "experiments/test_approximation.py"
"""Needs all compiled code: one process compiles it while another runs what needs none."""

SLOWEST = (
    "pipeline/test_resume.py",
    "test_job_submission.py",
    "engine/test_ray_faults.py",
    "pipeline/test_runs_on_engines.py",
    "pipeline/test_bounded_memory.py",
    "engine/test_engines.py",
    "cli/test_cli.py",
    "matching/test_matchers.py",
    "matching/test_top_k.py",
    "pipeline/test_bad_input.py",
    "pipeline/test_extraction_stage.py",
    "pipeline/test_full_disk.py",
    "features/test_paper_presets.py",
    "experiments/test_kernels.py",
    "experiments/test_retrieval.py",
    "features/test_feature_layers.py",
    "experiments/test_layers.py",
)
"""Files that take longest; a file that is not here takes less than a quarter of a minute."""


def pytest_configure(config: pytest.Config) -> None:
    """Hand out files to several processes in the order below; by the number of their tests, a long one comes last."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run fast files first, then the slow ones from the longest on, so that all processes end together."""
    items.sort(key=lambda item: _place(os.path.relpath(item.path, Path(__file__).parent)))


def _place(name: str) -> int:
    if name == FIRST:
        return -1
    return 1 + SLOWEST.index(name) if name in SLOWEST else 0

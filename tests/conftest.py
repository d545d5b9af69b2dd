"""What all tests share."""

import gc
import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

# Before Ray is imported, here or in a child: no token file in the home folder, no usage report, and workers that are
# not put behind all else that runs on the machine, the tests beside them among it.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - so Ray spells it

# Hundreds of processes that tests start load the package: they compile its sources once, whatever the shell says.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Threads of OpenBLAS that have nothing to do sleep at once, instead of taking the cores of the tests beside them.
os.environ["OPENBLAS_THREAD_TIMEOUT"] = "4"

# Machines are shared: how long an example takes says nothing about the code.
settings.register_profile("any machine", deadline=None)
# With the same examples each time, a change is judged by what it changes; elsewhere, chance goes on searching.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable" if os.environ.get("CI") else "any machine")

# A script's background jobs ignore interrupts, what nohup starts ignores hang-ups, and children inherit that: no test
# of interrupts would see one.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

FIRST = "experiments/test_approximation.py"
"""Needs all compiled code: one process compiles it while another runs what needs none."""

SLOW = (
    "pipeline/test_resume.py",
    "engine/test_engines.py",
    "pipeline/test_verification.py",
    "cli/test_cli.py",
    "pipeline/test_changed_inputs.py",
    "engine/test_ray_start.py",
    "objects/test_object_runs.py",
    "engine/test_ray_faults.py",
    "pipeline/test_runs_on_engines.py",
    "pipeline/test_neighbours_run.py",
    "pipeline/test_damage.py",
    "pipeline/test_stalls.py",
    "test_job_submission.py",
    "report/test_browser.py",
    "pipeline/test_bad_input.py",
    "features/test_paper_presets.py",
    "features/test_feature_layers.py",
    "pipeline/test_full_disk.py",
    "pipeline/test_extraction_stage.py",
    "data/test_sources.py",
    "test_chaos.py",
    "experiments/test_retrieval.py",
    "objects/test_lease.py",
    "pipeline/test_gone_inputs.py",
    "experiments/test_kernels.py",
    "matching/test_top_k.py",
    "test_security.py",
    "engine/test_ray_metrics.py",
    "pipeline/test_bounded_memory.py",
    "report/test_view.py",
    "pipeline/test_final_matrices.py",
    "results/test_status.py",
    "matching/test_compiling.py",
    "report/test_page.py",
    "test_recipes.py",
    "features/test_feature_models.py",
    "matching/test_third_party.py",
    "pipeline/test_runs_on_a_device.py",
    "experiments/test_layers.py",
    "report/test_contents.py",
    "matching/device/test_device_certificates.py",
    "plot/test_overview.py",
    "pipeline/test_tiles.py",
    "experiments/test_improvements.py",
    "results/test_pair.py",
    "test_notebook.py",
    "results/test_nearest.py",
    "experiments/test_output_similarity.py",
    "evaluation/test_agreement.py",
    "results/test_derived_matrices.py",
    "results/test_exports.py",
    "engine/test_logs.py",
    "engine/test_engine_plugin.py",
    "experiments/test_search.py",
    "experiments/test_translation.py",
    "matching/test_approximations.py",
    "pipeline/test_scan_stage.py",
    "plot/test_figures.py",
    "experiments/test_conditions.py",
    "pipeline/test_unequal_tokens_run.py",
    "experiments/test_near_duplicates.py",
    "plot/test_axes.py",
    "test_docs.py",
    "experiments/test_objects.py",
    "deploy/test_manifests.py",
    "results/test_html.py",
    "deploy/test_slurm.py",
    "pipeline/test_unreadable.py",
)
"""Files that take long, the longest first: `-m "not slow"` leaves them out, and the rest takes a minute or two."""


@pytest.fixture
def few_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a plan measure as little as it can be made of, for tests that do not judge how well it predicts."""
    monkeypatch.setattr("semrsm_dist.pipeline.forecast.calibration.ROUNDS", 2)
    monkeypatch.setattr("semrsm_dist.pipeline.forecast.calibration.MOST_SEARCHED", 512)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector from what is collected: it stays to the end, and going through it takes long."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    """Hand out files to several processes in the order below; by the number of their tests, a long one comes last."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Spare the fast tests the import of the slow files, and of what those import."""
    is_slow = _name(collection_path) in {FIRST, *SLOW}
    return True if is_slow and config.option.markexpr == "not slow" else None


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run fast files first, then the slow ones from the longest on, so that all processes end together."""
    names = {item: _name(item.path) for item in items}
    for item, name in names.items():
        if name == FIRST or name in SLOW:
            item.add_marker("slow")
    items.sort(key=lambda item: _place(names[item]))


def _name(path: Path) -> str:
    return os.path.relpath(path, Path(__file__).parent)


def _place(name: str) -> int:
    if name == FIRST:
        return -1
    return 1 + SLOW.index(name) if name in SLOW else 0

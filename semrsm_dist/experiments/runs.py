"""Runs that experiments judge: computed first, or derived from the given one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from semrsm_dist.config.schema import RunConfig
from semrsm_dist.errors import ConfigError
from semrsm_dist.pipeline import driver
from semrsm_dist.progress import Reporter
from semrsm_dist.results.run import Run


def complete_run(config: RunConfig, reporter: Reporter) -> Run:
    """Return a run, computed as far as it is missing."""
    driver.run(config, reporter=reporter)
    return Run(config.run)


def evaluation_folder(config: RunConfig) -> Path:
    """Return the folder in a run's directory for what experiments make.

    Raises ConfigError if the run is in an object store: experiments map large arrays from files.
    """
    if not isinstance(config.run, Path):
        raise ConfigError(
            f"{config.run}: experiments take a run on a file system, as they keep and map large files beside it; give "
            "one, or read the results of this run with semrsm_dist.open_run"
        )
    return config.run / "evaluation"


def require_symmetric(config: RunConfig, experiment: str) -> None:
    """Raise ConfigError if a run has queries."""
    if config.queries is not None:
        raise ConfigError(
            f"{config.run}: the experiment {experiment} compares images with each other, but this run compares queries "
            "with a database; give a run without the section queries"
        )


def choose_kernels(config: RunConfig, names: Iterable[str]) -> list[dict[str, Any]]:
    """Return the section `kernels` of a derived run: these, with the widths that the configuration gives them."""
    widths: dict[str, float | None] = {kernel.name: kernel.sigma for kernel in config.kernels}
    return [{"name": name, "sigma": widths.get(name)} for name in names]

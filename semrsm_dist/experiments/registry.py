"""The experiments by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from semrsm_dist.errors import ConfigError, did_you_mean
from semrsm_dist.experiments.embedded import DIGITS
from semrsm_dist.experiments.parameters import check_parameters

if TYPE_CHECKING:
    from semrsm_dist.config.schema import RunConfig
    from semrsm_dist.experiments.evidence import Evidence
    from semrsm_dist.progress import Reporter


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment.

    Attributes
    ----------
    summary
        What it answers, in a line.
    default
        The configuration that it runs on when none is given.
    """

    summary: str
    default: Mapping[str, Any] = field(default_factory=lambda: DIGITS)


EXPERIMENTS: Mapping[str, Experiment] = MappingProxyType(
    {
        "retrieval": Experiment(
            "F1@k of semantic RSMs against spatio-semantic ones and established retrieval"
        ),
        "kernels": Experiment("the width of the RBF kernel, and tokens normalised or centred"),
        "translation": Experiment(
            "similarity of shifted crops of the same and of different images, by layer and shift"
        ),
        "conditions": Experiment(
            "the gain of permutation invariance by scale, clutter, displacement and resolution of digit scenes"
        ),
        "output-similarity": Experiment(
            "RSM entries against the divergence of the classifier's outputs, by layer and kernel"
        ),
        "layers": Experiment(
            "CKA and RSA between layers, within a network and before and after pruning and fine-tuning"
        ),
        "approximation": Experiment(
            "run time and quality of every matcher, and which window is best at which number of tokens"
        ),
    }
)
"""Every experiment by its name; experiment `a-b` is `evaluate` of `semrsm_dist.experiments.a_b.experiment`."""


def find_experiment(name: str) -> Callable[..., Evidence]:
    """Return the function of an experiment.

    Raises
    ------
    ConfigError
        If there is no such experiment.
    """
    require_experiment(name)
    module = importlib.import_module(f"semrsm_dist.experiments.{name.replace('-', '_')}.experiment")
    function: Callable[..., Evidence] = module.evaluate
    return function


def require_experiment(name: str) -> None:
    """Raise ConfigError unless there is an experiment of that name."""
    if name not in EXPERIMENTS:
        raise ConfigError(
            f"unknown experiment {name!r}: known are {', '.join(EXPERIMENTS)}{did_you_mean(name, EXPERIMENTS)}"
        )


def evaluate(
    name: str,
    config: RunConfig | None = None,
    *,
    reporter: Reporter | None = None,
    folder: str | Path | None = None,
    **parameters: Any,
) -> Evidence:
    """Run an experiment and save what it finds.

    Parameters
    ----------
    name
        A key of `EXPERIMENTS`.
    config
        The run that it judges, computed as far as it is missing; by default one on data that ships.
    reporter
        Where progress is told; None tells nothing.
    folder
        Where the table and the figure go; by default the folder `evaluation` of the run.
    **parameters
        Of the experiment itself, such as `seed`; `semrsm_dist.experiments.parameters` lists them.

    Returns
    -------
    Evidence
        The table, the figure and the words.

    Raises
    ------
    ConfigError
        If there is no such experiment or parameter, a parameter is not what it must be, or the configuration does not
        go with the experiment.
    """
    from semrsm_dist.config.schema import default_config  # noqa: PLC0415 - slow to load
    from semrsm_dist.progress import SilentReporter  # noqa: PLC0415

    function = find_experiment(name)
    checked = check_parameters(name, parameters)
    if config is None:
        config = default_config(EXPERIMENTS[name].default, (), origin=f"experiment {name}")
    evidence = function(config, reporter=reporter or SilentReporter(), **checked)
    evidence.save(Path(folder) if folder is not None else config.run / "evaluation")
    return evidence

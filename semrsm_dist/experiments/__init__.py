"""Experiments: what RSMs are worth. A package each, whose `__init__.py` declares it; modules beside them are shared.

To add one, write `semrsm_dist/experiments/<name>/__init__.py` with an `Experiment`, or give it an entry point in the
group `semrsm_dist.experiments`.
"""

from semrsm_dist.experiments.experiment import Experiment, find_problems
from semrsm_dist.plugins import Plugins

EXPERIMENTS: Plugins[Experiment] = Plugins(
    "experiment", __name__, Experiment, packages=True, check=find_problems
)
"""Every experiment by its name; none is loaded before it is used."""

"""Semantic representational similarity matrices (RSMs) of vision models, at any scale.

In memory, where the representations of N images are an array (N, S, C) of concept vectors:

>>> import numpy as np, semrsm_dist as srs
>>> images = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)
>>> z = srs.extract("test_resnet", images, "layer4", weights="digits")["layer4"]
>>> srs.match(z[0], z[1]).permutation.shape  # which token of one image goes with which of the other
(9,)
>>> srs.similarity_matrix(z, kernel="cosine").shape
(4, 4)
>>> srs.top_k(z, k=2).indices.shape          # the most similar images, without solving all pairs
(4, 2)

On disk, resumable, on one machine or a Ray cluster; a configuration is a mapping or a YAML file:

>>> model = {"name": "test_resnet", "weights": "digits", "layers": ["layer4"]}
>>> run = srs.run({"run": "runs/doc", "data": {"source": "digits", "n_images": 8}, "model": model})
>>> srs.open_run("runs/doc").similarity("layer4", kernel="cosine").shape
(8, 8)

`evaluate` runs an experiment on a run; `help(srs.NAME)` explains a name:

functions  extract, match, similarity_matrix, top_k, run, open_run, load_config, evaluate
results    Features, Match, TopK, Run, Pair, Evidence
figures    plot.rsm, plot.matches, plot.retrieval, plot.translation
others     RunConfig, ConsoleReporter, SilentReporter, SemrsmError and the errors derived from it
"""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from semrsm_dist import plot as plot
    from semrsm_dist.config.schema import RunConfig as RunConfig
    from semrsm_dist.config.schema import load_config as load_config
    from semrsm_dist.errors import ConfigError as ConfigError
    from semrsm_dist.errors import IncompleteError as IncompleteError
    from semrsm_dist.errors import InputError as InputError
    from semrsm_dist.errors import LimitError as LimitError
    from semrsm_dist.errors import ResumeError as ResumeError
    from semrsm_dist.errors import SemrsmError as SemrsmError
    from semrsm_dist.errors import StorageError as StorageError
    from semrsm_dist.errors import WorkError as WorkError
    from semrsm_dist.experiments.evaluating import evaluate as evaluate
    from semrsm_dist.experiments.evidence import Evidence as Evidence
    from semrsm_dist.features.extract import Features as Features
    from semrsm_dist.features.extract import extract as extract
    from semrsm_dist.matching.result import Match as Match
    from semrsm_dist.matching.search.top_k import TopK as TopK
    from semrsm_dist.matching.search.top_k import top_k as top_k
    from semrsm_dist.matching.similarity import match as match
    from semrsm_dist.matching.similarity import similarity_matrix as similarity_matrix
    from semrsm_dist.pipeline.driver import run as run
    from semrsm_dist.progress import ConsoleReporter as ConsoleReporter
    from semrsm_dist.progress import SilentReporter as SilentReporter
    from semrsm_dist.results.pair import Pair as Pair
    from semrsm_dist.results.run import Run as Run
    from semrsm_dist.results.run import open_run as open_run

    __version__: str

_HOMES = {
    "config.schema": ("RunConfig", "load_config"),
    "errors": (
        "ConfigError",
        "IncompleteError",
        "InputError",
        "LimitError",
        "ResumeError",
        "SemrsmError",
        "StorageError",
        "WorkError",
    ),
    "experiments.evaluating": ("evaluate",),
    "experiments.evidence": ("Evidence",),
    "features.extract": ("Features", "extract"),
    "matching.result": ("Match",),
    "matching.search.top_k": ("TopK", "top_k"),
    "matching.similarity": ("match", "similarity_matrix"),
    "pipeline.driver": ("run",),
    "progress": ("ConsoleReporter", "SilentReporter"),
    "results.pair": ("Pair",),
    "results.run": ("Run", "open_run"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> _typing.Any:
    """Load a public name at its first use, so that importing the package costs nothing."""
    if name == "__version__":
        return _importlib.import_module("importlib.metadata").version("semrsm-dist")
    if name == "plot":
        return _importlib.import_module(f"{__name__}.plot")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(_importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    except FileNotFoundError:
        _importlib.import_module(f"{__name__}.machine").require_temporary_folder()
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names alone."""
    return sorted([*_HOME, "plot", "__doc__", "__version__"])

"""Semantic representational similarity matrices of vision models, at any scale.

>>> import semrsm_dist as srs
>>> m = srs.match(z_i, z_j)                              # two images, (S, C) each  # doctest: +SKIP
>>> K = srs.similarity_matrix(z, kernel="cosine")        # (N, S, C) -> (N, N), in memory  # doctest: +SKIP
>>> found = srs.top_k(z, k=10)                           # the most similar images only  # doctest: +SKIP
>>> run = srs.open_run("runs/digits")                    # what `semrsm run` computed  # doctest: +SKIP
>>> run.similarity("layer3", kernel="cosine", kind="semantic")  # doctest: +SKIP
>>> srs.evaluate("retrieval").table                      # what it is worth  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semrsm_dist.config.schema import RunConfig as RunConfig
    from semrsm_dist.config.schema import load_config as load_config
    from semrsm_dist.experiments.evaluating import evaluate as evaluate
    from semrsm_dist.matching.search.top_k import top_k as top_k
    from semrsm_dist.matching.similarity import match as match
    from semrsm_dist.matching.similarity import similarity_matrix as similarity_matrix
    from semrsm_dist.pipeline.driver import run as run
    from semrsm_dist.results.run import Run as Run
    from semrsm_dist.results.run import open_run as open_run

_HOMES = {
    "RunConfig": "semrsm_dist.config.schema",
    "evaluate": "semrsm_dist.experiments.evaluating",
    "load_config": "semrsm_dist.config.schema",
    "match": "semrsm_dist.matching.similarity",
    "similarity_matrix": "semrsm_dist.matching.similarity",
    "top_k": "semrsm_dist.matching.search.top_k",
    "run": "semrsm_dist.pipeline.driver",
    "Run": "semrsm_dist.results.run",
    "open_run": "semrsm_dist.results.run",
}

__all__ = [
    "Run",
    "RunConfig",
    "evaluate",
    "load_config",
    "match",
    "open_run",
    "run",
    "similarity_matrix",
    "top_k",
]


def __getattr__(name: str) -> Any:
    """Load a public name at its first use, so that importing the package costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value

"""How well each query of a run retrieves, by the two similarities and by what costs nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.evaluation.entries import RowReader
from semrsm_dist.evaluation.pooling import cosine_rows
from semrsm_dist.evaluation.retrieval import (
    CHANCE,
    POOLED,
    SEMANTIC,
    SPATIAL,
    RetrievalTask,
    chance_scores,
    find_hits,
    score_hits,
)
from semrsm_dist.experiments.layer_features import LayerFeatures
from semrsm_dist.results.run import Run

Scores = NDArray[np.float64]
"""F1@1 of each query, NaN where there is none."""


def score_methods(run: Run, layer: str, kernel: str, task: RetrievalTask) -> dict[str, Scores]:
    """Return each query's F1@1 by method: both similarities, average pooling, and a random hit."""
    readers: dict[str, RowReader] = {
        SPATIAL: run.similarity_rows(layer, kernel, SPATIAL),
        POOLED: cosine_rows(*LayerFeatures(run, layer).read_pooled()),
        SEMANTIC: run.similarity_rows(layer, kernel, SEMANTIC),
    }
    scores = {method: score_rows(read, task, run.chunk_size(layer)) for method, read in readers.items()}
    return {CHANCE: chance_scores(task), **scores}


def score_rows(read: RowReader, task: RetrievalTask, rows_at_once: int) -> Scores:
    """Return each query's F1@1 (N,) by rows of similarities."""
    scores: Scores = score_hits(find_hits(read, task, 1, rows_at_once=rows_at_once).indices, task, (1,))[:, 0]
    return scores

"""The best hits of a run's queries by progressive search, from its features alone or checked against its matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.errors import ConfigError, IncompleteError
from semrsm_dist.evaluation.entries import row_slices
from semrsm_dist.evaluation.retrieval import RetrievalImages, RetrievalTask, find_hits
from semrsm_dist.experiments.layer_features import LayerFeatures
from semrsm_dist.matching.search.top_k import TopK, top_k
from semrsm_dist.results.run import Run

EFFORT = ("without_product", "sketched", "with_product", "solved")
"""Shares of the pairs that progressive search decides at each step, by bounds and by matching to the end."""


@dataclass(frozen=True, slots=True)
class ProgressiveHits:
    """What a progressive search found.

    `identical` is whether the run's matrix of cosine similarities gives the same hits; None where it is not there.
    """

    found: TopK
    identical: bool | None

    def shares(self) -> dict[str, float]:
        """Return the shares of pairs decided without a product, by a sketch, with a product, and solved."""
        return {name: getattr(self.found, name) / max(self.found.pairs, 1) for name in EFFORT}


def progressive_hits(
    run: Run, layer: str, k: int, *, near_duplicates: bool = False, workers: int | None = None
) -> ProgressiveHits:
    """Return the k most similar images of each query of a run, by progressive search at the run's tolerance.

    Labels play no part: an image without them can be a hit here. The features of the layer are held in memory; the
    run's matrices may be missing. With `near_duplicates`, images of the query's group count as hits.
    """
    matcher = run.record.fingerprint["matching.matcher"]
    if matcher != "auction":
        raise ConfigError(
            f"{run.directory.path}: matched with {matcher!r}; progressive search needs 'auction'"
        )
    features = LayerFeatures(run, layer)
    sides = ["images"] if run.is_symmetric else ["queries", "images"]
    groups = [None if near_duplicates else run.manifest(side).groups() for side in sides]
    found = top_k(
        _read(features, sides[0]),
        None if run.is_symmetric else _read(features, "images"),
        k,
        tolerance=run.record.fingerprint["matching.tolerance"],
        workers=workers,
        groups=groups[0],
        database_groups=None if run.is_symmetric else groups[1],
    )
    judged = [
        RetrievalImages([("any",)] * features.count(side), names)
        for side, names in zip(sides, groups, strict=True)
    ]
    return ProgressiveHits(found, _is_identical(run, layer, RetrievalTask(*judged), found))


def _read(features: LayerFeatures, side: str) -> NDArray[Any] | list[NDArray[Any]]:
    """Return all features (N, S, C) of a side, or a list of (S_i, C) where the numbers of tokens differ."""
    z = features.store(side).read(slice(0, features.count(side)))
    counts = features.token_counts(side)
    if (counts == z.shape[1]).all():
        return z
    return [image[:count] for image, count in zip(z, counts, strict=True)]


def _is_identical(run: Run, layer: str, task: RetrievalTask, found: TopK) -> bool | None:
    """Return whether the run's matrix gives the same hits with the same similarities, up to its rounding."""
    try:
        read_rows = run.similarity_rows(layer, "cosine")
        n_rows = run.chunk_size(layer)
    except IncompleteError:
        return None
    n_queries, k = found.indices.shape
    hits = find_hits(read_rows, task, k, rows_at_once=n_rows).indices
    rounding = run.rounding(layer)
    if not rounding and not np.array_equal(hits, found.indices):
        return False
    for rows in row_slices(n_queries, n_rows):
        values = read_rows(rows)
        for indices in (hits[rows], found.indices[rows]):  # in float32, near ties may have changed places
            expected = np.where(
                indices < 0, np.nan, np.take_along_axis(values, np.maximum(indices, 0), axis=1)
            )
            if not np.allclose(expected, found.similarities[rows], rtol=0, atol=rounding, equal_nan=True):
                return False
    return True

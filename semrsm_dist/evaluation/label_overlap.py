"""Whether two images show the same things: the overlap of their labels."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.evaluation.entries import RowReader


def label_f1(query: frozenset[str], hit: frozenset[str]) -> float:
    """Return the overlap of two label sets, 2 |Q n R| / (|Q| + |R|).

    This is our reading of the retrieval score in Wald et al. (2024), section 4.2.
    """
    return 2.0 * len(query & hit) / (len(query) + len(hit))


def overlap_rows(queries: Sequence[Collection[str]], database: Sequence[Collection[str]]) -> RowReader:
    """Return a row reader of the label F1 of all pairs of (N) queries and (M) database images; NaN without labels."""
    places = {
        label: place
        for place, label in enumerate(sorted({x for item in (*queries, *database) for x in item}))
    }

    def indicate(labels: Sequence[Collection[str]]) -> NDArray[np.float32]:
        indicators = np.zeros((len(labels), len(places)), dtype=np.float32)
        for row, item in zip(indicators, labels, strict=True):
            row[[places[label] for label in item]] = 1.0
        return indicators

    left, right = indicate(queries), indicate(database)

    def read(rows: slice) -> NDArray[np.float64]:
        sizes = left[rows].sum(axis=1)[:, None] + right.sum(axis=1)
        labelled = np.logical_and.outer(left[rows].any(axis=1), right.any(axis=1))
        overlaps = np.full(sizes.shape, np.nan)
        np.divide(2.0 * (left[rows] @ right.T), sizes, out=overlaps, where=labelled)
        return overlaps

    return read

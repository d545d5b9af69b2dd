"""Retrieval on multi-label images: how far the most similar images show the same things."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.errors import ConfigError

Labels = Sequence[tuple[str, ...]]
RowReader = Callable[[slice], NDArray[np.float64]]

ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class RetrievalScore:
    """Mean F1 of the best k hits.

    Attributes
    ----------
    k
        Hits looked at per query.
    f1
        Mean over queries and hits; NaN if no query could be judged.
    n_queries
        Queries judged.
    n_left_out
        Queries without labels or without any candidate of defined similarity.
    """

    k: int
    f1: float
    n_queries: int
    n_left_out: int


def label_f1(query: frozenset[str], hit: frozenset[str]) -> float:
    """Return the overlap of two label sets, 2 |Q n R| / (|Q| + |R|).

    This is our reading of the retrieval score in Wald et al. (2024), section 4.2.
    """
    return 2.0 * len(query & hit) / (len(query) + len(hit))


def retrieval_f1(
    read_rows: RowReader,
    labels: Labels,
    *,
    k: int = 1,
    database_labels: Labels | None = None,
    groups: Sequence[str | None] | None = None,
    database_groups: Sequence[str | None] | None = None,
) -> RetrievalScore:
    """Return the mean F1@k of retrieval by a similarity matrix.

    For each query the k most similar other images are its hits (ties by index); the query's score is the mean
    label F1 of the hits. Images without labels are neither queries nor hits. Undefined (NaN) similarities are never
    hits. Images of the query's group are not its hits either: they are near-duplicates.

    Parameters
    ----------
    read_rows
        Returns rows of the (N, M) similarity matrix for a slice of queries; only a few are asked for at once.
    labels
        Labels of the N queries.
    k
        Hits per query.
    database_labels
        Labels of the M candidates; None if queries and candidates are the same images, which are then never
        their own hits.
    groups, database_groups
        Groups of the queries and candidates; None where there are none.

    Returns
    -------
    RetrievalScore
        Queries with fewer than k candidates are judged on those that they have.

    Raises
    ------
    ConfigError
        If k is below 1.
    """
    if k < 1:
        raise ConfigError(f"k of F1@k is {k}, but at least one hit must be looked at; give 1 or more")
    same = database_labels is None
    candidates = [frozenset(item) for item in (labels if database_labels is None else database_labels)]
    queries = [frozenset(item) for item in labels]
    labelled = np.array([bool(item) for item in candidates])
    column_groups = _codes(groups if same else database_groups, len(candidates))
    row_groups = _codes(groups, len(queries))
    codes = _shared_codes(row_groups, column_groups)
    scores = []
    for start in range(0, len(queries), ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, len(queries)))
        block = np.where(labelled[None, :], read_rows(rows), np.nan)
        for offset, row in enumerate(block):
            index = start + offset
            if not queries[index]:
                continue
            if same:
                row[index] = np.nan
            if codes is not None and codes[0][index] >= 0:
                row[codes[1] == codes[0][index]] = np.nan
            hits = _best(row, k)
            if hits.size:
                scores.append(np.mean([label_f1(queries[index], candidates[hit]) for hit in hits]))
    mean = float(np.mean(scores)) if scores else float("nan")
    return RetrievalScore(k=k, f1=mean, n_queries=len(scores), n_left_out=len(queries) - len(scores))


def cosine_rows(queries: NDArray[np.floating[Any]], database: NDArray[np.floating[Any]]) -> RowReader:
    """Return a row reader of the cosine similarity between (N, C) and (M, C) vectors, such as pooled features."""

    def unit(vectors: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        wide = vectors.astype(np.float64)
        norms = np.linalg.norm(wide, axis=1, keepdims=True)
        result = np.full_like(wide, np.nan)
        np.divide(wide, norms, out=result, where=norms > 0)
        return result

    left, right = unit(queries), unit(database)

    def read(rows: slice) -> NDArray[np.float64]:
        block: NDArray[np.float64] = left[rows] @ right.T
        return block

    return read


def _best(similarities: NDArray[np.float64], k: int) -> NDArray[np.intp]:
    order = np.argsort(-similarities, kind="stable")
    defined = int(np.count_nonzero(~np.isnan(similarities)))
    return order[: min(k, defined)]


def _codes(groups: Sequence[str | None] | None, length: int) -> list[str | None]:
    return list(groups) if groups is not None else [None] * length


def _shared_codes(
    rows: list[str | None], columns: list[str | None]
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    if not any(rows) or not any(columns):
        return None
    known = {name: code for code, name in enumerate(sorted({name for name in (*rows, *columns) if name}))}
    return (
        np.array([known[name] if name else -1 for name in rows]),
        np.array([known[name] if name else -2 for name in columns]),
    )

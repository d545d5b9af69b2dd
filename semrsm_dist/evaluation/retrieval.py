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
    contents: Sequence[str | None] | None = None,
    database_contents: Sequence[str | None] | None = None,
    rows_at_once: int = ROWS_AT_ONCE,
) -> RetrievalScore:
    """Return the mean F1@k of retrieval by a similarity matrix; `retrieval_scores` for one k."""
    (score,) = retrieval_scores(
        read_rows,
        labels,
        ks=(k,),
        database_labels=database_labels,
        groups=groups,
        database_groups=database_groups,
        contents=contents,
        database_contents=database_contents,
        rows_at_once=rows_at_once,
    )
    return score


def retrieval_scores(
    read_rows: RowReader,
    labels: Labels,
    *,
    ks: Sequence[int],
    database_labels: Labels | None = None,
    groups: Sequence[str | None] | None = None,
    database_groups: Sequence[str | None] | None = None,
    contents: Sequence[str | None] | None = None,
    database_contents: Sequence[str | None] | None = None,
    rows_at_once: int = ROWS_AT_ONCE,
) -> list[RetrievalScore]:
    """Return the mean F1@k of retrieval by a similarity matrix for several k, reading the matrix once.

    For each query the k most similar other images are its hits (ties by index); the query's score is the mean
    label F1 of the hits. Images without labels are neither queries nor hits. Undefined (NaN) similarities are never
    hits. Images of the query's group are not its hits either: they are near-duplicates. Nor is, in a database of its
    own, the query itself, which is known there by its content and not by its id.

    Parameters
    ----------
    read_rows
        Returns rows of the (N, M) similarity matrix for a slice of queries; only a few are asked for at once.
    labels
        Labels of the N queries.
    ks
        Hits per query, one score each.
    database_labels
        Labels of the M candidates; None if queries and candidates are the same images, which are then never
        their own hits.
    groups, database_groups
        Groups of the queries and candidates; None where there are none.
    contents, database_contents
        Hashes of what the queries and candidates show: candidates with the query's hash are not its hits. None
        where a hash is not known, and such an image is compared with nothing.
    rows_at_once
        How many rows to ask for at once; that of a stored matrix's chunks reads every chunk once.

    Returns
    -------
    list of RetrievalScore
        In the order of `ks`. Queries with fewer than k candidates are judged on those that they have.

    Raises
    ------
    ConfigError
        If a k is below 1.
    """
    for k in ks:
        if k < 1:
            raise ConfigError(f"k of F1@k is {k}, but at least one hit must be looked at; give 1 or more")
    same = database_labels is None
    candidates = [frozenset(item) for item in (labels if database_labels is None else database_labels)]
    queries = [frozenset(item) for item in labels]
    unlabelled = np.array([not item for item in candidates])
    alike = [
        codes
        for codes in (
            _shared_codes(groups, groups if same else database_groups),
            _shared_codes(contents, contents if same else database_contents),
        )
        if codes is not None
    ]
    scores: list[list[float]] = []
    for start in range(0, len(queries), rows_at_once):
        rows = slice(start, min(start + rows_at_once, len(queries)))
        block = np.negative(read_rows(rows))  # a copy, in which the most similar come first
        block[:, unlabelled] = np.nan
        for index, row in enumerate(block, start):
            if not queries[index]:
                continue
            if same:
                row[index] = np.nan
            for row_codes, column_codes in alike:
                if row_codes[index] >= 0:
                    row[column_codes == row_codes[index]] = np.nan
            overlaps = [label_f1(queries[index], candidates[hit]) for hit in _smallest(row, max(ks))]
            if overlaps:
                scores.append([sum(overlaps[:k]) / len(overlaps[:k]) for k in ks])
    means = np.mean(scores, axis=0) if scores else np.full(len(ks), np.nan)
    return [
        RetrievalScore(k=k, f1=float(mean), n_queries=len(scores), n_left_out=len(queries) - len(scores))
        for k, mean in zip(ks, means, strict=True)
    ]


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


def _smallest(values: NDArray[np.float64], k: int) -> NDArray[np.intp]:
    """Return the indices of the k smallest numbers in their order, equal ones by index, NaN left out.

    It is the beginning of a stable sort, without the sort of everything.
    """
    k = min(k, values.size)
    if k == 0:
        return np.empty(0, dtype=np.intp)
    last = np.partition(values, k - 1)[k - 1]  # NaN comes behind all numbers
    if np.isnan(last):
        chosen = np.flatnonzero(~np.isnan(values))
    else:
        smaller = np.flatnonzero(values < last)
        chosen = np.concatenate([smaller, np.flatnonzero(values == last)[: k - smaller.size]])
    return chosen[np.argsort(values[chosen], kind="stable")]


def _shared_codes(
    rows: Sequence[str | None] | None, columns: Sequence[str | None] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Return numbers that are equal where the names of a row and a column are; None if there is nothing to compare."""
    if rows is None or columns is None or not any(rows) or not any(columns):
        return None
    known = {name: code for code, name in enumerate(sorted({name for name in (*rows, *columns) if name}))}
    return (
        np.array([known[name] if name else -1 for name in rows]),
        np.array([known[name] if name else -2 for name in columns]),
    )

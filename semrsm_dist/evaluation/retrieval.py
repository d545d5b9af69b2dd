"""Retrieval on multi-label images: how well the most similar images fit a query.

It has three steps, so that scores can be examined query by query: which images may be hits of which query
(`RetrievalTask`), the best hits of each query (`find_hits`), and how well they fit (`score_hits`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.errors import ConfigError
from semrsm_dist.evaluation.entries import RowReader, row_slices
from semrsm_dist.evaluation.largest import NONE, Largest

Labels = Sequence[tuple[str, ...]]
Names = Sequence[str | None]

SEMANTIC, SPATIAL, POOLED, CHANCE = "semantic", "spatio-semantic", "average pooling", "chance"
"""Ways to find the most similar images; the last draws them at random."""

ROWS_AT_ONCE = 512
NO_HIT = NONE


Weights = Mapping[str, float]
"""The labels of an image with their weights, which are positive: 1, their number of objects, or their area."""


def label_f1(query: Weights, hit: Weights) -> float:
    """Return the overlap of two sets of labels, 2 sum_l min(q_l, r_l) / (sum_l q_l + sum_l r_l), l being any label.

    With weights 1, this is 2 |Q n R| / (|Q| + |R|): our reading of the retrieval score in Wald et al. (2024), section
    4.2. With other weights, it is the quantitative form of the same (Dice's) coefficient, the complement of the
    dissimilarity of J. R. Bray and J. T. Curtis, An ordination of the upland forest communities of southern Wisconsin,
    Ecological Monographs 27 (1957).
    """
    shared = sum(min(weight, hit[label]) for label, weight in query.items() if label in hit)
    return 2.0 * shared / (sum(query.values()) + sum(hit.values()))


def overlap_rows(queries: Sequence[Weights], database: Sequence[Weights]) -> RowReader:
    """Return a row reader of the `label_f1` of all pairs of (N) queries and (M) database images; NaN without labels."""
    places = {
        label: place
        for place, label in enumerate(sorted({x for item in (*queries, *database) for x in item}))
    }

    def tabulate(images: Sequence[Weights]) -> NDArray[np.float64]:
        weights = np.zeros((len(images), len(places)))
        for row, item in zip(weights, images, strict=True):
            row[[places[label] for label in item]] = list(item.values())
        return weights

    left, right = tabulate(queries), tabulate(database)
    is_plain = all(np.isin(side, (0.0, 1.0)).all() for side in (left, right))

    def read(rows: slice) -> NDArray[np.float64]:
        sizes = left[rows].sum(axis=1)[:, None] + right.sum(axis=1)
        labelled = np.logical_and.outer(left[rows].any(axis=1), right.any(axis=1))
        # min(q, r) = (q + r - |q - r|) / 2
        doubled = 2.0 * (left[rows] @ right.T) if is_plain else sizes - _distances(left[rows], right)
        overlaps = np.full(sizes.shape, np.nan)
        np.divide(doubled, sizes, out=overlaps, where=labelled)
        return overlaps

    return read


def _distances(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums of absolute differences between rows (N, L) and (M, L), (N, M)."""
    from scipy.spatial.distance import cdist  # noqa: PLC0415 - slow to load, for weights alone

    distances: NDArray[np.float64] = cdist(left, right, "cityblock")
    return distances


@dataclass(frozen=True, slots=True)
class RetrievalImages:
    """What is known of the images of one side, in their order: labels, groups of near-duplicates, hashes of contents.

    An image has no label, is in no group (None), or has unknown content (None) where that is not known. `weights` are
    those of its labels, all 1 if they are None; a label of weight 0 does not count.
    """

    labels: Labels
    groups: Names | None = None
    contents: Names | None = None
    weights: Sequence[tuple[float, ...]] | None = None

    def weighted_labels(self) -> list[Weights]:
        """Return the labels that count, with their weights."""
        if self.weights is None:
            return [dict.fromkeys(labels, 1.0) for labels in self.labels]
        found: list[Weights] = []
        for labels, weights in zip(self.labels, self.weights, strict=True):
            sums = Counter[str]()
            for label, weight in zip(labels, weights, strict=True):
                sums[label] += weight  # type: ignore[assignment]  # numbers of objects or areas
            found.append({label: float(weight) for label, weight in sums.items() if weight > 0})
        return found


class RetrievalTask:
    """Which images can be hits of which queries, and how well each would fit.

    Images without labels are neither queries nor hits. Images of the query's group are not its hits: they are
    near-duplicates. Nor are the query itself and its exact copies, which have the same content.

    Parameters
    ----------
    queries
        The N queries.
    database
        The M candidates; None if they are the queries themselves.
    """

    def __init__(self, queries: RetrievalImages, database: RetrievalImages | None = None) -> None:
        other = queries if database is None else database
        self._same = database is None
        self._queries = queries.weighted_labels()
        self._candidates = other.weighted_labels()
        self._unlabelled = np.array([not labels for labels in self._candidates])
        groups = _shared_codes(queries.groups, other.groups)
        contents = _shared_codes(queries.contents, other.contents)
        self._alike = [codes for codes in (groups, contents) if codes is not None]
        self._has_copies = contents is not None and _has_copies(*contents, same=self._same)

    @property
    def n_queries(self) -> int:
        """N, with the queries that cannot be judged."""
        return len(self._queries)

    def most_hits(self, k: int) -> int:
        """Return k, or how many images the database has if these are fewer: nobody has more hits."""
        return min(k, len(self._candidates))

    def rule_out(self, block: NDArray[np.float64], first: int, first_column: int = 0) -> None:
        """Set to NaN whatever is no hit, in (B, M) similarities of queries `first` and following to candidates."""
        columns = slice(first_column, first_column + block.shape[1])
        block[:, self._unlabelled[columns]] = np.nan
        alike = [(row_codes, column_codes[columns]) for row_codes, column_codes in self._alike]
        for query, row in enumerate(block, first):
            if not self._queries[query]:
                row[:] = np.nan
            if self._same and 0 <= query - first_column < len(row):
                row[query - first_column] = np.nan
            for row_codes, column_codes in alike:
                if row_codes[query] >= 0:
                    row[column_codes == row_codes[query]] = np.nan

    def judge(self, query: int, hits: Sequence[int] | NDArray[np.intp]) -> list[float]:
        """Return the label F1 of each of a query's hits; none for a query without labels."""
        if not self._queries[query]:
            return []
        return [label_f1(self._queries[query], self._candidates[hit]) for hit in hits]

    def overlap_rows(self) -> RowReader:
        """Return a row reader of the label F1 of all queries and candidates; NaN where either has no labels."""
        return overlap_rows(self._queries, self._candidates)

    def depends_on_groups_alone(self) -> bool:
        """Return whether groups alone decide what hits are allowed: all candidates have labels, none copies a query."""
        return not self._unlabelled.any() and not self._has_copies

    def count_hopeless(self) -> int:
        """Return how many labelled queries share no label with any other candidate: their F1 is always 0."""
        bearers = Counter(label for labels in self._candidates for label in labels)
        own = 1 if self._same else 0
        return sum(
            bool(labels) and all(bearers[label] <= own for label in labels) for labels in self._queries
        )

    def has_one_label_set(self) -> bool:
        """Return whether all labelled images have the same labels, so that every hit is right."""
        return (
            len({frozenset(labels.items()) for labels in (*self._queries, *self._candidates) if labels}) == 1
        )


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """The best hits of N queries, with ties and undefined similarities."""

    indices: NDArray[np.intp]
    """(N, k) columns of the matrix, the most similar first, ties by index; `NO_HIT` where there are fewer than k."""
    tied: NDArray[np.bool_]
    """(N, k) whether the first hit, the first two, ... up to k leave out a candidate that is as similar as the last of
    them."""
    n_candidates: NDArray[np.intp]
    """(N,) candidates of each query."""
    n_undefined: NDArray[np.intp]
    """(N,) those of them whose similarity is NaN, which are never hits."""


@dataclass(frozen=True, slots=True)
class RetrievalScore:
    """Mean F1 of the best k hits over the queries judged; NaN if none could be.

    `n_left_out` counts queries without labels or without any candidate of defined similarity.
    """

    k: int
    f1: float
    n_queries: int
    n_left_out: int


class HitSearch:
    """The best hits of a few consecutive queries, whose similarities come in blocks of columns, from left to right.

    Raises ConfigError if k is below 1.
    """

    def __init__(self, task: RetrievalTask, k: int, queries: slice) -> None:
        _require_hits(k)
        self._task, self._queries = task, queries
        self._best = Largest(queries.stop - queries.start, k + 1)
        self._n_candidates, self._n_undefined = np.zeros((2, queries.stop - queries.start), dtype=np.intp)
        self._column = 0

    def add(self, similarities: NDArray[np.float64]) -> None:
        """Look for hits among the next (M) candidates, given the (B, M) similarities of the queries to them."""
        undefined = np.isnan(similarities)
        block = np.where(undefined, 0.0, similarities)
        self._task.rule_out(block, self._queries.start, self._column)
        allowed = ~np.isnan(block)
        self._n_candidates += np.count_nonzero(allowed, axis=1)
        self._n_undefined += np.count_nonzero(allowed & undefined, axis=1)
        block[undefined] = np.nan
        self._best.add(block)
        self._column += block.shape[1]

    def hits(self) -> Hits:
        """Return the best hits among the candidates so far."""
        values, indices = self._best.values, self._best.indices
        tied = values[:, 1:] == values[:, :-1]
        return Hits(indices[:, :-1], tied, self._n_candidates, self._n_undefined)


def find_hits(read_rows: RowReader, task: RetrievalTask, k: int, *, rows_at_once: int = ROWS_AT_ONCE) -> Hits:
    """Return the k most similar candidates of each query.

    Raises ConfigError if k is below 1.

    Parameters
    ----------
    read_rows
        Returns rows of the (N, M) similarity matrix for a slice of queries, only a few at a time. NaN
        similarities are never hits.
    task
        Which images may be hits of which query.
    k
        Hits per query. Memory is taken for as many: see `RetrievalTask.most_hits`.
    rows_at_once
        How many rows to read at once; with a stored matrix's chunk size, each chunk is read once.
    """
    _require_hits(k)
    n = task.n_queries
    found = Hits(
        np.full((n, k), NO_HIT, dtype=np.intp),
        np.zeros((n, k), dtype=bool),
        np.zeros(n, dtype=np.intp),
        np.zeros(n, dtype=np.intp),
    )
    for rows in row_slices(n, rows_at_once):
        search = HitSearch(task, k, rows)
        search.add(read_rows(rows))
        hits = search.hits()
        for name in ("indices", "tied", "n_candidates", "n_undefined"):
            getattr(found, name)[rows] = getattr(hits, name)
    return found


def _require_hits(k: int) -> None:
    if k < 1:
        raise ConfigError(f"k of F1@k is {k}, but at least one hit is needed; give 1 or more")


def score_hits(
    hits: NDArray[np.intp], task: RetrievalTask, ks: Sequence[int], *, first: int = 0
) -> NDArray[np.float64]:
    """Return each query's mean label F1 over its best k hits, for several k, (N, len(ks)).

    NaN for queries without hits; those with fewer than k are judged on what they have. Raises ConfigError if a k is
    below 1, or above K though there are more images.

    Parameters
    ----------
    hits
        (N, K) `Hits.indices`, of at least the largest of `ks` or of all images.
    first
        The query that the first row belongs to.
    """
    for k in ks:
        if not 1 <= task.most_hits(k) <= hits.shape[1]:
            raise ConfigError(f"F1@{k}: k must be 1 to {hits.shape[1]}, the number of hits per query")
    scores = np.full((len(hits), len(ks)), np.nan)
    for place, row in enumerate(hits):
        overlaps = task.judge(first + place, row[row != NO_HIT])
        if overlaps:
            scores[place] = [sum(overlaps[:k]) / len(overlaps[:k]) for k in ks]
    return scores


def chance_scores(task: RetrievalTask, *, rows_at_once: int = ROWS_AT_ONCE) -> NDArray[np.float64]:
    """Return the expected F1 (N,) of a random hit of each query; NaN for queries without candidates."""
    read_rows = task.overlap_rows()
    expected = np.full(task.n_queries, np.nan)
    for rows in row_slices(task.n_queries, rows_at_once):
        block = read_rows(rows)
        task.rule_out(block, rows.start)
        counts = np.count_nonzero(~np.isnan(block), axis=1)
        np.divide(np.nansum(block, axis=1), counts, out=expected[rows], where=counts > 0)
    return expected


def mean_scores(scores: NDArray[np.float64], ks: Sequence[int]) -> list[RetrievalScore]:
    """Return the means of the scores (N, len(ks)) that `score_hits` gives to queries."""
    judged = scores[~np.isnan(scores[:, 0])]
    means = judged.mean(axis=0) if len(judged) else np.full(len(ks), np.nan)
    return [
        RetrievalScore(k=k, f1=float(mean), n_queries=len(judged), n_left_out=len(scores) - len(judged))
        for k, mean in zip(ks, means, strict=True)
    ]


def _has_copies(rows: NDArray[np.int64], columns: NDArray[np.int64], *, same: bool) -> bool:
    """Return whether a candidate other than the query itself has a query's content, given as codes."""
    if not same:
        return bool(np.intersect1d(rows, columns).size)
    known = rows[rows >= 0]
    return len(np.unique(known)) < len(known)


def _shared_codes(
    rows: Names | None, columns: Names | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Encode names as integers shared by rows and columns; None if there is nothing to compare."""
    if rows is None or columns is None or not any(rows) or not any(columns):
        return None
    known = {name: code for code, name in enumerate(sorted({name for name in (*rows, *columns) if name}))}
    return (
        np.array([known[name] if name else -1 for name in rows]),
        np.array([known[name] if name else -2 for name in columns]),
    )

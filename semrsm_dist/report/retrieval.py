"""What is most similar to each query, in the ways that the run compares: matched, position by position, and pooled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.data.manifest import Manifest
from semrsm_dist.errors import StorageError
from semrsm_dist.evaluation.entries import RowReader
from semrsm_dist.evaluation.pooling import cosine_rows
from semrsm_dist.evaluation.retrieval import (
    NO_HIT,
    POOLED,
    SEMANTIC,
    SPATIAL,
    RetrievalImages,
    RetrievalTask,
    find_hits,
    score_hits,
)
from semrsm_dist.progress import Reporter
from semrsm_dist.report.maps import choose_images, read_pairs
from semrsm_dist.report.matches import Pair
from semrsm_dist.report.page_data import Array, Queries, Ranking
from semrsm_dist.results.neighbours import LayerNeighbours, Neighbours
from semrsm_dist.results.run import Run
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.neighbours import NOBODY

SHOWN = 8
"""Hits of a query."""

QUERY_BYTES = 4 * 2**20
"""Of the queries of all layers, before base64."""

HIT_BYTES = 18
"""Of a hit."""

ROW_BYTES = 2**27
"""Of the matrix's rows that are read at once."""

Table = dict[str, NDArray[np.float64]]


class RetrievalSet:
    """The images of a run as queries and candidates, by their labels, groups and contents.

    Images without labels are compared too if no image has any: there is no right or wrong then.
    """

    def __init__(self, run: Run, manifests: Mapping[str, Manifest]) -> None:
        self._candidates = manifests["images"]
        self._queries = manifests[run.record.row_side]
        self.is_judged = any(self._candidates.labels()) and any(self._queries.labels())
        layout = run.layout(run.requested_layers[0])
        self.rows = choose_images(layout.n_rows, layout)
        everything = np.arange(layout.n_columns)
        self.task = RetrievalTask(
            self._side(self._queries, self.rows, "images" if run.is_symmetric else "queries"),
            self._side(self._candidates, everything, "images"),
        )

    def _side(self, manifest: Manifest, places: NDArray[np.intp], side: str) -> RetrievalImages:
        labels, groups, contents = manifest.labels(), manifest.groups(), manifest.contents()
        return RetrievalImages(
            [labels[place] if self.is_judged else ("any",) for place in places],
            [groups[place] for place in places],
            # An image whose content is unknown is at least itself.
            [contents[place] or f"{side} {place}" for place in places],
        )


def find_queries(
    run: Run, layer: str, images: RetrievalSet, n_layers: int, reporter: Reporter
) -> tuple[Queries, list[Pair]]:
    """Return queries of a finished layer with their hits, and their pairs, those of the largest changes first.

    Raises IncompleteError if the layer has not been finished.
    """
    most = max(1, QUERY_BYTES // n_layers // (3 * SHOWN * HIT_BYTES))
    ks = [k for k in run.record.config["retrieval"]["k"] if k <= SHOWN] or [1]
    if run.record.neighbours is not None:
        return _from_neighbours(run.layer_neighbours(layer), images, ks, most)
    matrices = run.matrices(layer)
    spatial, semantic = (run.similarity_rows(layer, "cosine", kind) for kind in (SPATIAL, SEMANTIC))
    readers: dict[str, RowReader] = {
        SPATIAL: lambda rows: spatial(images.rows[rows]),
        SEMANTIC: lambda rows: semantic(images.rows[rows]),
    }
    try:
        pooled, queries = (
            FeatureStore(run.directory.features, side, layer).read_pooled()
            for side in ("images", run.record.row_side)
        )
        readers[POOLED] = cosine_rows(queries[images.rows], pooled)
        note = ""
    except FileNotFoundError:
        note = "The features are no longer there, so average pooling is not shown."
    except StorageError:
        note = "The features are damaged, so average pooling is not shown."
    at_once = max(1, ROW_BYTES // (32 * matrices.layout.n_columns))
    with reporter.stage(f"queries of {layer}", len(readers), "rankings") as stage:
        hits = {}
        for method, read in readers.items():
            hits[method] = find_hits(read, images.task, SHOWN, rows_at_once=at_once).indices
            stage.advance(1)
    order = _by_change(hits[SEMANTIC], hits[SPATIAL], images, ks[0])
    if order.size > most:
        note = (
            f"{note} {most:,} of {order.size:,} queries: those that gain and lose most by matching.".strip()
        )
    shown = np.sort(_ends(order, most))
    rankings = []
    for method, found in hits.items():
        queries_of_hits, ranks = np.nonzero(found[shown] != NO_HIT)
        there = queries_of_hits, ranks
        columns = found[shown][there]
        values = read_pairs(matrices, images.rows[shown[queries_of_hits]], columns)
        table: Table = {name: np.full((shown.size, SHOWN), np.nan) for name in vars(values)}
        for name, numbers in vars(values).items():
            table[name][there] = numbers
        own = {SEMANTIC: "semantic", SPATIAL: "spatial"}.get(method)
        table["score"] = table[own] if own else _pooled_scores(readers[method], shown, found[shown])
        rankings.append(_ranking(method, found[shown], table, matrices.layout.n_columns))
    pairs = list(_pairs(_ends(order, order.size), hits, images.rows))
    return _queries(run_rows=images.rows[shown], rankings=rankings, images=images, ks=ks, note=note), pairs


def _pooled_scores(read: RowReader, queries: NDArray[np.intp], hits: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return what hits are ranked by, (Q, K), read query by query; NaN where there are none."""
    rows = [
        read(slice(query, query + 1))[0][found] for query, found in zip(queries.tolist(), hits, strict=True)
    ]
    return np.where(hits != NO_HIT, np.array(rows), np.nan)


def _queries(
    *, run_rows: NDArray[np.intp], rankings: list[Ranking], images: RetrievalSet, ks: list[int], note: str
) -> Queries:
    return Queries(
        rows=Array.indices(run_rows, int(run_rows.max(initial=0)) + 1),
        rankings=rankings,
        judged=images.is_judged,
        ks=ks,
        note=note,
    )


def _from_neighbours(
    neighbours: LayerNeighbours, images: RetrievalSet, ks: list[int], most: int
) -> tuple[Queries, list[Pair]]:
    """Return queries of a run that keeps neighbours: these are the hits, and there are no others."""
    places = np.unique(np.linspace(0, images.rows.size - 1, min(most, images.rows.size)).round().astype(int))
    rows = images.rows[places]
    parts = [neighbours.read(slice(row, row + 1)) for row in rows.tolist()]
    found = Neighbours(*(np.concatenate(columns)[:, :SHOWN] for columns in zip(*parts, strict=True)))
    indices = np.where(found.indices == NOBODY, NO_HIT, found.indices)
    table = {
        "score": found.similarity,
        "semantic": found.similarity,
        "spatial": found.identity,
        "gap": found.gap,
    }
    note = (
        ""
        if rows.size == neighbours.n_rows
        else f"{rows.size:,} of {neighbours.n_rows:,} images, evenly spaced."
    )
    ranking = _ranking(SEMANTIC, indices, table, neighbours.squared_norms[1].size)
    pairs = [
        (int(row), int(hit)) for row, hits in zip(rows, indices, strict=True) for hit in hits if hit >= 0
    ]
    return _queries(run_rows=rows, rankings=[ranking], images=images, ks=ks, note=note), pairs


def _ranking(method: str, indices: NDArray[np.intp], table: Table, n_columns: int) -> Ranking:
    return Ranking(
        method=method,
        indices=Array.indices(indices, n_columns),
        score=Array.floats(table["score"]),
        semantic=Array.floats(table["semantic"]),
        spatial=Array.floats(table["spatial"]),
        gap=Array.coarse(table["gap"], upward=True),
    )


def _by_change(
    semantic: NDArray[np.intp], spatial: NDArray[np.intp], images: RetrievalSet, k: int
) -> NDArray[np.intp]:
    """Return the queries from the largest gain in F1@k to the largest loss; without labels, by how many hits change."""
    if images.is_judged:
        gain = (score_hits(semantic, images.task, [k]) - score_hits(spatial, images.task, [k]))[:, 0]
        gain = np.nan_to_num(gain, nan=0.0)
    else:
        gain = np.array(
            [len(set(a.tolist()) - set(b.tolist())) for a, b in zip(semantic, spatial, strict=True)], float
        )
    return np.argsort(-gain, kind="stable")


def _ends(order: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """Return up to `most` of an order, from both ends in turn."""
    turns = np.empty_like(order)
    half = -(-order.size // 2)
    turns[0::2], turns[1::2] = order[:half], order[half:][::-1]
    return turns[:most]


def _pairs(
    order: NDArray[np.intp], hits: Mapping[str, NDArray[np.intp]], rows: NDArray[np.intp]
) -> Iterator[Pair]:
    """Yield the pairs of queries with their first hits, then with their second, and so on."""
    for rank in range(SHOWN):
        for query in order.tolist():
            for method in (SEMANTIC, SPATIAL):
                hit = int(hits[method][query, rank])
                if hit != NO_HIT:
                    yield int(rows[query]), hit

"""The workers of evaluation: they read rows of the matrices, block by block, for certificates and retrieval scores."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.engine.protocol import Receipt
from semrsm_dist.evaluation.retrieval import (
    POOLED,
    SEMANTIC,
    SPATIAL,
    HitSearch,
    RetrievalTask,
    score_hits,
)
from semrsm_dist.evaluation.tokens import unit_vectors
from semrsm_dist.pipeline.faults import attempt_each
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.results.matrices import LayerMatrices
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.paths import RunPath
from semrsm_dist.store.record import Side
from semrsm_dist.store.tiles import KINDS, QUANTITIES, TileStore

METHODS = (SPATIAL, POOLED, SEMANTIC)


class Rows(NamedTuple):
    """Rows of the matrices of a layer."""

    layer: str
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.layer}/{self.start}:{self.stop}"


@dataclass(frozen=True)
class Gaps:
    """Certified gaps: their sum, their number, and the largest (minus infinity if there is none)."""

    total: float = 0.0
    count: int = 0
    largest: float = -math.inf

    @classmethod
    def of(cls, gaps: NDArray[np.floating[Any]]) -> Gaps:
        """Return what is kept of some gaps, NaN left out."""
        known = gaps[~np.isnan(gaps)]
        return cls(float(known.sum()), known.size, float(known.max())) if known.size else cls()

    def __add__(self, other: Gaps) -> Gaps:
        """Return what is kept of both."""
        return Gaps(self.total + other.total, self.count + other.count, max(self.largest, other.largest))


class Evaluated(NamedTuple):
    """What some rows give: gaps on the cosine scale, each pair once, and scores (rows, ks) of queries by method."""

    gaps: Gaps
    scores: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Scoring:
    """How retrieval is scored."""

    task: RetrievalTask
    """Which images may be hits of which query."""
    ks: tuple[int, ...]
    """Hits per query."""
    kernel: str
    """Of the similarities."""
    widths: Mapping[tuple[str, str], float | None]
    """Of the kernel, by layer and kind; None where it has none."""


class _Held(threading.local):
    """What a thread of a worker keeps from one unit to the next: the pooled vectors of a layer."""

    def __init__(self) -> None:
        self.pooled: dict[str, NDArray[np.float32]] = {}

    def __reduce__(self) -> tuple[type[_Held], tuple[()]]:
        return _Held, ()  # not sent along with a worker


@dataclass(frozen=True)
class EvaluationWorker:
    """Evaluates rows of finished matrices; memory depends on the size of a block, not on that of the matrix."""

    run: RunPath
    row_side: Side
    """`images` in a symmetric run, `queries` in a rectangular one."""
    layouts: Mapping[str, Layout]
    """The layout of each layer."""
    scoring: Scoring | None
    """How retrieval is scored; None if it is not."""
    room: int
    """Memory for pooled vectors in bytes: of a layer that has more, those of each block are read when it is."""
    _held: _Held = field(default_factory=_Held, init=False, repr=False, compare=False)

    def __call__(self, units: tuple[Hashable, ...]) -> Iterator[Receipt]:
        """Evaluate rows; the value of a receipt is what they give, `Evaluated`."""
        return attempt_each(cast("tuple[Rows, ...]", units), self._evaluate, self.run)

    def _evaluate(self, unit: Rows) -> Receipt:
        matrices = LayerMatrices.open(
            TileStore(RunDirectory(self.run).tiles, unit.layer), self.layouts[unit.layer]
        )
        scores = None if self.scoring is None else _Scores(self, self.scoring, unit, matrices)
        rows, gaps, chunks = slice(unit.start, unit.stop), Gaps(), matrices.chunks
        for columns in map(chunks.columns, range(chunks.column_panels)):
            values = matrices.read(QUANTITIES, (rows, columns))
            gaps += _cosine_gaps(values[QUANTITIES.index("gap")], matrices, rows, columns)
            if scores is not None:
                scores.add(values, columns)
        found = Evaluated(gaps, {} if scores is None else scores.means())
        return Receipt(unit, counts={"rows": unit.stop - unit.start}, value=found)

    def pooled(self, layer: str) -> Callable[[slice], NDArray[np.float32]]:
        """Return a reader of the pooled vectors of columns."""
        store = FeatureStore(RunDirectory(self.run).features, "images", layer)
        if self.layouts[layer].n_columns * store.n_channels * 4 > self.room:
            return store.read_pooled
        if layer not in self._held.pooled:
            self._held.pooled.clear()
            self._held.pooled[layer] = store.read_pooled()
        return self._held.pooled[layer].__getitem__

    def pooled_rows(self, layer: str, rows: slice) -> NDArray[np.float32]:
        """Return the pooled vectors of rows."""
        if self.row_side == "images":
            return self.pooled(layer)(rows)
        return FeatureStore(RunDirectory(self.run).features, self.row_side, layer).read_pooled(rows)


class _Scores:
    """The search for the best hits of some rows by all methods."""

    def __init__(
        self, worker: EvaluationWorker, scoring: Scoring, unit: Rows, matrices: LayerMatrices
    ) -> None:
        self.scoring, self.rows = scoring, slice(unit.start, unit.stop)
        most = scoring.task.most_hits(max(scoring.ks))
        self.searches = {method: HitSearch(scoring.task, most, self.rows) for method in METHODS}
        self.kernels = {
            kind: matrices.kernel_matrix(kind, scoring.kernel, scoring.widths[unit.layer, kind])
            for kind in KINDS
        }
        self.left = unit_vectors(worker.pooled_rows(unit.layer, self.rows))
        self.pooled = worker.pooled(unit.layer)

    def add(self, values: NDArray[np.float64], columns: slice) -> None:
        """Go on with the next columns, given the block of each of `QUANTITIES`."""
        for kind, matrix in self.kernels.items():
            inner = values[QUANTITIES.index(KINDS[kind])]
            self.searches[kind].add(matrix.derive(inner, (self.rows, columns)))
        self.searches[POOLED].add(self.left @ unit_vectors(self.pooled(columns)).T)

    def means(self) -> dict[str, NDArray[np.float64]]:
        """Return the scores of each row by method."""
        task, ks = self.scoring.task, self.scoring.ks
        return {
            method: score_hits(search.hits().indices, task, ks, first=self.rows.start)
            for method, search in self.searches.items()
        }


def _cosine_gaps(gap: NDArray[np.float64], matrices: LayerMatrices, rows: slice, columns: slice) -> Gaps:
    """Return the gaps of a block on the cosine scale, in a symmetric matrix only of pairs above the diagonal."""
    if matrices.layout.symmetric and columns.stop <= rows.start + 1:
        return Gaps()
    norms_i, norms_j = matrices.squared_norms
    scale = np.sqrt(norms_i[rows])[:, None] * np.sqrt(norms_j[columns])
    counted = scale > 0
    if matrices.layout.symmetric:
        counted &= np.arange(columns.start, columns.stop) > np.arange(rows.start, rows.stop)[:, None]
    return Gaps.of(gap[counted] / scale[counted])

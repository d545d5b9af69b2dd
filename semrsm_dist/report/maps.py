"""Heat maps of a layer: all pairs of few images, block means of many, in every order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.evaluation.entries import row_slices
from semrsm_dist.matching.kernels import derive, derive_pairs, kernel_gap
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.plot.orders import Indices, order_by_label, order_by_similarity, profile_affinity
from semrsm_dist.progress import Reporter, Stage
from semrsm_dist.report.page_data import Array, Derived, Map, Maps, Order, Sequence, Widths
from semrsm_dist.results.matrices import DerivedMatrix, LayerMatrices
from semrsm_dist.results.run import Run
from semrsm_dist.store.tiles import QUANTITIES

SINGLE = np.finfo(np.float32)

MAP_BYTES = 6 * 2**20
"""Of the maps of all layers, before base64."""

PAIR_BYTES, CELL_BYTES = 10, 14
"""Of a pair, and of a cell of several pairs."""

MOST_IMAGES = 8192
"""Images of a side that maps are made of. Of more, whole tiles from evenly spaced places are read."""

FEWEST_CELLS, MOST_CELLS = 64, 512
"""Cells along an edge of a map, whatever the number of layers, and at most."""

BLOCK_BYTES = 2**27
"""Of the matrices' rows that are read at once."""

PROFILE = 512
"""Columns that the rows of a rectangular matrix are compared by."""

DECADES, PER_DECADE = (-12, 1), 6
"""The histogram of gaps: powers of ten, and bars for each."""

N_LARGEST = 200
"""Pairs with the largest difference between the two similarities that are looked for."""


Labels = Mapping[str, list[tuple[str, ...]]]
"""The labels of the images of each side."""

Orders = dict[Order, tuple[Indices, Indices]]
"""Rows and columns in each order."""


@dataclass(frozen=True)
class Values:
    """Similarities of some pairs, (R, C) each, with their certified gaps."""

    spatial: NDArray[np.float64]
    semantic: NDArray[np.float64]
    gap: NDArray[np.float64]

    @property
    def mirrored(self) -> Values:
        """The same of the columns with the rows."""
        return Values(self.spatial.T, self.semantic.T, self.gap.T)


@dataclass
class Seen:
    """What reading a layer's pairs found beside the maps."""

    gaps: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(1 + (DECADES[1] - DECADES[0]) * PER_DECADE, np.int64)
    )
    """Number of pairs by the size of their gap; first those with none at all."""
    largest: NDArray[np.intp] = field(default_factory=lambda: np.empty((0, 2), np.intp))
    """(D, 2) pairs with the largest differences, the largest first."""
    _differences: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def add(self, rows: Indices, columns: Indices, values: Values, *, symmetric: bool) -> None:
        """Count the pairs of a block; in a symmetric matrix, each pair of different images once."""
        counted = np.isfinite(values.gap)
        if symmetric:
            counted &= rows[:, None] < columns
        gaps = values.gap[counted]
        exponents = np.log10(np.maximum(gaps, 10.0 ** DECADES[0]))
        bars = 1 + np.clip(np.floor((exponents - DECADES[0]) * PER_DECADE).astype(int), 0, len(self.gaps) - 2)
        self.gaps += np.bincount(np.where(gaps > 0, bars, 0), minlength=len(self.gaps))
        difference = np.where(counted, values.semantic - values.spatial, -np.inf).ravel()
        best = np.argpartition(difference, -min(N_LARGEST, difference.size))[-N_LARGEST:]
        best = best[np.isfinite(difference[best])]
        pairs = np.column_stack([rows[best // columns.size], columns[best % columns.size]])
        together = np.concatenate([self._differences, difference[best]])
        order = np.argsort(-together, kind="stable")[:N_LARGEST]
        self.largest = np.concatenate([self.largest, pairs])[order]
        self._differences = together[order]


def read_values(
    matrices: LayerMatrices, rows: Indices | slice, columns: Indices | slice, kernel: str = "cosine"
) -> Values:
    """Return the similarities of a part of the matrices, as `Run.similarity` and `Run.gap` do.

    The kernel is cosine, or one of the run's configuration.
    """
    return derive_values(matrices, matrices.read(QUANTITIES, (rows, columns)), rows, columns, kernel)


def derive_values(
    matrices: LayerMatrices,
    stored: NDArray[np.floating[Any]],
    rows: Indices | slice,
    columns: Indices | slice,
    kernel: str,
) -> Values:
    """Return what `read_values` does, from the `QUANTITIES` of these rows and columns, (3, R, C)."""
    matched, identity, gap = stored.astype(np.float64, copy=False)
    norms = matrices.squared_norms[0][rows], matrices.squared_norms[1][columns]
    if kernel == "cosine":  # all three at once: the norms take as long as the rest
        together = np.stack([identity, matched, matched + gap])
        spatial, semantic, bound = derive_pairs(kernel, together, norms[0][:, None], norms[1])
        return Values(spatial, semantic, bound - semantic)
    semantic_matrix, spatial_matrix = (
        find_matrix(matrices, kernel, kind) for kind in ("semantic", "spatio-semantic")
    )
    return Values(
        spatial_matrix.derive(identity, (rows, columns)),
        semantic_matrix.derive(matched, (rows, columns)),
        kernel_gap(kernel, matched, matched + gap, *norms, sigma=semantic_matrix.sigma),
    )


def find_matrix(matrices: LayerMatrices, kernel: str, kind: str) -> DerivedMatrix:
    """Return a matrix of cosine similarities, or of a kernel of the run's configuration, of the width it has there."""
    if kernel == "cosine":
        return matrices.kernel_matrix(kind, kernel)
    return matrices.matrix(f"{kind}_{kernel}")


def read_pairs(matrices: LayerMatrices, rows: Indices, columns: Indices) -> Values:
    """Return the similarities of single pairs, (P,) each: each tile that holds some of them is read once."""
    size = matrices.layout.tile_size
    found = Values(*np.full((3, rows.size), np.nan))
    tiles = np.stack([rows // size, columns // size])
    order = np.lexsort(tiles)
    changes = np.flatnonzero(np.any(np.diff(tiles[:, order], axis=1), axis=0)) + 1
    for pairs in np.split(order, changes):
        if pairs.size:
            (some, at_rows), (others, at_columns) = (
                np.unique(part[pairs], return_inverse=True) for part in (rows, columns)
            )
            values = read_values(matrices, some, others)
            for whole, part in zip(vars(found).values(), vars(values).values(), strict=True):
                whole[pairs] = part[at_rows, at_columns]
    return found


def make_maps(run: Run, layer: str, labels: Labels, n_layers: int, reporter: Reporter) -> tuple[Maps, Seen]:
    """Return the maps of a finished layer; `labels` are those of the images by side.

    Raises
    ------
    IncompleteError
        If the layer has not been finished.
    StorageError
        If a tile is damaged or missing.
    """
    matrices = run.matrices(layer)
    layout = matrices.layout
    rows, columns = (choose_images(length, layout) for length in (layout.n_rows, layout.n_columns))
    note = ""
    if rows.size < layout.n_rows or columns.size < layout.n_columns:
        shown = " x ".join(
            f"{n:,}" for n in ((rows.size, columns.size) if not layout.symmetric else [rows.size])
        )
        note = f"The maps show {shown} images: whole tiles from evenly spaced places."
    with reporter.stage(f"orders of {layer}", 1, "layers") as stage:
        orders = order_images(labels, rows, columns, run.record.row_side)
        orders["cluster"] = cluster_images(matrices, rows, columns)
        stage.advance(1)
    n_pairs = rows.size * columns.size / (2 if layout.symmetric else 1)
    kernels, beyond = kernels_of(run, matrices)
    note = f"{note} {beyond}".strip()
    budget = MAP_BYTES / n_layers
    is_whole = n_pairs * PAIR_BYTES <= budget
    names: tuple[Order, ...] = ("given",) if is_whole else tuple(orders)
    sizes = rows.size, columns.size
    if not is_whole:
        budget /= len(kernels)
        cells = np.sqrt(budget * (2 if layout.symmetric else 1) / (CELL_BYTES * len(orders)))
        most = int(np.clip(cells, FEWEST_CELLS, MOST_CELLS))
        sizes = min(rows.size, most), min(columns.size, most)
        each = f"{rows.size / sizes[0]:.3g} x {columns.size / sizes[1]:.3g}"
        note = f"{note} Each cell is the mean of about {each} pairs.".strip()
    read = ["cosine"] if is_whole else kernels
    sums = {kernel: {name: _Cells(orders[name], sizes) for name in names} for kernel in read}
    seen = Seen()
    with reporter.stage(f"maps of {layer}", rows.size, "rows") as stage:
        # Six matrices of float64 are read together.
        for part in row_slices(rows.size, max(1, BLOCK_BYTES // (48 * max(1, columns.size)))):
            for kernel, by_order in sums.items():
                values = read_values(matrices, rows[part], columns, kernel)
                if kernel == "cosine":
                    seen.add(rows[part], columns, values, symmetric=layout.symmetric)
                for cells_of_order in by_order.values():
                    cells_of_order.add(part, values)
            stage.advance(part.stop - part.start)
    sequences: dict[Order, Sequence] = {
        name: Sequence(
            rows=Array.indices(rows[order[0]], layout.n_rows),
            columns=Array.indices(columns[order[1]], layout.n_columns),
        )
        for name, order in orders.items()
    }
    maps = {
        kernel: {name: cells.finish(symmetric=layout.symmetric) for name, cells in by_order.items()}
        for kernel, by_order in sums.items()
    }
    derived = _describe_derived(matrices, kernels[1:], rows, columns) if is_whole else None
    return Maps(orders=sequences, cells=maps, derived=derived, note=note), seen


def _describe_derived(
    matrices: LayerMatrices, kernels: Iterable[str], rows: Indices, columns: Indices
) -> Derived:
    norms = matrices.squared_norms
    unit = max(float(norm.max(initial=0.0)) for norm in norms) or 1.0
    return Derived(
        row_norms=Array.floats(norms[0][rows] / unit),
        column_norms=Array.floats(norms[1][columns] / unit),
        unit=unit,
        widths={
            kernel: Widths(
                spatial=find_matrix(matrices, kernel, "spatio-semantic").sigma,
                semantic=find_matrix(matrices, kernel, "semantic").sigma,
            )
            for kernel in kernels
        },
    )


def kernels_of(run: Run, matrices: LayerMatrices) -> tuple[list[str], str]:
    """Return the kernels of a layer's maps, cosine and others that the run has, and a note on one that is left out.

    Maps are of single precision, which holds any cosine, but not all inner products.
    """
    kernels = ["cosine", *(kernel for kernel in run.kernels if kernel != "cosine")]
    if "linear" not in kernels:
        return kernels, ""
    largest = math.prod(math.sqrt(norms.max(initial=0.0)) for norms in matrices.squared_norms)
    if largest == 0 or float(SINGLE.smallest_normal) <= largest <= float(SINGLE.max):
        return kernels, ""
    kernels.remove("linear")
    return kernels, (
        f"The kernel linear is not shown: its values, up to {largest:.1e}, are beyond single precision. "
        "Run.similarity has them."
    )


def choose_images(length: int, layout: Layout) -> Indices:
    """Return the images that maps are made of: all, or evenly spaced tiles' worth of them."""
    if length <= MOST_IMAGES:
        return np.arange(length)
    panels = -(-length // layout.tile_size)
    chosen = np.linspace(0, panels - 1, max(1, MOST_IMAGES // layout.tile_size)).round().astype(np.intp)
    images = (np.unique(chosen)[:, None] * layout.tile_size + np.arange(layout.tile_size)).ravel()
    return images[images < length]


def order_images(labels: Labels, rows: Indices, columns: Indices, row_side: str) -> Orders:
    """Return the orders that need no similarities, as places among `rows` and `columns`."""
    orders: Orders = {"given": (np.arange(rows.size), np.arange(columns.size))}
    sides = (row_side, rows), ("images", columns)
    if any(any(labels[side][index] for index in images) for side, images in sides):
        by_label = [order_by_label([labels[side][index] for index in images]) for side, images in sides]
        orders["label"] = by_label[0], by_label[1]
    return orders


def cluster_images(
    matrices: LayerMatrices, rows: Indices, columns: Indices, stage: Stage | None = None
) -> tuple[Indices, Indices]:
    """Return the order by similarity, as places among `rows` and `columns`; a stage counts the images compared."""
    norms = matrices.squared_norms

    def read(some: Indices, others: Indices) -> NDArray[np.float64]:
        matched = matrices.read(["matched"], (some, others))[0]
        if stage is not None:
            stage.advance(some.size)
        return derive("cosine", matched, norms[0][some], norms[1][others])

    if matrices.layout.symmetric:
        order = order_by_similarity(lambda a, b: read(rows[a], rows[b]), rows.size)
        return order, order
    few_rows, few_columns = (
        images[np.linspace(0, images.size - 1, min(PROFILE, images.size)).round().astype(np.intp)]
        for images in (rows, columns)
    )
    return (
        order_by_similarity(profile_affinity(read(rows, few_columns)), rows.size),
        order_by_similarity(profile_affinity(read(few_rows, columns).T), columns.size),
    )


class _Cells:
    """Sums over the cells of a map in one order, filled block by block; NaN counts as nothing."""

    def __init__(self, order: tuple[Indices, Indices], sizes: tuple[int, int]) -> None:
        self._edges = [
            np.linspace(0, places.size, size + 1).round().astype(np.intp)
            for places, size in zip(order, sizes, strict=True)
        ]
        # The cell of each row and column, and the columns in the order of their cells.
        self._homes = [
            np.repeat(np.arange(size), np.diff(edges))[np.argsort(places)]
            for places, size, edges in zip(order, sizes, self._edges, strict=True)
        ]
        self._columns = order[1]
        self._is_whole = all(places.size == size for places, size in zip(order, sizes, strict=True))
        self._sums, self._counts = np.zeros((2, 3, *sizes))
        self._gap = np.full(sizes, -np.inf)

    def add(self, rows: slice, values: Values) -> None:
        """Add rows, given by their places among those shown, with all columns."""
        homes = self._homes[0][rows]
        starts = self._edges[1][:-1]
        matrices = values.spatial, values.semantic, values.semantic - values.spatial
        for total, count, matrix in zip(self._sums, self._counts, matrices, strict=True):
            sorted_columns = matrix[:, self._columns]
            known = np.isfinite(sorted_columns)
            np.add.at(total, homes, np.add.reduceat(np.where(known, sorted_columns, 0.0), starts, axis=1))
            np.add.at(count, homes, np.add.reduceat(known, starts, axis=1, dtype=np.float64))
        gap = np.where(np.isfinite(values.gap), values.gap, -np.inf)[:, self._columns]
        np.maximum.at(self._gap, homes, np.maximum.reduceat(gap, starts, axis=1))

    def finish(self, *, symmetric: bool) -> Map:
        """Return the map."""
        means = np.full(self._sums.shape, np.nan)
        np.divide(self._sums, self._counts, out=means, where=self._counts > 0)
        gap = np.where(np.isfinite(self._gap), self._gap, np.nan)
        kept = np.triu_indices(len(gap)) if symmetric else np.indices(gap.shape).reshape(2, -1)
        spatial, semantic, difference = (Array.floats(mean[tuple(kept)]) for mean in means)
        row_edges, column_edges = (Array.indices(edges, int(edges[-1]) + 1) for edges in self._edges)
        return Map(
            row_edges=row_edges,
            column_edges=column_edges,
            spatial=spatial,
            semantic=semantic,
            difference=None if self._is_whole else difference,
            gap=Array.coarse(gap[tuple(kept)], upward=True),
        )

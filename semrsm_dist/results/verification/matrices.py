"""Verification of stored matrices: each chunk is compared with what the tiles give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from semrsm_dist.results.matrices import LayerMatrices
from semrsm_dist.results.verification.inspection import ArrayChunks, Inspection
from semrsm_dist.results.verification.numbers import ROUNDING, Problem
from semrsm_dist.results.verification.report import Kind
from semrsm_dist.store.matrices import MatrixStore


def inspect_matrices(
    inspection: Inspection, store: MatrixStore, layer: LayerMatrices, *, compare: bool
) -> None:
    """Check the stored matrices of a finished layer; `compare` says whether its tiles are sound."""
    layout = layer.chunks
    shape, size = (layout.n_rows, layout.n_columns), (layout.tile_size, layout.tile_size)
    grid = [(row, column) for row in range(layout.row_panels) for column in range(layout.column_panels)]
    for name in layer.names:
        array = ArrayChunks(inspection, store.group, name, store.layer, shape, size)
        matrix = layer.matrix(name)

        def check(index: tuple[int, ...], array: ArrayChunks = array, matrix: Any = matrix) -> None:
            found = array.read(index)
            if found is None or not compare:
                return
            with inspection.reading(layer.store.group, store.layer):
                expected = matrix.read((layout.rows(index[0]), layout.columns(index[1])))
                scale = 1.0 if matrix.kernel in ("cosine", "rbf") else _largest(layer, layout, index)
                same = (abs(found - expected) <= ROUNDING * scale) | (np.isnan(found) & np.isnan(expected))
                if not same.all():
                    row, column = (int(place) for place in np.argwhere(~same)[0])
                    text = (
                        f"entry {layout.rows(index[0]).start + row}, {layout.columns(index[1]).start + column} is "
                        f"{float(found[row, column])!r}, but the tiles give {float(expected[row, column])!r}"
                    )
                    array.add(index, Problem(Kind.KERNEL, text))

        there = array.find(grid, needed=True)
        inspection.each(f"{name} of {store.layer}", "chunks of matrices", there, check)


def _largest(layer: LayerMatrices, layout: Any, index: Mapping[int, int] | tuple[int, ...]) -> Any:
    """Return the products of the norms of a chunk's images: what inner products are compared by."""
    norms_i, norms_j = layer.squared_norms
    rows, columns = np.sqrt(norms_i[layout.rows(index[0])]), np.sqrt(norms_j[layout.columns(index[1])])
    return rows[:, None] * columns

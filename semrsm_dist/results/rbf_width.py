"""The width of the RBF kernel by the paper's rule, from the tiles of a layer."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.kernels import squared_distances
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.progress import Reporter, SilentReporter
from semrsm_dist.results.matrices import LayerMatrices
from semrsm_dist.store.tiles import KINDS

BLOCK, BLOCKS = 32, 4096
"""A sample is about this many random blocks of pairs, each of so many images with as many: whatever the tiles."""

PAIRS = BLOCKS * BLOCK**2
"""Maximum pairs that are all read: those of 2 896 images, 4 million."""

SEED = 0
"""Of the sample."""


def median_width(
    matrices: LayerMatrices, kind: str, *, reporter: Reporter | None = None
) -> tuple[float, float | None]:
    """Return sqrt(median of the non-zero squared distances) over all pairs, and its error if they are a sample.

    In a symmetric matrix, each pair of different images counts once. If all images coincide, any width gives the same
    kernel, and 1 is returned. Of more than `PAIRS` pairs, about as many are drawn, the same every time.

    Returns
    -------
    sigma
        The width.
    error
        Two standard errors of the sample, from its spread among blocks; None if all pairs were read.
    """
    layout = matrices.layout
    is_sample = layout.total_pairs > PAIRS
    if is_sample:
        layout = Layout(layout.n_rows, layout.n_columns, BLOCK, layout.symmetric)
    blocks = _draw_blocks(layout) if is_sample else list(layout.tiles())
    parts = []
    shown_by = SilentReporter() if reporter is None else reporter
    with shown_by.stage(f"rbf width of {matrices.store.layer}, {kind}", len(blocks), "blocks") as shown:
        for block in blocks:
            parts.append(_distances(matrices, layout, block, KINDS[kind]))
            shown.advance(1)
    distances = np.concatenate(parts)
    if not distances.size:
        return 1.0, None
    median = float(np.median(distances))
    if not is_sample:
        return math.sqrt(median), None
    error = 2 * _rank_error(parts, median)
    low, high = np.quantile(distances, np.clip([0.5 - error, 0.5 + error], 0, 1))
    return math.sqrt(median), float(np.sqrt(high) - np.sqrt(low)) / 2


def _draw_blocks(layout: Layout) -> list[tuple[int, int]]:
    """Return different random blocks, each as likely as any other."""
    rng, drawn = np.random.default_rng(SEED), 4 * BLOCKS
    rows, columns = (rng.integers(0, panels, drawn) for panels in (layout.row_panels, layout.column_panels))
    if layout.symmetric:
        rows, columns = rows[rows <= columns], columns[rows <= columns]
    return sorted(set(zip(rows[:BLOCKS].tolist(), columns[:BLOCKS].tolist(), strict=True)))


def _distances(
    matrices: LayerMatrices, layout: Layout, block: tuple[int, int], quantity: str
) -> NDArray[np.float64]:
    """Return the non-zero squared distances of a block's pairs."""
    rows, columns = layout.rows(block[0]), layout.columns(block[1])
    norms_i, norms_j = matrices.squared_norms
    inner = matrices.read_for_distances(quantity, (rows, columns))
    squared = squared_distances(inner, norms_i[rows], norms_j[columns])
    counted = squared > 0
    return squared[np.triu(counted, k=1) if layout.symmetric and block[0] == block[1] else counted]


def _rank_error(parts: list[NDArray[np.float64]], median: float) -> float:
    """Return the standard error of the share of all pairs that are below the sample's median."""
    excess = np.array([np.count_nonzero(part < median) - part.size / 2 for part in parts])
    return math.sqrt(float((excess**2).sum())) / sum(part.size for part in parts)

"""The width of the RBF kernel by the paper's rule, from the stored tiles of a layer."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.kernels import squared_distances
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.progress import Reporter, SilentReporter
from semrsm_dist.results.median import streaming_median
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.tiles import QUANTITIES, TileStore

PASSES = 6
"""How often `streaming_median` reads all numbers at most."""


def median_sigma(
    directory: RunDirectory, layer: str, layout: Layout, quantity: str, *, reporter: Reporter | None = None
) -> float:
    """Return sqrt(median of the non-zero squared distances) over all pairs, reading one tile at a time.

    All tiles are read two to six times; the progress reported is that of six. In a symmetric matrix, each pair of
    different images counts once. If all images coincide, any width gives the same kernel, and 1 is returned.
    """
    solved = TileStore(directory.tiles, layer)
    norms_j = FeatureStore(directory.features, "images", layer).read_squared_norms()
    norms_i = (
        norms_j
        if layout.symmetric
        else FeatureStore(directory.features, "queries", layer).read_squared_norms()
    )
    position = QUANTITIES.index(quantity)

    with (reporter or SilentReporter()).stage(
        f"rbf width of {layer}", PASSES * layout.n_tiles, "tiles"
    ) as shown:
        left = PASSES * layout.n_tiles

        def distances() -> Iterator[NDArray[np.float64]]:
            nonlocal left
            for row, column in layout.tiles():
                inner = solved.read((row, column))[position]
                squared = squared_distances(inner, norms_i[layout.rows(row)], norms_j[layout.columns(column)])
                on_diagonal = layout.symmetric and row == column
                yield squared[np.triu(squared > 0, k=1) if on_diagonal else squared > 0]
                left -= 1
                shown.advance(1)

        median = streaming_median(distances)
        shown.advance(left)  # passes that were not needed
    return 1.0 if math.isnan(median) else math.sqrt(median)

"""The width of the RBF kernel by the paper's rule, from the tiles of a layer."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.kernels import squared_distances
from semrsm_dist.progress import Reporter, SilentReporter
from semrsm_dist.results.matrices import LayerMatrices

PAIRS = 1 << 22
"""Maximum pairs whose median is taken: all of up to 2 900 images, a sample of more."""

TILES = 4096
"""Maximum tiles that a sample comes from."""

SEED = 0
"""Of the sample."""


def median_width(
    matrices: LayerMatrices, quantity: str, *, reporter: Reporter | None = None
) -> tuple[float, float | None]:
    """Return sqrt(median of the non-zero squared distances) over all pairs, and its error if they are a sample.

    In a symmetric matrix, each pair of different images counts once. If all images coincide, any width gives the same
    kernel, and 1 is returned. Of more than `PAIRS` pairs, about as many are drawn at random: equally from all tiles, or
    from `TILES` random ones. The sample is the same every time.

    Parameters
    ----------
    matrices
        The layer.
    quantity
        `matched` or `identity`.
    reporter
        Where progress is reported.

    Returns
    -------
    sigma
        The width.
    error
        Two standard errors of the sample, from its spread among tiles; None if all pairs were read.
    """
    layout, rng = matrices.layout, np.random.default_rng(SEED)
    tiles, is_sample = list(layout.tiles()), layout.total_pairs > PAIRS
    n_tiles = len(tiles)
    if is_sample and n_tiles > TILES:
        tiles = [tiles[index] for index in np.sort(rng.choice(n_tiles, TILES, replace=False))]
    share = min(1.0, PAIRS / max(1, sum(layout.n_pairs(*tile) for tile in tiles)))
    parts = []
    with (reporter or SilentReporter()).stage(f"rbf width of {quantity}", len(tiles), "tiles") as shown:
        for tile in tiles:
            found = _distances(matrices, tile, quantity)
            if share < 1:
                found = found[rng.integers(0, found.size, round(share * found.size))] if found.size else found
            parts.append(found)
            shown.advance(1)
    distances = np.concatenate(parts)
    if not distances.size:
        return 1.0, None
    median = float(np.median(distances))
    if not is_sample:
        return math.sqrt(median), None
    low, high = np.quantile(
        distances, np.clip(0.5 + 2 * _rank_error(parts, median, n_tiles) * np.array([-1, 1]), 0, 1)
    )
    return math.sqrt(median), float(np.sqrt(high) - np.sqrt(low)) / 2


def _distances(matrices: LayerMatrices, tile: tuple[int, int], quantity: str) -> NDArray[np.float64]:
    """Return the non-zero squared distances of a tile's pairs."""
    layout = matrices.layout
    rows, columns = layout.rows(tile[0]), layout.columns(tile[1])
    norms_i, norms_j = matrices.squared_norms
    inner = matrices.read_for_distances(quantity, (rows, columns))
    squared = squared_distances(inner, norms_i[rows], norms_j[columns])
    counted = squared > 0
    return squared[np.triu(counted, k=1) if layout.symmetric and tile[0] == tile[1] else counted]


def _rank_error(parts: list[NDArray[np.float64]], median: float, n_tiles: int) -> float:
    """Return the standard error of the share of pairs below `median`: tiles are drawn, and pairs within them."""
    excess = np.array([np.count_nonzero(part < median) - part.size / 2 for part in parts])
    size = sum(part.size for part in parts)
    drawn = len(parts) / n_tiles
    among = (1 - drawn) * len(parts) / max(1, len(parts) - 1) * float((excess**2).sum()) / size**2
    return math.sqrt(among + 0.25 / size)

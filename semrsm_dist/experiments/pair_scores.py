"""Scores of all pairs of images of a layer that no run keeps, computed from its features and kept in tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from semrsm_dist.evaluation.entries import RowReader
from semrsm_dist.experiments.layer_features import LayerFeatures
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.progress import Reporter
from semrsm_dist.store import arrays, chunks, groups, paths
from semrsm_dist.store.chunk_labels import origin

Scores = NDArray[np.float64]


class Tokens(NamedTuple):
    """The tokens (T, S, C) of consecutive images, zeros beyond an image's own, and how many each has, (T,)."""

    z: NDArray[np.float32]
    counts: NDArray[np.int64]


class Both(NamedTuple):
    """A score of R images with K others, (R, K), and of the others with them, (K, R)."""

    forward: Scores
    backward: Scores


def symmetric(values: Scores) -> Both:
    """Return a score that is the same in both directions."""
    return Both(values, values.T)


Solve = Callable[[Tokens, Tokens], Mapping[str, Both]]
"""Computes the scores of all pairs of two sets of images, by name. Of a set with itself, both are the same object."""


class PairScores:
    """Named scores of all pairs of images of a layer. They lie in tiles, and those that exist are not computed again.

    Parameters
    ----------
    features
        The layer.
    root
        Where the tiles are kept. What the scores depend on, beside the features, must be part of its name.
    names
        Of the scores that `solve` returns.
    solve
        Called in threads.
    """

    def __init__(self, features: LayerFeatures, root: Path, names: Sequence[str], solve: Solve) -> None:
        self._features, self._solve = features, solve
        self._layout: Layout = features.run.layout(features.layer)
        self._group = root / features.layer
        layout, size = self._layout, self._layout.tile_size
        groups.create_group(root, features.layer)
        self._arrays = {
            name: arrays.create_array(
                self._group,
                name,
                dimensions={"image_i": (layout.n_rows, size), "image_j": (layout.n_columns, size)},
                dtype="float32",
                origin=origin(features.run.record.id_of(features.layer), root.name, features.layer, name),
            )
            for name in names
        }

    def reader(self, name: str) -> RowReader:
        """Return a reader of rows of a score."""
        columns = slice(0, self._layout.n_columns)
        return lambda rows: chunks.read_region(self._arrays[name], (rows, columns)).astype(np.float64)

    def fill(self, reporter: Reporter, workers: int, stage: str) -> None:
        """Compute the tiles that are missing, in threads, each of which holds two panels of features."""
        present = set.intersection(*(chunks.list_chunks(self._group, name) for name in self._arrays))
        tiles = list(self._layout.tiles())
        missing = [tile for tile in tiles if not set(self._mirrored(tile)) <= present]
        if not missing:
            return
        with (
            reporter.stage(stage, len(tiles), "tiles", len(tiles) - len(missing)) as shown,
            threadpool_limits(1, user_api="blas"),
            ThreadPoolExecutor(workers) as pool,
        ):
            for _ in pool.map(self._fill_tile, missing):
                shown.advance(1)

    def _mirrored(self, tile: tuple[int, int]) -> list[tuple[int, int]]:
        row, column = tile
        return [tile, (column, row)] if self._layout.symmetric and row != column else [tile]

    def _fill_tile(self, tile: tuple[int, int]) -> None:
        rows = self._read(self._features.query_side, self._layout.rows(tile[0]))
        is_diagonal = self._layout.symmetric and tile[0] == tile[1]
        columns = rows if is_diagonal else self._read("images", self._layout.columns(tile[1]))
        found = self._solve(rows, columns)
        with paths.writing(self._group):
            for name, array in self._arrays.items():
                for index, values in zip(self._mirrored(tile), found[name], strict=False):
                    chunks.write_chunk(array, index, np.ascontiguousarray(values, dtype=np.float32))

    def _read(self, side: str, images: slice) -> Tokens:
        store = self._features.store(side)
        return Tokens(store.read(images).astype(np.float32, copy=False), store.read_token_counts(images))

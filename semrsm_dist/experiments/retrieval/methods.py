"""What retrieval by matching is compared with, each as a reader of rows of similarities, from a run's own features.

Everything that is fitted (principal components, VLAD's centroids) is fitted to the database, without labels. Tokens
of VLAD, MaxSim and Chamfer are brought to length 1 first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from semrsm_dist.errors import InputError
from semrsm_dist.evaluation.entries import RowReader
from semrsm_dist.evaluation.late_interaction import chamfer, max_similarities
from semrsm_dist.evaluation.pooling import Whitening, cosine_rows, fit_centroids, vlad
from semrsm_dist.evaluation.retrieval import POOLED, SEMANTIC, SPATIAL
from semrsm_dist.evaluation.tokens import unit_tokens
from semrsm_dist.experiments.layer_features import LayerFeatures
from semrsm_dist.experiments.retrieval import RetrievalParameters
from semrsm_dist.matching.kernels import KERNELS
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.progress import Reporter
from semrsm_dist.store import chunks
from semrsm_dist.store.labels import origin
from semrsm_dist.store.npy import write_npy

WHITENED, VLAD, MAXSIM, CHAMFER, CLASS_TOKEN = (
    "PCA-whitened pooling",
    "VLAD",
    "MaxSim",
    "Chamfer",
    "class token",
)
SAMPLE = 20_000
"""Tokens of the database that VLAD's centroids are fitted to."""


@dataclass(frozen=True, slots=True)
class Method:
    """A way to compare images, which reads rows of the similarities of queries to the database.

    `note` says what was fitted, for people.
    """

    name: str
    kernel: str
    read_rows: RowReader
    note: str = ""


def list_methods(
    features: LayerFeatures, fitting: RetrievalParameters, folder: Path, reporter: Reporter, workers: int
) -> Iterator[Method]:
    """Yield every way to compare the images of a layer; each is used before the next is requested.

    The folder keeps late interaction, so that it is computed once, and VLAD's vectors for as long as they are needed.
    """
    run, layer = features.run, features.layer
    for kernel in KERNELS:
        for kind in (SPATIAL, SEMANTIC):
            yield Method(kind, kernel, run.similarity_rows(layer, kernel, kind))
    database = features.store("images").read_pooled()
    queries = features.store(features.query_side).read_pooled()
    yield Method(POOLED, "cosine", cosine_rows(queries, database))
    yield _whitened(queries, database, fitting)
    yield from _vlad(features, fitting, folder)
    yield from _late_interaction(features, folder / "late-interaction.zarr", reporter, workers)


def _whitened(
    queries: NDArray[np.float32], database: NDArray[np.float32], fitting: RetrievalParameters
) -> Method:
    try:
        whiten = Whitening(database, variance=fitting.variance)
    except InputError as error:
        width = len(database)
        return Method(
            WHITENED,
            "cosine",
            lambda rows: np.full((rows.stop - rows.start, width), np.nan),
            f"undefined: {error}",
        )
    note = f"{whiten.n_components} of {database.shape[1]} components"
    return Method(WHITENED, "cosine", cosine_rows(whiten(queries), whiten(database)), note)


def _vlad(features: LayerFeatures, fitting: RetrievalParameters, folder: Path) -> Iterator[Method]:
    centroids = fit_centroids(
        features.sample_tokens(SAMPLE, fitting.seed), fitting.centroids, seed=fitting.seed
    )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".vlad-") as place:
        vectors = {
            side: _write_vlad(features, side, centroids, Path(place) / f"{side}.npy")
            for side in {"images", features.query_side}
        }
        read = cosine_rows(vectors[features.query_side], vectors["images"])
        yield Method(VLAD, "cosine", read, f"{len(centroids)} centroids")


def _write_vlad(
    features: LayerFeatures, side: str, centroids: NDArray[np.float64], path: Path
) -> NDArray[np.float32]:
    shape = (features.count(side), centroids.size)
    store, counts = features.store(side), features.token_counts(side)
    vectors = (
        vlad(unit_tokens(store.read(images)), centroids, counts[images]) for images in features.chunks(side)
    )
    write_npy(path, shape, np.float32, vectors)
    mapped: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return mapped


def _late_interaction(
    features: LayerFeatures, root: Path, reporter: Reporter, workers: int
) -> Iterator[Method]:
    store = LateInteraction(features, root)
    store.fill(reporter, workers)
    for name in (MAXSIM, CHAMFER):
        yield Method(name, "cosine", store.reader(name))


class LateInteraction:
    """MaxSim and Chamfer between all images of a layer, kept in tiles; existing tiles are not computed again."""

    def __init__(self, features: LayerFeatures, root: Path) -> None:
        self._features = features
        self._layout: Layout = features.run.layout(features.layer)
        self._group = root / features.layer
        layout, side = self._layout, self._layout.tile_size
        chunks.create_group(root, features.layer)
        self._arrays = {
            name: chunks.create_array(
                self._group,
                name,
                dimensions={"image_i": (layout.n_rows, side), "image_j": (layout.n_columns, side)},
                dtype="float32",
                origin=origin(features.run.record.id_of(features.layer), root.name, features.layer, name),
            )
            for name in (MAXSIM, CHAMFER)
        }

    def reader(self, name: str) -> RowReader:
        """Return a reader of rows of `MAXSIM` or `CHAMFER`."""
        columns = slice(0, self._layout.n_columns)
        return lambda rows: chunks.read_region(self._arrays[name], (rows, columns)).astype(np.float64)

    def fill(self, reporter: Reporter, workers: int) -> None:
        """Compute the tiles that are missing, in threads, each of which holds two panels of features."""
        present = set.intersection(*(chunks.list_chunks(self._group, name) for name in self._arrays))
        tiles = list(self._layout.tiles())
        missing = [tile for tile in tiles if not set(self._mirrored(tile)) <= present]
        if not missing:
            return
        with (
            reporter.stage("late interaction", len(tiles), "tiles", len(tiles) - len(missing)) as shown,
            threadpool_limits(1, user_api="blas"),
            ThreadPoolExecutor(workers) as pool,
        ):
            for _ in pool.map(self._solve, missing):
                shown.advance(1)

    def _mirrored(self, tile: tuple[int, int]) -> list[tuple[int, int]]:
        row, column = tile
        return [tile, (column, row)] if self._layout.symmetric and row != column else [tile]

    def _solve(self, tile: tuple[int, int]) -> None:
        rows, columns = self._layout.rows(tile[0]), self._layout.columns(tile[1])
        queries, database = self._features.store(self._features.query_side), self._features.store("images")
        forward, backward = max_similarities(
            unit_tokens(queries.read(rows)),
            unit_tokens(database.read(columns)),
            token_counts=(queries.read_token_counts(rows), database.read_token_counts(columns)),
        )
        both = chamfer(forward, backward)
        with chunks.writing(self._group):
            for index, values in zip(self._mirrored(tile), (forward, backward.T), strict=False):
                chunks.write_chunk(self._arrays[MAXSIM], index, _narrow(values))
            for index, values in zip(self._mirrored(tile), (both, both.T), strict=False):
                chunks.write_chunk(self._arrays[CHAMFER], index, _narrow(values))


def _narrow(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.ascontiguousarray(values, dtype=np.float32)

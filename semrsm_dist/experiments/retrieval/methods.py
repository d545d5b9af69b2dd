"""What retrieval by matching is compared with, each as a reader of rows of similarities, from a run's own features.

Everything that is fitted (principal components, VLAD's centroids) is fitted to the database, without labels. Tokens
of VLAD, MaxSim, Chamfer and transport are scaled to length 1 first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.errors import InputError
from semrsm_dist.evaluation.entries import RowReader
from semrsm_dist.evaluation.late_interaction import chamfer, max_similarities
from semrsm_dist.evaluation.pooling import Whitening, cosine_rows, fit_centroids, vlad
from semrsm_dist.evaluation.retrieval import POOLED, SEMANTIC, SPATIAL
from semrsm_dist.evaluation.tokens import unit_tokens
from semrsm_dist.evaluation.transport import Transport, token_masses
from semrsm_dist.experiments.layer_features import LayerFeatures
from semrsm_dist.experiments.pair_scores import Both, PairScores, Tokens, symmetric
from semrsm_dist.experiments.retrieval import RetrievalParameters
from semrsm_dist.matching.kernels import KERNELS
from semrsm_dist.progress import Reporter
from semrsm_dist.store.npy import write_npy

WHITENED, GEM, MAX = "PCA-whitened pooling", "GeM pooling", "max pooling"
VLAD, MAXSIM, CHAMFER, TRANSPORT, CLASS_TOKEN = "VLAD", "MaxSim", "Chamfer", "transport", "class token"
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
    queries, database = features.read_pooled()
    yield Method(POOLED, "cosine", cosine_rows(queries, database))
    yield _whitened(queries, database, fitting)
    yield _pooled(features, GEM, fitting.gem)
    yield _pooled(features, MAX, np.inf)
    yield from _vlad(features, fitting, folder)
    yield from _late_interaction(features, folder / "late-interaction.zarr", reporter, workers)
    if fitting.transport is not None:
        yield _transport(features, fitting.transport, folder, reporter, workers)


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


def _pooled(features: LayerFeatures, name: str, power: float) -> Method:
    queries, database = (features.pool(side, power) for side in (features.query_side, "images"))
    return Method(name, "cosine", cosine_rows(queries, database))


def _late_interaction(
    features: LayerFeatures, root: Path, reporter: Reporter, workers: int
) -> Iterator[Method]:
    store = PairScores(features, root, (MAXSIM, CHAMFER), _solve_late_interaction)
    store.fill(reporter, workers, "late interaction")
    for name in (MAXSIM, CHAMFER):
        yield Method(name, "cosine", store.reader(name))


def _solve_late_interaction(rows: Tokens, columns: Tokens) -> dict[str, Both]:
    forward, backward = max_similarities(
        unit_tokens(rows.z), unit_tokens(columns.z), token_counts=(rows.counts, columns.counts)
    )
    return {MAXSIM: Both(forward, backward.T), CHAMFER: symmetric(chamfer(forward, backward))}


def _transport(
    features: LayerFeatures, entropy: float, folder: Path, reporter: Reporter, workers: int
) -> Method:
    transport = Transport(entropy)

    def solve(rows: Tokens, columns: Tokens) -> dict[str, Both]:
        masses = token_masses(*rows), token_masses(*columns)
        return {
            TRANSPORT: symmetric(transport.similarities(unit_tokens(rows.z), unit_tokens(columns.z), masses))
        }

    store = PairScores(features, folder / f"transport-{entropy:g}.zarr", (TRANSPORT,), solve)
    store.fill(reporter, workers, "transport")
    return Method(TRANSPORT, "cosine", store.reader(TRANSPORT))

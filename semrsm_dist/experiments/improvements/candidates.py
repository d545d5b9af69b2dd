"""The similarities that are tried, by family and setting, each as a reader of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.config.schema import RunConfig
from semrsm_dist.evaluation.entries import RowReader, row_slices
from semrsm_dist.evaluation.pooling import cosine_rows
from semrsm_dist.evaluation.retrieval import SEMANTIC, SPATIAL
from semrsm_dist.evaluation.tokens import unit_tokens
from semrsm_dist.evaluation.transport import Transport, token_masses
from semrsm_dist.experiments.improvements import ImprovementsParameters
from semrsm_dist.experiments.improvements.partial import gap_of, list_partial, name_of, score_partially
from semrsm_dist.experiments.improvements.treatments import (
    COSINE,
    GAP,
    centre,
    fit_whitening,
    list_treatments,
    match_treated,
)
from semrsm_dist.experiments.layer_features import LayerFeatures
from semrsm_dist.experiments.pair_scores import Both, PairScores, Tokens, symmetric
from semrsm_dist.progress import Reporter
from semrsm_dist.results.run import Run
from semrsm_dist.store.record import Side

POOLING = "pooling"
"""The family of the rivals: one vector an image."""

TRANSPORT, MIXTURE = "unbalanced transport", "mean with pooling"
AVERAGE = "average"
ALL_LAYERS = "all layers"
"""In place of a layer: the mean of the cosines of all of them."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A similarity. `gap` is the largest certified one on the cosine scale, NaN without a certificate."""

    layer: str
    family: str
    setting: str
    read_rows: RowReader
    gap: float = np.nan


@dataclass(frozen=True, slots=True)
class Bench:
    """What computing candidates needs, beside a layer."""

    config: RunConfig
    parameters: ImprovementsParameters
    folder: Path
    reporter: Reporter
    workers: int


def list_candidates(run: Run, layer: str, bench: Bench) -> Iterator[Candidate]:
    """Yield every candidate of a layer; those that match tokens are computed when they are requested."""
    features = LayerFeatures(run, layer)
    semantic = run.similarity_rows(layer, "cosine", SEMANTIC)
    yield Candidate(layer, SPATIAL, "", run.similarity_rows(layer, "cosine", SPATIAL))
    yield Candidate(layer, SEMANTIC, "", semantic)
    pooled = list(_list_pooling(features, bench.parameters))
    yield from pooled
    for weight in bench.parameters.mixture:
        mixed = mean_rows([semantic, pooled[0].read_rows], [weight, 1.0 - weight])
        yield Candidate(layer, MIXTURE, f"{weight:g}", mixed)
    yield from _list_treated(features, bench)
    yield from _list_partial(features, bench)
    yield from _list_transport(features, bench)


def combine_layers(candidates: Sequence[Candidate], n_layers: int) -> Iterator[Candidate]:
    """Yield, for each family and setting of all layers, the mean of its cosines over the layers.

    Pooling, position by position and plain matching are combined: changes to matching are judged layer by layer.
    """
    for family in (SPATIAL, SEMANTIC, POOLING):
        chosen = [one for one in candidates if one.family == family]
        for setting in dict.fromkeys(one.setting for one in chosen):
            readers = [one.read_rows for one in chosen if one.setting == setting]
            if len(readers) == n_layers:
                yield Candidate(ALL_LAYERS, family, setting, mean_rows(readers, [1.0] * n_layers))


def mean_rows(readers: Sequence[RowReader], weights: Sequence[float]) -> RowReader:
    """Return a reader of the weighted mean of several similarities."""
    shares = np.array(weights) / np.sum(weights)

    def read(rows: slice) -> NDArray[np.float64]:
        total: NDArray[np.float64] = sum(
            share * reader(rows) for share, reader in zip(shares, readers, strict=True)
        )
        return total

    return read


def _list_pooling(features: LayerFeatures, parameters: ImprovementsParameters) -> Iterator[Candidate]:
    sides: tuple[Side, Side] = (features.query_side, "images")
    queries, database = features.read_pooled()
    yield Candidate(features.layer, POOLING, AVERAGE, cosine_rows(queries, database))
    for power in (*parameters.gem, np.inf):
        pooled = [features.pool(side, power) for side in sides]
        name = "max" if np.isinf(power) else f"GeM {power:g}"
        yield Candidate(features.layer, POOLING, name, cosine_rows(*pooled))
    for variance in parameters.whitening:
        whiten = fit_whitening(database, variance, features.layer)
        read = cosine_rows(whiten(queries), whiten(database))
        yield Candidate(features.layer, POOLING, f"whitened {variance:g}", read)


def _list_treated(features: LayerFeatures, bench: Bench) -> Iterator[Candidate]:
    matcher = bench.config.matching.make_matcher()
    for treatment in list_treatments(features, bench.parameters):
        root = bench.folder / f"{treatment.folder}.zarr"
        scores = PairScores(features, root, (COSINE, GAP), match_treated(treatment, matcher))
        scores.fill(bench.reporter, bench.workers, f"{treatment.family} {treatment.setting}")
        gap = _largest(features, scores.reader(GAP)) if matcher.certified else np.nan
        yield Candidate(features.layer, treatment.family, treatment.setting, scores.reader(COSINE), gap)


def _list_partial(features: LayerFeatures, bench: Bench) -> Iterator[Candidate]:
    wanted = list_partial(bench.parameters)
    if not wanted:
        return
    mean = features.mean_token()
    names = [name_of(*one) for one in wanted]
    root = bench.folder / f"partial matching {bench.parameters.tolerance:g}.zarr"
    every = (*names, *map(gap_of, names))
    scores = PairScores(features, root, every, score_partially(bench.parameters, mean))
    scores.fill(bench.reporter, bench.workers, "partial matching")
    for (family, setting), name in zip(wanted, names, strict=True):
        gap = _largest(features, scores.reader(gap_of(name)))
        yield Candidate(features.layer, family, f"{setting:g}", scores.reader(name), gap)


def _list_transport(features: LayerFeatures, bench: Bench) -> Iterator[Candidate]:
    """Yield unbalanced transport between centred tokens of length 1, whose masses are their norms."""
    mean = features.mean_token()
    for relaxation in bench.parameters.relaxation:
        transport = Transport(bench.parameters.entropy, relaxation)
        root = bench.folder / f"{TRANSPORT} {transport.entropy:g} {relaxation:g}.zarr"
        scores = PairScores(features, root, (TRANSPORT,), _transport(transport, mean))
        scores.fill(bench.reporter, bench.workers, f"{TRANSPORT} {relaxation:g}")
        yield Candidate(features.layer, TRANSPORT, f"{relaxation:g}", scores.reader(TRANSPORT))


def _transport(
    transport: Transport, mean: NDArray[np.float64]
) -> Callable[[Tokens, Tokens], dict[str, Both]]:
    def solve(rows: Tokens, columns: Tokens) -> dict[str, Both]:
        sides = [Tokens(centre(side, mean), side.counts) for side in (rows, columns)]
        masses = (token_masses(*sides[0], by_norm=True), token_masses(*sides[1], by_norm=True))
        left, right = (unit_tokens(side.z) for side in sides)
        return {TRANSPORT: symmetric(transport.similarities(left, right, masses))}

    return solve


def _largest(features: LayerFeatures, read: RowReader) -> float:
    n_rows, at_once = features.count(features.query_side), features.run.chunk_size(features.layer)
    return float(np.nanmax([np.nanmax(read(rows), initial=0.0) for rows in row_slices(n_rows, at_once)]))

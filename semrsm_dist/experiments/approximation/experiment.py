"""Approximate matchers against the optimum: what they cost, what they keep, and which window is best.

Wald et al. (2024) give run time and quality of greedy, TopK-Greedy and Batch-Optimal matching and leave open which
window to take. Here each matcher of the package matches the same pairs of images of a run. Which window is best at a
given S is answered in two ways: the fastest one that keeps a given share of the gain over no matching, and whether
the certified auction, which matches all tokens together, beats it.
"""

from __future__ import annotations

import contextlib
import platform

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from semrsm_dist.config.schema import RunConfig
from semrsm_dist.data.sources import Data
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.errors import InputError, MissingInputError
from semrsm_dist.experiments.approximation import REFERENCE, ApproximationParameters
from semrsm_dist.experiments.approximation.methods import list_methods, measure_methods
from semrsm_dist.experiments.approximation.report import draw_approximation, write_text
from semrsm_dist.experiments.approximation.table import answer_windows, tabulate_layer
from semrsm_dist.experiments.evidence import Findings
from semrsm_dist.experiments.layer_features import LayerFeatures
from semrsm_dist.experiments.runs import complete_run
from semrsm_dist.machine import limit_threads
from semrsm_dist.pipeline.feature_inputs import check_features
from semrsm_dist.progress import Reporter, Stage
from semrsm_dist.results.run import Run
from semrsm_dist.store.record import Side

LARGEST_EXACT = 800
"""Tokens up to which the Hungarian method is affordable; beyond, the auction at tolerance 0 gives the optimum."""


def evaluate(config: RunConfig, parameters: ApproximationParameters, reporter: Reporter) -> Findings:
    """Match the same pairs of images of any run by every matcher, and compare time and quality."""
    grid = parameters.model_copy(
        update={
            "tolerances": tuple(sorted({*parameters.tolerances, REFERENCE, 0.0}, reverse=True)),
            "inner_tolerances": tuple(sorted(set(parameters.inner_tolerances))),
            "sizes": tuple(sorted(set(parameters.sizes))),
        }
    )
    _require_equal_tokens(config)
    run = complete_run(config, reporter)
    images = _draw_images(run, parameters.n_rows, parameters.n_columns, parameters.seed)
    parts, total = [], len(run.requested_layers) * parameters.rounds * len(images[0])
    with limit_threads(1), reporter.stage("approximation", total, "rows") as shown:
        for layer in run.requested_layers:
            part = _measure_layer(LayerFeatures(run, layer), images, grid, shown)
            answers = answer_windows(part, parameters.keep)
            parts.append(pd.concat([part, answers], ignore_index=True).assign(layer=layer))
    table = pd.concat(parts, ignore_index=True)
    table.insert(0, "layer", table.pop("layer"))
    tried = grid.model_dump(include={"tolerances", "inner_tolerances", "sizes", "seed"})
    return Findings(
        table,
        lambda figure: draw_approximation(figure, table),
        write_text(table, parameters.keep),
        {"grid": tried, "processor": platform.processor() or platform.machine()},
    )


def _measure_layer(
    features: LayerFeatures,
    images: tuple[NDArray[np.intp], NDArray[np.intp]],
    grid: ApproximationParameters,
    shown: Stage,
) -> pd.DataFrame:
    n_tokens, sides = features.n_tokens, list(zip((features.query_side, "images"), images, strict=True))
    if any((features.token_counts(side)[drawn] < n_tokens).any() for side, drawn in sides):
        raise _unequal(features.layer)
    methods = list_methods(n_tokens, features.n_channels, grid, exact=n_tokens <= LARGEST_EXACT)
    rows, columns = (
        np.concatenate([features.store(side).read(slice(image, image + 1)) for image in drawn])
        for side, drawn in sides
    )
    found = measure_methods(methods, rows, columns, rounds=grid.rounds, advance=lambda: shown.advance(1))
    return tabulate_layer(found, rows, columns, seed=grid.seed)


def _require_equal_tokens(config: RunConfig) -> None:
    """Refuse images that differ in their number of tokens before the run is computed."""
    sides: dict[Side, Data | None] = {"images": config.data, "queries": config.queries}
    ready = {side: data for side, data in sides.items() if isinstance(data, FeaturesData)}
    matcher = config.matching.make_matcher()
    with contextlib.suppress(MissingInputError):  # a run may hold them already, whose copy is checked then
        for layer in check_features(ready, matcher):
            raise _unequal(layer)


def _unequal(layer: str) -> InputError:
    return InputError(
        f"layer {layer!r}: images differ in their number of tokens, which most approximations cannot match; judge "
        "them on images of one size"
    )


def _draw_images(
    run: Run, n_rows: int, n_columns: int, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the images of rows and columns, never the same image; fewer of both where there are not enough."""
    generator = np.random.default_rng(seed)
    counts = run.record.counts
    drawn = generator.permutation(counts["images"])
    if not run.is_symmetric:
        queries = generator.permutation(counts[run.record.row_side])
        return np.sort(queries[:n_rows]), np.sort(drawn[:n_columns])
    n_rows = min(n_rows, max(1, drawn.size * n_rows // (n_rows + n_columns)))
    return np.sort(drawn[:n_rows]), np.sort(drawn[n_rows : n_rows + n_columns])

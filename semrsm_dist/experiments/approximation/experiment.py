"""Approximate matchers against the optimum: what they cost, what they keep, and which window is best.

Wald et al. (2024) give run time and quality of greedy, TopK-Greedy and Batch-Optimal matching and leave open which
window to take. Here each matcher of the package matches the same pairs of images of a run. Which window is best at a
given S is answered in two ways: the fastest one that keeps a given share of the gain over no matching, and whether
the certified auction, which matches all tokens together, beats it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from semrsm_dist.config.schema import RunConfig
from semrsm_dist.engine.machine import limit_threads
from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.evaluation.bootstrap import RESAMPLES
from semrsm_dist.experiments.approximation.methods import Grid, list_methods, measure_methods
from semrsm_dist.experiments.approximation.report import draw_approximation, write_text
from semrsm_dist.experiments.approximation.table import answer_windows, tabulate_layer
from semrsm_dist.experiments.evidence import Evidence
from semrsm_dist.experiments.layer_features import LayerFeatures
from semrsm_dist.matching.matcher import check_count, check_seed, check_tolerance
from semrsm_dist.pipeline import driver
from semrsm_dist.progress import Reporter, Stage
from semrsm_dist.results.run import Run
from semrsm_dist.store.features import count_tokens

Value = TypeVar("Value", int, float)

LARGEST_EXACT = 800
"""Tokens up to which the Hungarian method is affordable; beyond, the auction at tolerance 0 gives the optimum."""

REFERENCE = 1e-3
"""Tolerance of the auction that times are compared with: its default."""


def evaluate(
    config: RunConfig,
    *,
    reporter: Reporter,
    seed: int = 0,
    n_rows: int = 5,
    n_columns: int = 16,
    rounds: int = 2,
    keep: float = 0.95,
    tolerances: Sequence[float] = (1e-1, 3e-2, 1e-2, REFERENCE, 0.0),
    inner_tolerances: Sequence[float] = (0.0, REFERENCE),
    sizes: Sequence[int] = (8, 16, 32, 64, 128, 256, 512),
) -> Evidence:
    """Match the same pairs of images by every matcher, and compare time and quality.

    Parameters
    ----------
    config
        Any run; its features are read, its own matcher does not matter.
    reporter
        Where progress is told.
    seed
        Of the sample of images, of random matchers and of the bootstrap.
    n_rows, n_columns
        Each of so many images is matched with each of so many others.
    rounds
        How often each method is timed (the slowest once); the fastest round counts.
    keep
        Share of the gain over no matching that a window must keep to be eligible as the best.
    tolerances
        Of the auction.
    inner_tolerances
        Of the match within windows, samples and projections; 0 is the paper's, exact.
    sizes
        Windows, k and samples; those below S are used.

    Raises
    ------
    ConfigError
        If a parameter is out of range.
    InputError
        As `semrsm_dist.pipeline.driver.run`, or images differ in their number of tokens.
    """
    _check(n_rows=n_rows, n_columns=n_columns, rounds=rounds)
    if not 0.0 < keep <= 1.0:
        raise ConfigError(f"keep must be above 0 and at most 1, found {keep}: it is a share of the gain")
    grid = _make_grid(tolerances, inner_tolerances, sizes, seed)
    driver.run(config, reporter=reporter)
    run = Run(config.run)
    images = _draw_images(run, n_rows, n_columns, seed)
    parts = []
    with (
        limit_threads(1),
        reporter.stage("approximation", len(run.requested_layers) * rounds * len(images[0]), "rows") as shown,
    ):
        for layer in run.requested_layers:
            part = _measure_layer(LayerFeatures(run, layer), images, grid, rounds, shown)
            parts.append(pd.concat([part, answer_windows(part, keep)], ignore_index=True).assign(layer=layer))
    table = pd.concat(parts, ignore_index=True)
    table.insert(0, "layer", table.pop("layer"))
    settings = {
        "config": config.model_dump(mode="json"),
        "seed": seed,
        "n_rows": n_rows,
        "n_columns": n_columns,
        "rounds": rounds,
        "keep": keep,
        "grid": asdict(grid),
        "processor": platform.processor() or platform.machine(),
    }
    return Evidence(
        "approximation",
        table,
        lambda figure: draw_approximation(figure, table),
        write_text(table, keep),
        settings,
    )


def _measure_layer(
    features: LayerFeatures,
    images: tuple[NDArray[np.intp], NDArray[np.intp]],
    grid: Grid,
    rounds: int,
    shown: Stage,
) -> pd.DataFrame:
    methods = list_methods(
        features.n_tokens, features.n_channels, grid, exact=features.n_tokens <= LARGEST_EXACT
    )
    rows, columns = (
        np.concatenate([features.store(side).read(slice(image, image + 1)) for image in drawn])
        for side, drawn in zip((features.query_side, "images"), images, strict=True)
    )
    if min(count_tokens(rows).min(), count_tokens(columns).min()) < features.n_tokens:
        raise InputError(
            f"layer {features.layer!r}: images differ in their number of tokens, which most approximations cannot "
            "match; judge them on images of one size"
        )
    found = measure_methods(methods, rows, columns, rounds=rounds, advance=lambda: shown.advance(1))
    return tabulate_layer(found, rows, columns, reference=REFERENCE, seed=grid.seed, resamples=RESAMPLES)


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ConfigError(f"{name} must be a positive whole number, found {count!r}")


def _make_grid(tolerances: object, inner_tolerances: object, sizes: object, seed: int) -> Grid:
    def checked(name: str, values: object, check: Callable[[object], Value]) -> set[Value]:
        if not isinstance(values, list | tuple):
            raise ConfigError(f"{name} must be a list, found {values!r}")
        return {check(value) for value in values}

    outer = checked("tolerances", tolerances, partial(check_tolerance, "auction"))
    return Grid(
        tolerances=tuple(sorted({*outer, REFERENCE, 0.0}, reverse=True)),
        inner_tolerances=tuple(
            sorted(checked("inner_tolerances", inner_tolerances, partial(check_tolerance, "batch-optimal")))
        ),
        sizes=tuple(sorted(checked("sizes", sizes, partial(check_count, "batch-optimal", "window")))),
        seed=check_seed("subsample", seed),
    )


def _draw_images(
    run: Run, n_rows: int, n_columns: int, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the images of rows and columns, never the same image; fewer of both where there are not enough."""
    generator = np.random.default_rng(seed)
    counts = run.record["counts"]
    drawn = generator.permutation(counts["images"])
    if not run.is_symmetric:
        queries = generator.permutation(counts[run.record["row_side"]])
        return np.sort(queries[:n_rows]), np.sort(drawn[:n_columns])
    n_rows = min(n_rows, max(1, drawn.size * n_rows // (n_rows + n_columns)))
    return np.sort(drawn[:n_rows]), np.sort(drawn[n_rows : n_rows + n_columns])

"""What the width of the RBF kernel, and normalising or centring tokens, do to similarities and to retrieval.

The width. `exp(-d^2 / (2 sigma^2))` falls strictly with the distance d, whatever sigma is. So the order of the images
around a query, and with it F1@k, is the same for every sigma. What sigma changes is how similarities are spread: small
ones press all pairs towards 0, large ones towards 1, where the kernel becomes linear in d^2. So the sweep measures the
linear correlation of similarities with the overlap of labels, and the share of pairs that have saturated.

The tokens. Centring changes no matching (`semrsm_dist.evaluation.centring`), but cosine, and with the mean of each
image all kernels; unit length changes the matching too. These are judged by retrieval, by what matching gains over
comparing position by position, and by the same correlation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from semrsm_dist.config.schema import RunConfig
from semrsm_dist.evaluation.bootstrap import Interval, mean_interval
from semrsm_dist.evaluation.correlation import pearson_interval
from semrsm_dist.evaluation.entries import Entries, RowReader
from semrsm_dist.evaluation.retrieval import SEMANTIC, SPATIAL, RetrievalTask
from semrsm_dist.experiments.evidence import Findings
from semrsm_dist.experiments.kernels import KernelsParameters
from semrsm_dist.experiments.kernels.report import (
    CHANGE,
    CORRELATION,
    F1,
    GAIN,
    GAP,
    NEAR_ONE,
    NEAR_ZERO,
    draw_kernels,
    write_text,
)
from semrsm_dist.experiments.kernels.token_variants import (
    AS_THEY_ARE,
    CENTRED,
    CENTRED_EACH,
    Variant,
    list_variants,
    match_variants,
)
from semrsm_dist.experiments.near_duplicates import find_groups, make_task
from semrsm_dist.experiments.query_scores import score_rows
from semrsm_dist.experiments.runs import complete_run, evaluation_folder
from semrsm_dist.matching.kernels import KERNELS
from semrsm_dist.progress import Reporter

SATURATED = 0.01
"""Similarities closer than this to 0 or 1 say little about their pair."""

Scores = dict[tuple[str, str], NDArray[np.float64]]
"""F1@1 of each query by kernel and kind."""


def evaluate(config: RunConfig, parameters: KernelsParameters, reporter: Reporter) -> Findings:
    """Sweep the width of the RBF kernel, and normalise and centre the tokens of a run on images with labels."""
    resamples, seed = parameters.resamples, parameters.seed
    run = complete_run(config, reporter)
    task = make_task(run, find_groups(run, None))
    judge = _Judge(task, task.overlap_rows(), resamples, seed)
    derived = match_variants(config, run, evaluation_folder(config) / "kernels", reporter)
    rows: list[dict[str, Any]] = []
    n_variants = len({AS_THEY_ARE, CENTRED, CENTRED_EACH, *derived})
    with reporter.stage("kernels", len(run.requested_layers) * n_variants, "variants") as shown:
        for layer in run.requested_layers:
            before: Scores = {}
            for variant in list_variants(run, derived, layer):
                if variant.name == AS_THEY_ARE:
                    rows += ({"layer": layer, **row} for row in _sweep(variant, parameters.multiples, judge))
                rows += ({"layer": layer, **row} for row in _compare(variant, judge, before))
                shown.advance(1)
    table = pd.DataFrame(rows).assign(resamples=resamples, seed=seed)
    return Findings(
        table,
        lambda figure: draw_kernels(figure, table),
        write_text(table, centring_matches=CENTRED in derived, one_label_set=task.has_one_label_set()),
        {"saturated": SATURATED},
    )


@dataclass(frozen=True, slots=True)
class _Judge:
    """What similarities are compared with."""

    task: RetrievalTask
    overlaps: RowReader
    resamples: int
    seed: int

    def score(self, variant: Variant, read: RowReader) -> NDArray[np.float64]:
        """Return F1@1 of each query."""
        return score_rows(read, self.task, variant.rows_at_once)

    def mean(self, scores: NDArray[np.float64]) -> dict[str, Any]:
        interval = mean_interval(scores, resamples=self.resamples, seed=self.seed)
        judged = int(np.count_nonzero(~np.isnan(scores)))
        return {**interval.columns(), "n": judged, "n_left_out": len(scores) - judged}

    def correlate(self, variant: Variant, read: RowReader) -> dict[str, Any]:
        """Return the correlation of similarities with the overlap of labels."""
        entries = Entries(
            read,
            self.overlaps,
            len(variant.norms_i),
            None if variant.symmetric else len(variant.norms_j),
            variant.rows_at_once,
        )
        interval, found = pearson_interval(entries, resamples=self.resamples, seed=self.seed)
        return {**interval.columns(), "n": found.n_pairs, "n_left_out": found.n_left_out}


def _sweep(variant: Variant, multiples: Sequence[float], judge: _Judge) -> Iterator[dict[str, Any]]:
    for kind in (SPATIAL, SEMANTIC):
        width = variant.median_width(kind)
        for multiple in multiples:
            read = variant.rows("rbf", kind, multiple * width)
            place = {
                "tokens": variant.name,
                "kernel": "rbf",
                "kind": kind,
                "multiple": float(multiple),
                "sigma": multiple * width,
            }
            yield {**place, "quantity": CORRELATION, **judge.correlate(variant, read)}
            for quantity, share, count in _shares(variant, read):
                yield {**place, "quantity": quantity, **_plain(share, count)}


def _shares(variant: Variant, read: RowReader) -> Iterator[tuple[str, float, int]]:
    """Yield the shares of pairs whose similarity is next to 0 and next to 1."""
    count = low = high = 0
    for rows in variant.blocks():
        values = read(rows)[variant.is_pair(rows)]
        values = values[~np.isnan(values)]
        count += values.size
        low += int(np.count_nonzero(values < SATURATED))
        high += int(np.count_nonzero(values > 1 - SATURATED))
    for quantity, found in ((NEAR_ZERO, low), (NEAR_ONE, high)):
        yield quantity, found / count if count else np.nan, count


def _compare(variant: Variant, judge: _Judge, before: Scores) -> Iterator[dict[str, Any]]:
    """Yield what a variant gives; the scores of the first, tokens as they are, are kept in `before` for the others."""
    yield {
        "tokens": variant.name,
        "kernel": "cosine",
        "kind": SEMANTIC,
        "quantity": GAP,
        **_plain(variant.largest_gap(), 0),
    }
    for kernel in KERNELS:
        scores: dict[str, NDArray[np.float64]] = {}
        for kind in (SPATIAL, SEMANTIC):
            sigma = variant.median_width(kind) if kernel == "rbf" else None
            read = variant.rows(kernel, kind, sigma)
            place = {"tokens": variant.name, "kernel": kernel, "kind": kind}
            scores[kind] = judge.score(variant, read)
            yield {**place, "quantity": F1, **judge.mean(scores[kind])}
            if variant.name == AS_THEY_ARE:
                before[kernel, kind] = scores[kind]
            else:
                yield {**place, "quantity": CHANGE, **judge.mean(scores[kind] - before[kernel, kind])}
            is_in_sweep = kernel == "rbf" and variant.name == AS_THEY_ARE
            if not is_in_sweep:
                yield {**place, "sigma": sigma, "quantity": CORRELATION, **judge.correlate(variant, read)}
        yield {
            "tokens": variant.name,
            "kernel": kernel,
            "kind": f"{SEMANTIC} less {SPATIAL}",
            "quantity": GAIN,
            **judge.mean(scores[SEMANTIC] - scores[SPATIAL]),
        }


def _plain(value: float, n: int) -> dict[str, Any]:
    return {**Interval(value, np.nan, np.nan, np.nan).columns(), "n": n, "n_left_out": 0}

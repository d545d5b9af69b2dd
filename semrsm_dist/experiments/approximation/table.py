"""Measured matchers as a tidy table, and what it says about windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from semrsm_dist.evaluation.bootstrap import CONFIDENCE, Interval, draw_counts, percentile_interval
from semrsm_dist.evaluation.match_quality import judge_matches, mean_over_pairs, pareto_front
from semrsm_dist.experiments.approximation import REFERENCE
from semrsm_dist.experiments.approximation.methods import Measurement

SECONDS, PREPARE = "seconds a pair", "seconds to prepare an image"
BY_HUNGARIAN, BY_AUCTION = "time relative to hungarian", "time relative to auction"
RATIO, SHARE, LOSS = "ratio to optimum", "share of the gain", "cosine loss"
GAP, OPTIMUM_GAP = "certified cosine gap", "cosine gap of the optimum"
FRONT, BEST, BEATEN = "on the front", "best window", "best window beaten by the auction"
"""The quantities of the table."""

METHOD = ["matcher", "parameter", "size", "tolerance"]

DIGITS = 4
"""Shares that are equal to this many digits count as equal."""


def tabulate_layer(
    found: Sequence[Measurement], rows: NDArray[Any], columns: NDArray[Any], *, seed: int
) -> pd.DataFrame:
    """Return one row per method and quantity on (R, S, C) and (K, S, C), with intervals over images where it varies."""
    norms = np.outer(*(np.sqrt(np.sum(z.astype(np.float64) ** 2, axis=(1, 2))) for z in (rows, columns)))
    by_name = {(one.method.matcher, one.method.tolerance): one for one in found}
    hungarian = next((one for one in found if one.method.matcher == "hungarian"), None)
    references = {BY_HUNGARIAN: hungarian, BY_AUCTION: by_name["auction", REFERENCE]}
    best = hungarian or by_name["auction", 0.0]
    before = {"n_tokens": rows.shape[1], "n_channels": rows.shape[2]}
    n_rows, n_columns = norms.shape
    counts = {"n_rows": n_rows, "n_columns": n_columns, "n_pairs": n_rows * n_columns}
    return _with_front(
        pd.DataFrame(
            {
                **before,
                **{name: getattr(one.method, name) for name in METHOD},
                "quantity": quantity,
                **interval.columns(),
                **counts,
                "n_undefined": n_undefined,
                "seed": seed,
            }
            for one in found
            for quantity, interval, n_undefined in _judge(one, best, references, norms, seed)
        )
    )


def _judge(
    one: Measurement,
    best: Measurement,
    references: Mapping[str, Measurement | None],
    norms: NDArray[np.float64],
    seed: int,
) -> Iterator[tuple[str, Interval, int]]:
    """Yield the quantities of a method, and of how many pairs each is undefined."""
    seconds, counts = np.min(one.pair_seconds, axis=0), draw_counts(len(norms), seed=seed)
    yield SECONDS, _ratio_of_means(seconds, np.ones_like(seconds), counts), 0
    prepare = float(np.min(one.image_seconds, axis=0).mean())
    yield PREPARE, Interval(prepare, np.nan, np.nan, CONFIDENCE), 0
    for quantity, other in references.items():
        if other is not None:
            yield quantity, _ratio_of_means(seconds, np.min(other.pair_seconds, axis=0), counts), 0
    optimum_gap = _cosine_gap(best, norms)
    accuracy = float(np.nanmax(optimum_gap)) if np.isfinite(optimum_gap).any() else 0.0
    quality = judge_matches(one.matched, one.identity, best.matched, norms, accuracy)
    gap = _cosine_gap(one, norms)
    judged = {RATIO: quality.ratio, SHARE: quality.share, LOSS: quality.loss, GAP: gap}
    for quantity, values in (judged | ({OPTIMUM_GAP: gap} if one is best else {})).items():
        yield quantity, mean_over_pairs(values, seed=seed), int(np.isnan(values).sum())


def _cosine_gap(one: Measurement, norms: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        gap: NDArray[np.float64] = np.where(norms > 0.0, (one.upper_bound - one.matched) / norms, np.nan)
    return gap


def answer_windows(table: pd.DataFrame, keep: float) -> pd.DataFrame:
    """Return the best window of each windowed matcher of one layer, and whether the auction beats it.

    The best window is the fastest one whose mean share of the gain is at least `keep`; NaN if there is none. The
    auction beats it if, at some tolerance, it takes no longer and keeps no less.
    """
    wide = by_method(table)
    wide[SHARE] = wide[SHARE].round(DIGITS)
    auction = wide[wide["matcher"] == "auction"]
    answers = []
    windowed = wide[wide["parameter"] == "window"]
    for (matcher, tolerance), tried in windowed.groupby(["matcher", "tolerance"], sort=False):
        kept = tried[tried[SHARE] >= keep]
        best = kept.loc[kept[SECONDS].idxmin()] if len(kept) else None
        beaten = np.nan
        if best is not None:
            beaten = float(((auction[SECONDS] <= best[SECONDS]) & (auction[SHARE] >= best[SHARE])).any())
        window = np.nan if best is None else float(best["size"])
        for quantity, value in ((BEST, window), (BEATEN, beaten)):
            place = {"matcher": matcher, "parameter": "window", "size": np.nan, "tolerance": tolerance}
            found = {"quantity": quantity, "value": value, "low": np.nan, "high": np.nan, "n_undefined": 0}
            answers.append({**table.iloc[0].to_dict(), **place, **found})
    return pd.DataFrame(answers, columns=table.columns).astype(table.dtypes)


def by_method(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per method of one layer, one column per quantity."""
    measured = table[~table["quantity"].isin([BEST, BEATEN])]
    return pd.DataFrame(
        dict(zip(METHOD, method, strict=True)) | dict(zip(part["quantity"], part["value"], strict=True))
        for method, part in measured.groupby(METHOD, sort=False, dropna=False)
    )


def _ratio_of_means(
    values: NDArray[np.float64], others: NDArray[np.float64], counts: NDArray[np.int64]
) -> Interval:
    """Return the mean of `values` over that of `others`, both one per row image; the images are resampled together.

    There is no interval with one image.
    """
    if values.size == 1:
        return Interval(float(values[0] / others[0]), np.nan, np.nan, CONFIDENCE)
    return percentile_interval(float(values.mean() / others.mean()), (counts @ values) / (counts @ others))


def _with_front(table: pd.DataFrame) -> pd.DataFrame:
    """Add for each method whether it is on the Pareto front of time and share of the gain."""
    seconds, share = (table[table["quantity"] == quantity] for quantity in (SECONDS, SHARE))
    front = seconds.assign(
        quantity=FRONT,
        value=pareto_front(seconds["value"], share["value"].round(DIGITS)).astype(float),
        low=np.nan,
        high=np.nan,
    )
    return pd.concat([table, front], ignore_index=True)

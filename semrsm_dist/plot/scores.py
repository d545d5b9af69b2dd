"""Retrieval scores over the layers of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.evaluation.retrieval import CHANCE, POOLED, SEMANTIC, SPATIAL
from semrsm_dist.plot.figures import axes_or_current
from semrsm_dist.plot.looks import draw_beside, name_layers, style_names
from semrsm_dist.results.run import Run

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

COLOURS = {SPATIAL: "#8c8c8c", POOLED: "#d9a441", SEMANTIC: "#2a6f97"}
"""Of the methods that every run is scored by, in the order in which they are drawn."""

NUMBERED = 6
"""Layers of which the bars have their values written above."""


def retrieval(
    scores: Run | pd.DataFrame, *, k: int | None = None, legend: bool = True, ax: Axes | None = None
) -> Axes:
    """Draw how well the most similar images fit their queries, by layer and method.

    Parameters
    ----------
    scores : Run or pandas.DataFrame
        A finished run whose images have labels, or the table of the experiment `retrieval`: columns `layer`, `method`,
        `k` and `f1`, and with them, as intervals, `low` and `high`. Differences, other kernels than cosine and, of
        several ways to handle near-duplicates, all but the first are left out.
    k
        Hits of a query; by default the fewest that were scored.
    legend
        Name the methods above the axes.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default the current axes.

    Returns
    -------
    matplotlib.axes.Axes
        With bars, or where there are intervals, points.

    Raises
    ------
    ConfigError
        If there are no scores for this `k`.
    InputError
        If it is neither a run nor a table, a table lacks a column, or there are no scores at all.
    IncompleteError
        If no session of the run has finished.
    """
    if not isinstance(scores, Run) and not hasattr(scores, "columns"):
        raise InputError(f"expected a run, or a table of retrieval scores, found {scores!r:.100}")
    if isinstance(scores, Run):
        scores = as_table(scores.summary()["retrieval"])
    table = select_scores(scores)
    known = sorted(set(table["k"]))
    k = known[0] if k is None else k
    if k not in known:
        raise ConfigError(
            f"k: {k!r}: there are scores for {', '.join(map(str, known))} only; srs.evaluate('retrieval', ...) scores "
            "others, with its parameter k"
        )
    part = table[table["k"] == k]
    layers = list(dict.fromkeys(part["layer"]))
    axes = axes_or_current(ax)
    draw = _draw_points if "low" in part else _draw_bars
    draw(axes, part, layers)
    axes.set_ylabel(f"retrieval F1@{k}")
    name_layers(axes, layers)
    if legend:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9)
    return axes


def as_table(scores: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the scores of a run's summary as a table."""
    import pandas as pd  # noqa: PLC0415 - slow to load, and every session of a run draws its picture

    return pd.DataFrame(scores)


def select_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of methods by cosine, with near-duplicates handled in the first of several ways.

    Raises InputError if the table lacks a column, or has no scores.
    """
    missing = {"layer", "method", "k", "f1"} - set(table.columns)
    if table.empty or missing:
        raise InputError(
            "there are no retrieval scores: expected a run whose images have labels, or the table of the experiment "
            f"retrieval{f'; missing are the columns {sorted(missing)}' if missing and not table.empty else ''}"
        )
    chosen = np.ones(len(table), bool)
    if "against" in table:
        chosen &= table["against"].isna().to_numpy()
    if "kernel" in table:
        chosen &= table["kernel"].isin(["cosine", "-"]).to_numpy()
    if "groups" in table:
        chosen &= (table["groups"] == table["groups"].iloc[0]).to_numpy()
    return table[chosen]


def _draw_bars(axes: Axes, scores: pd.DataFrame, layers: Sequence[str]) -> None:
    found = dict(zip(zip(scores["layer"], scores["method"], strict=True), scores["f1"], strict=True))
    methods = [method for method in COLOURS if method in set(scores["method"])]
    width = 0.78 / len(methods)
    for position, method in enumerate(methods):
        heights = [found.get((layer, method)) for layer in layers]
        bars = axes.bar(
            np.arange(len(layers)) + (position - (len(methods) - 1) / 2) * width,
            [np.nan if height is None else height for height in heights],
            width,
            color=COLOURS[method],
            label=method,
        )
        if len(layers) <= NUMBERED:
            axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_ylim(0, 1.05)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_points(axes: Axes, scores: pd.DataFrame, layers: Sequence[str]) -> None:
    """Draw the methods side by side at each layer, and chance across all of them."""
    looks = style_names(scores["method"])
    has_chance = looks.pop(CHANCE, None) is not None
    draw_beside(axes, scores, looks, by="method", ticks=layers, value="f1")
    if has_chance:
        chance = scores[scores["method"] == CHANCE].set_index("layer")["f1"].reindex(layers)
        middles = np.arange(len(layers))
        axes.hlines(chance, middles - 0.4, middles + 0.4, color="grey", linestyle="--", label=CHANCE)
    axes.grid(axis="y", alpha=0.3)

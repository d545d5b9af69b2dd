"""Kernels, widths and treated tokens in words and as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from semrsm_dist.evaluation.retrieval import SEMANTIC, SPATIAL
from semrsm_dist.experiments.tables import write_grid, write_interval, write_number
from semrsm_dist.plot.looks import draw_beside, name_layers, share_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CORRELATION, F1, GAIN = "correlation with label overlap", "F1@1", "gain in F1@1"
CHANGE = "change of F1@1 from tokens as they are"
NEAR_ZERO, NEAR_ONE, GAP = "share of pairs near 0", "share of pairs near 1", "largest certified cosine gap"
"""The quantities of the table."""

STYLES = {SPATIAL: "--", SEMANTIC: "-"}
"""Lines of the sweep, in which colours tell layers apart."""


def write_text(table: pd.DataFrame, *, centring_matches: bool = False, one_label_set: bool = False) -> str:
    """Return the sweep of widths, then what treated tokens give.

    `centring_matches` if centred tokens had to be matched again, `one_label_set` if all images have the same labels.
    """
    unchanged = (
        "Images differ in their number of tokens: centring decides which find a partner, so matching was repeated."
        if centring_matches
        else "The data set's mean matters neither to distances nor to RBF; neither mean matters to the matching."
    )
    parts = [_write_sweep(table), f"{_write_tokens(table)}\n{unchanged}"]
    if one_label_set:
        parts.append(
            "note: all labelled images have the same labels: every hit is right, and the correlation with the overlap "
            "of labels is undefined"
        )
    return "\n\n".join(parts)


def _write_sweep(table: pd.DataFrame) -> str:
    sweep = table[table["multiple"].notna()]
    parts = [
        "RBF width in units of the median width; F1@k is the same for every width, as the order of distances is.",
    ]
    for quantity in (CORRELATION, NEAR_ZERO, NEAR_ONE):
        shown = sweep[sweep["quantity"] == quantity]
        parts.append(f"{quantity}:\n{write_grid(shown, 'value', ['layer', 'kind'], 'multiple')}")
    return "\n\n".join(parts)


def _write_tokens(table: pd.DataFrame) -> str:
    rows = []
    for (layer, tokens), part in table[table["kernel"] == "cosine"].groupby(["layer", "tokens"], sort=False):
        cells = {
            f"{label} {kind}": _value(part, quantity, kind)
            for quantity, label in ((F1, "F1@1"), (CORRELATION, "r"))
            for kind in STYLES
        }
        changes = {
            label: _interval(part[(part["quantity"] == quantity) & (part["kind"] != SPATIAL)])
            for quantity, label in ((GAIN, "gain of matching"), (CHANGE, "change"))
        }
        gap = f"{_value(part, GAP, SEMANTIC):.1e}"
        rows.append({"layer": layer, "tokens": tokens, **cells, **changes, "gap": gap})
    listed: str = pd.DataFrame(rows).to_string(index=False, float_format=write_number, na_rep="-")
    return (
        "tokens, by cosine (r: correlation with label overlap; gap: largest certified one on the cosine scale):\n"
        f"{listed}\nchange: of F1@1 by semantic cosine from tokens as they are, mean over queries [interval]"
    )


def _value(part: pd.DataFrame, quantity: str, kind: str) -> float:
    return float(part[(part["quantity"] == quantity) & (part["kind"] == kind)]["value"].iloc[0])


def _interval(rows: pd.DataFrame) -> str:
    return "-" if rows.empty else write_interval(rows.iloc[0])


def draw_kernels(figure: Figure, table: pd.DataFrame) -> None:
    """Draw the sweep of widths beside the gain of matching for each treatment of tokens."""
    from matplotlib import colormaps  # noqa: PLC0415 - slow to load

    layers = list(dict.fromkeys(table["layer"]))
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
    figure.set_size_inches(15, 5.8)
    sweep, treatments = figure.subfigures(1, 2, squeeze=False, width_ratios=[2, 1.2])[0]
    correlation, saturation = sweep.subplots(1, 2)
    gains = treatments.subplots()
    for layer, shade in zip(layers, shades, strict=True):
        for kind, style in STYLES.items():
            chosen = table[(table["layer"] == layer) & (table["kind"] == kind) & table["multiple"].notna()]
            found = chosen[chosen["quantity"] == CORRELATION]
            label = f"{layer}, {kind}"
            correlation.plot(
                found["multiple"], found["value"], style, color=shade, marker="o", markersize=4, label=label
            )
            correlation.fill_between(found["multiple"], found["low"], found["high"], color=shade, alpha=0.12)
            shares = chosen[chosen["quantity"].isin([NEAR_ZERO, NEAR_ONE])].groupby("multiple")["value"].sum()
            saturation.plot(shares.index, shares, style, color=shade, marker="o", markersize=4)
    for axes, quantities in ((correlation, [CORRELATION]), (saturation, [NEAR_ZERO, NEAR_ONE])):
        drawn = table[table["quantity"].isin(quantities) & table["multiple"].notna()]
        if drawn["value"].notna().any():  # an empty axis has no logarithm
            axes.set_xscale("log", base=2)
        axes.set_xlabel("RBF width / median width")
        axes.grid(alpha=0.3)
    correlation.set(ylabel="Pearson correlation", title="RBF similarity and overlap of labels")
    saturation.set(ylabel="share of pairs", title="RBF similarity within 0.01 of 0 or 1", ylim=(-0.03, 1.03))
    _draw_gains(gains, table, layers)
    share_legend(sweep, [correlation], ncols=4)
    share_legend(treatments, [gains], ncols=2)


def _draw_gains(axes: Axes, table: pd.DataFrame, layers: list[str]) -> None:
    chosen = table[(table["quantity"] == GAIN) & (table["kernel"] == "cosine")]
    draw_beside(axes, chosen, {tokens: {} for tokens in chosen["tokens"]}, by="tokens", ticks=layers)
    axes.axhline(0, color="black", linewidth=0.8)
    name_layers(axes, layers)
    axes.set(
        ylabel="F1@1, semantic less spatio-semantic", title="What matching gains by cosine, for tokens..."
    )
    axes.grid(axis="y", alpha=0.3)

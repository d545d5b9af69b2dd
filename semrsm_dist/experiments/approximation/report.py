"""Approximate matchers in words and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from semrsm_dist.errors import counted
from semrsm_dist.experiments.approximation.table import (
    BEATEN,
    BEST,
    BY_AUCTION,
    BY_HUNGARIAN,
    FRONT,
    RATIO,
    SECONDS,
    SHARE,
    by_method,
)
from semrsm_dist.experiments.tables import write_number
from semrsm_dist.plot.looks import count_rows, make_panels, share_legend, style_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_LOSS = 1e-4
"""Smaller losses are drawn here."""


def write_text(table: pd.DataFrame, keep: float) -> str:
    """Return, layer by layer, the fastest setting of each matcher that keeps `keep` of the gain, and what beats it."""
    parts = [
        f"Of each matcher the fastest setting that keeps {keep:.0%} of the gain over no matching, or else the one that "
        "keeps most.\nTimes are processor time of one thread; * marks settings that none beats in both time and share."
    ]
    for layer, part in table.groupby("layer", sort=False):
        facts = part.iloc[0]
        parts.append(
            f"{layer}: S = {facts['n_tokens']}, C = {facts['n_channels']}, {facts['n_pairs']} pairs of "
            f"{facts['n_rows']} with {facts['n_columns']} images\n{_list_methods(part, keep)}\n"
            f"{_answer(part, keep)}{_undefined(part)}"
        )
    return "\n\n".join(parts)


def _list_methods(part: pd.DataFrame, keep: float) -> str:
    wide = by_method(part)
    lines = []
    for matcher, tried in wide.groupby("matcher", sort=False):
        kept = tried[tried[SHARE] >= keep]
        if len(kept):
            chosen = kept.loc[kept[SECONDS].idxmin()]
        elif tried[SHARE].notna().any():
            chosen = tried.loc[tried[SHARE].idxmax()]
        else:
            chosen = tried.iloc[0]
        hungarian = chosen.get(BY_HUNGARIAN, np.nan)
        lines.append(
            {
                "matcher": f"{matcher}{' *' if chosen[FRONT] else ''}",
                "setting": _setting(chosen),
                "ms a pair": f"{1e3 * chosen[SECONDS]:.3f}",
                "x hungarian": "-" if np.isnan(hungarian) else f"{hungarian:.2g}",
                "x auction 1e-3": f"{chosen[BY_AUCTION]:.2g}",
                "of optimum": write_number(chosen[RATIO]),
                "share of gain": f"{write_number(chosen[SHARE])} {_interval(part, chosen)}",
            }
        )
    listed: str = pd.DataFrame(lines).to_string(index=False)
    return listed


def _setting(row: pd.Series) -> str:
    size = f"{row['parameter']} {row['size']:.0f}" if row["parameter"] else ""
    tolerance = "" if np.isnan(row["tolerance"]) else f"tolerance {row['tolerance']:g}"
    return ", ".join(filter(None, (size, tolerance))) or "-"


def _interval(part: pd.DataFrame, chosen: pd.Series) -> str:
    same = (part["matcher"] == chosen["matcher"]) & (part["quantity"] == SHARE)
    for name in ("size", "tolerance"):
        same &= part[name].isna() if np.isnan(chosen[name]) else part[name] == chosen[name]
    row = part[same].iloc[0]
    return f"[{write_number(row['low'])}, {write_number(row['high'])}]"


def _answer(part: pd.DataFrame, keep: float) -> str:
    """Return which window is best, matcher by matcher."""
    if part.loc[part["quantity"] == SHARE, "value"].isna().all():
        return "best window: undefined, since matching gains nothing in any pair"
    sentences = []
    beaten = part[part["quantity"] == BEATEN].set_index(["matcher", "tolerance"])["value"]
    for _, row in part[part["quantity"] == BEST].iterrows():
        inside = "exact inside" if row["tolerance"] == 0.0 else f"tolerance {row['tolerance']:g} inside"
        if np.isnan(row["value"]):
            verdict = f"none below S keeps {keep:.0%}: match all tokens together"
        elif beaten[row["matcher"], row["tolerance"]]:
            verdict = (
                f"{row['value']:.0f}, but the certified auction of all tokens is as fast and keeps as much"
            )
        else:
            verdict = f"{row['value']:.0f}, faster than any auction tried that keeps as much"
        sentences.append(f"best window of {row['matcher']} ({inside}): {verdict}")
    return "\n".join(sentences) or "no window is smaller than S: match all tokens together"


def _undefined(part: pd.DataFrame) -> str:
    counts = {
        what: int(part.loc[part["quantity"] == quantity, "n_undefined"].max())
        for quantity, what in ((SHARE, "nothing to gain"), (RATIO, "no positive optimum"))
    }
    left_out = [f"{counted(count, 'pair')} with {what}" for what, count in counts.items() if count]
    return f"\nleft out: {', '.join(left_out)}" if left_out else ""


def draw_approximation(figure: Figure, table: pd.DataFrame) -> None:
    """Draw the share of the gain that is lost against time, one panel per layer."""
    layers = list(table["layer"].unique())
    across = min(2, len(layers))
    figure.set_size_inches(6.2 * across, 4.0 * count_rows(len(layers), 2) + 2.8 / across)
    panels = make_panels(figure, len(layers), across=2)
    looks = style_names(table["matcher"])
    for axes, layer in zip(panels, layers, strict=True):
        _draw_layer(axes, table[table["layer"] == layer], looks)
        axes.set(xlabel="milliseconds a pair", ylabel="share of the gain lost")
    share_legend(figure, panels, ncols=2 * across)


def _draw_layer(axis: Axes, part: pd.DataFrame, looks: Mapping[str, Mapping[str, Any]]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: PLC0415 - slow to load

    wide = by_method(part).dropna(subset=[SHARE])
    wide["loss"] = np.clip(1.0 - wide[SHARE], LEAST_LOSS, None)
    wide["ms"] = 1e3 * wide[SECONDS]
    front = wide[wide[FRONT] == 1.0].sort_values("ms")
    axis.step(
        front["ms"], front["loss"], where="post", color="0.8", linewidth=5, label="Pareto front", zorder=1
    )
    for matcher, tried in wide.groupby("matcher", sort=False):
        style = {**looks[str(matcher)], "linewidth": 1.0, "markersize": 5}
        if matcher == "auction":  # its tolerance is what is varied
            axis.plot(tried["ms"], tried["loss"], label=matcher, zorder=3, **style)
            continue
        for tolerance, line in tried.groupby("tolerance", sort=False, dropna=False):
            is_exact = not tolerance > 0.0
            look = {} if is_exact else {"linestyle": ":", "markerfacecolor": "white"}
            label = str(matcher) if is_exact else f"{matcher}, tolerance {tolerance:g} inside"
            axis.plot(line["ms"], line["loss"], label=label, zorder=2, **style | look)
            if is_exact:
                _name_sizes(axis, line, style["color"])
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", labelsize=8)
    axis.set_yscale("log")
    axis.set_ylim(1.6, LEAST_LOSS / 1.6)  # upwards is better
    axis.set_yticks([1, 0.1, 0.01, 1e-3, LEAST_LOSS], ["all", "10 %", "1 %", "0.1 %", "0.01 %\nor less"])
    facts = part.iloc[0]
    axis.set_title(f"{facts['layer']}: S = {facts['n_tokens']}, C = {facts['n_channels']}", fontsize=10)
    axis.grid(alpha=0.3)


def _name_sizes(axis: Axes, line: pd.DataFrame, colour: str) -> None:
    for _, row in line[line["size"].notna()].iterrows():
        axis.annotate(
            f"{row['size']:.0f}",
            (row["ms"], row["loss"]),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=6,
            color=colour,
        )

"""The gain of permutation invariance as words and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from semrsm_dist.evaluation.retrieval import SEMANTIC
from semrsm_dist.experiments.conditions.grid import FACTORS
from semrsm_dist.experiments.tables import count_verdicts, write_grid, write_interval
from semrsm_dist.plot.looks import count_rows, draw_beside, make_panels, share_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS_ACROSS = 4


def write_text(table: pd.DataFrame, left_out: Sequence[str]) -> str:
    """Return F1@1 of all methods and the gain of semantic similarity, condition by condition, and who wins where."""
    confidence, n = table["confidence"].iloc[0], table["n"].max()
    parts = [
        f"F1@1 over {n} queries a condition; gain: semantic less spatio-semantic, paired by query "
        f"[{confidence:.0%} interval]"
    ]
    for (factor, layer), part in table.groupby(["factor", "layer"], sort=False):
        gains = part[part["method"] == SEMANTIC]
        cells = [
            part,
            gains.assign(method="gain", f1=[write_interval(row, "gain") for _, row in gains.iterrows()]),
        ]
        shown = pd.concat(cells).assign(level=lambda rows: rows["level"].map("{:.3g}".format))
        parts.append(f"{FACTORS[factor]}, {layer}:\n{write_grid(shown, 'f1', 'level', 'method')}")
    parts.append("\n".join(_summarise(table[table["method"] == SEMANTIC])))
    if left_out:
        parts.append(
            "left out, as the base scenes do not allow it:\n" + "\n".join(f"  {item}" for item in left_out)
        )
    return "\n\n".join(parts)


def _summarise(gains: pd.DataFrame) -> Iterator[str]:
    yield "semantic against spatio-semantic, by interval:"
    for factor, part in gains.groupby("factor", sort=False):
        least, most = part["level"].min(), part["level"].max()
        better, worse, undecided = count_verdicts(part)
        ends = part[part["level"].isin([least, most])].sort_values("level")
        changes = ", ".join(
            f"{layer} {' to '.join(f'{gain:+.2f}' for gain in gains)}"
            for layer, gains in ends.groupby("layer", sort=False)["gain"]
        )
        yield (
            f"  {factor}: better in {better}, worse in {worse}, undecided in {undecided} of "
            f"{len(part)} (levels x layers); gain from {least:.3g} to {most:.3g}: {changes}"
        )


def draw_gains(figure: Figure, table: pd.DataFrame) -> None:
    """Draw the gain against each factor, with intervals: one panel per factor, one line per layer."""
    factors = list(dict.fromkeys(table["factor"]))
    across = min(len(factors), PANELS_ACROSS)
    figure.set_size_inches(max(3.4 * across, 6.5), 3.1 * count_rows(len(factors), across) + 0.4)
    panels = make_panels(figure, len(factors), across=across, sharey=True)
    for axes, factor in zip(panels, factors, strict=True):
        _draw_factor(axes, table[(table["factor"] == factor) & (table["method"] == SEMANTIC)])
        axes.set_xlabel(FACTORS[factor].replace(": ", ":\n"), fontsize=8)
    figure.supylabel("gain in F1@1, semantic less spatio-semantic", fontsize=10)
    share_legend(figure, panels[:1], ncols=6)


def _draw_factor(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw levels side by side at equal distances: those of displacement are far from evenly spread."""
    levels = sorted(set(rows["level"]))
    layers = list(dict.fromkeys(rows["layer"]))
    looks = {layer: {"linestyle": "-", "linewidth": 1.2} for layer in layers}
    draw_beside(
        axes,
        rows.sort_values("level"),
        looks,
        by="layer",
        ticks=levels,
        over="level",
        value="gain",
        spread=0.16 * len(layers),
    )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(levels)), [f"{level:.3g}" for level in levels])
    axes.grid(axis="y", alpha=0.3)

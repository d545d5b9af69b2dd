"""Changes to matching in words and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from semrsm_dist.evaluation.retrieval import SEMANTIC
from semrsm_dist.experiments.improvements.candidates import POOLING
from semrsm_dist.experiments.tables import SIGNIFICANT, mark_interval, write_grid, write_number, write_range
from semrsm_dist.plot.looks import draw_beside, name_layers, share_legend, style_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHOOSING, REPORTED = "F1@1 of the half that chooses", "F1@1 of the other half"
"""The quantities of the table; with `against`, the second is a difference."""


def write_text(table: pd.DataFrame, notes: Sequence[str]) -> str:
    """Return F1 of each family with its chosen setting, and what is better than matching and than pooling."""
    chose = table[table["quantity"] == CHOOSING]
    reported = table[table["quantity"] == REPORTED]
    scores = reported[reported["against"].isna()]
    named = scores.assign(
        cell=[
            write_number(row["value"]) + (f" ({row['setting']})" if row["setting"] else "")
            for _, row in scores.iterrows()
        ]
    )
    parts = [
        f"F1@1 over {write_range(scores['n'])} queries (setting, chosen by {write_range(chose['n'])} other queries):\n"
        + write_grid(named, "cell", "family", "layer")
    ]
    for against in (SEMANTIC, POOLING):
        compared = reported[reported["against"] == against]
        shown = compared.assign(cell=[mark_interval(row) for _, row in compared.iterrows()])
        parts.append(
            f"less {against}, mean over queries [{compared['confidence'].iloc[0]:.0%} interval]; *: p < {SIGNIFICANT} "
            f"after Holm's adjustment for {compared['p_holm'].count()} comparisons:\n"
            + write_grid(shown, "cell", "family", "layer")
        )
    parts.append("\n".join(_conclude(reported)))
    return "\n\n".join([*parts, *(f"note: {note}" for note in notes)])


def _conclude(reported: pd.DataFrame) -> Iterator[str]:
    against = reported[(reported["against"] == POOLING) & (reported["p_holm"] < SIGNIFICANT)]
    for layer in dict.fromkeys(reported["layer"]):
        here = against[against["layer"] == layer]
        better, worse = here[here["value"] > 0]["family"], here[here["value"] < 0]["family"]
        yield (
            f"{layer}: better than pooling for sure: {', '.join(better) or 'nothing'}; worse: "
            f"{', '.join(worse) or 'nothing'}"
        )


def draw_improvements(figure: Figure, table: pd.DataFrame) -> None:
    """Draw F1 of each family over the layers, with intervals."""
    scores = table[(table["quantity"] == REPORTED) & table["against"].isna()]
    layers = list(dict.fromkeys(scores["layer"]))
    figure.set_size_inches(max(3.2 * len(layers), 7.0), 4.6)
    axes = figure.subplots()
    draw_beside(axes, scores, style_names(scores["family"]), by="family", ticks=layers, spread=0.8)
    for place in np.arange(len(layers) - 1):
        axes.axvline(place + 0.5, color="0.85", linewidth=0.8)
    name_layers(axes, layers)
    axes.set(ylabel="F1@1 with 95% intervals")
    axes.grid(axis="y", alpha=0.3)
    share_legend(figure, [axes], ncols=5)

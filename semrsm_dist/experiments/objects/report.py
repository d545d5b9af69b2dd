"""The gain against the objects of an image, in words and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from semrsm_dist.evaluation.retrieval import SEMANTIC
from semrsm_dist.experiments.objects.boxes import PREDICTORS
from semrsm_dist.experiments.tables import SIGNIFICANT, mark_interval, write_grid, write_interval
from semrsm_dist.plot.looks import draw_beside, make_panels, share_legend, style_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAIN, SLOPE, LEVEL = "mean gain", "slope", "mean gain of a third"
"""The quantities of the table."""


def write_text(table: pd.DataFrame, correlations: pd.DataFrame, notes: Sequence[str]) -> str:
    """Return slopes and mean gains, which slopes are not chance, and how the predictors go together."""
    first = table.iloc[0]
    slopes = table[table["quantity"] == SLOPE]
    shown = slopes.assign(value=[mark_interval(row) for _, row in slopes.iterrows()])
    gains = table[table["quantity"] == GAIN]
    levels = table[table["quantity"] == LEVEL].assign(
        level=lambda rows: rows["level"] + " (" + rows["predictor_mean"].map("{:.2f}".format) + ")"
    )
    parts = [
        f"gain of a query in F1@1, {SEMANTIC} less the other, over {first['n']} queries with boxes "
        f"({first['n_left_out']} left out), mean [{first['confidence']:.0%} interval]:\n"
        + write_grid(
            gains.assign(value=[write_interval(row) for _, row in gains.iterrows()]),
            "value",
            "against",
            "layer",
        ),
        "change of the gain with one standard deviation more of each predictor, the others held fixed [interval]; "
        f"*: p < {SIGNIFICANT} after Holm's adjustment for {len(slopes)} slopes:\n"
        + write_grid(shown, "value", ["against", "layer"], "predictor"),
    ]
    for predictor, rows in levels.groupby("predictor", sort=False):
        parts.append(f"mean gain by {predictor}:\n{write_grid(rows, 'value', ['against', 'layer'], 'level')}")
    parts.append(
        "predictors:\n"
        + "\n".join(f"  {name}: {meaning}" for name, meaning in PREDICTORS.items())
        + "\ncorrelations:\n"
        + correlations.to_string(float_format=lambda value: f"{value:.2f}")
    )
    return "\n\n".join([*parts, *(f"note: {note}" for note in notes)])


def draw_slopes(figure: Figure, table: pd.DataFrame) -> None:
    """Draw the slopes with intervals: a panel for each baseline, predictors side by side, layers by colour."""
    slopes = table[table["quantity"] == SLOPE]
    rivals, layers, predictors = (
        list(dict.fromkeys(slopes[name])) for name in ("against", "layer", "predictor")
    )
    figure.set_size_inches(max(5.0 * len(rivals), 7.0), 4.2)
    panels = make_panels(figure, len(rivals), across=len(rivals), sharey=True)
    for panel, against in zip(panels, rivals, strict=True):
        chosen = slopes[slopes["against"] == against]
        draw_beside(panel, chosen, style_names(layers), by="layer", ticks=predictors, over="predictor")
        panel.axhline(0, color="black", linewidth=0.8)
        panel.set_xticks(range(len(predictors)), predictors)
        panel.set_title(f"{SEMANTIC} less {against}", fontsize=10)
        panel.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("change of the gain in F1@1\nper standard deviation")
    share_legend(figure, panels[:1], ncols=4)

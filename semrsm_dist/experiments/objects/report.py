"""The gain against the objects of an image, in words and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from semrsm_dist.evaluation.retrieval import SEMANTIC
from semrsm_dist.experiments.objects.boxes import PREDICTORS
from semrsm_dist.experiments.tables import SIGNIFICANT, mark_interval, write_grid, write_interval, write_range
from semrsm_dist.plot.looks import draw_beside, make_panels, share_legend, style_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAIN, SLOPE, LEVEL = "mean gain", "slope", "mean gain of a third"
"""The quantities of the table."""


def write_text(table: pd.DataFrame, correlations: pd.DataFrame, notes: Sequence[str]) -> str:
    """Return slopes and mean gains, which slopes are not chance, and how the predictors go together."""
    slopes = table[table["quantity"] == SLOPE]
    shown = slopes.assign(value=[mark_interval(row) for _, row in slopes.iterrows()])
    gains = table[table["quantity"] == GAIN]
    levels = table[table["quantity"] == LEVEL]
    means = levels.groupby(["predictor", "level"])["predictor_mean"].transform(write_range, form=".2f")
    levels = levels.assign(level=levels["level"] + " (" + means + ")")
    constant = slopes.groupby("predictor", sort=False)["value"].agg(lambda values: values.isna().all())
    parts = [
        f"gain of a query in F1@1, {SEMANTIC} less the other, over {write_range(gains['n'])} queries with "
        f"boxes ({write_range(gains['n_left_out'])} left out), mean [{gains['confidence'].iloc[0]:.0%} interval]:\n"
        + write_grid(
            gains.assign(value=[write_interval(row) for _, row in gains.iterrows()]),
            "value",
            "against",
            "layer",
        ),
        "change of the gain with one standard deviation more of each predictor, the others held fixed [interval]; "
        f"*: p < {SIGNIFICANT} after Holm's adjustment for {slopes['p_holm'].count()} slopes:\n"
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
    if constant.any():
        parts.append(
            f"note: no slope of {', '.join(constant.index[constant])}: the same in all queries, following from the "
            "other predictors, or too few queries"
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

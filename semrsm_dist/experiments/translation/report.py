"""The shifted crops as a table, as words and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from semrsm_dist.evaluation.contrast import Contrast
from semrsm_dist.experiments.tables import write_grid, write_interval
from semrsm_dist.plot.looks import LOOKS, count_rows, draw_intervals, make_panels, name_layers, share_legend
from semrsm_dist.plot.shifts import DIFFERENT, MEDIAN, SAME, STYLES, translation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AUC = "auc"
SAME_ABOVE = "same above different"

SHOWN_KERNELS = ("rbf", "cosine")
"""Kernels on a scale that layers share; the paper shows the first."""

PANELS_ACROSS = 5


def tabulate_contrast(contrast: Contrast) -> Iterator[dict[str, Any]]:
    """Yield the rows of one layer, kernel, kind and shift: two medians, and the AUC.

    `pair` is whose similarity it is; `n` counts the pairs, of the AUC those that belong together.
    """
    for pair, spread in ((SAME, contrast.same), (DIFFERENT, contrast.different)):
        yield {
            "quantity": MEDIAN,
            "pair": pair,
            **spread.median.columns(),
            "lower_quartile": spread.lower_quartile,
            "upper_quartile": spread.upper_quartile,
            "n": spread.n_pairs,
        }
    yield {
        "quantity": AUC,
        "pair": SAME_ABOVE,
        **contrast.auc.columns(),
        "lower_quartile": np.nan,
        "upper_quartile": np.nan,
        "n": contrast.same.n_pairs,
    }


def write_text(table: pd.DataFrame, *, n_requested: int) -> str:
    """Return the layers at the largest shift: medians, and how well crops of one image are recognised."""
    far = table[table["shift"] == table["shift"].max()]
    n_images, shift, pixels = far[["n_images", "shift", "pixels"]].iloc[0]
    parts = [
        f"{n_images:.0f} images, second crop {shift:.1%} of its side further down ({pixels:.0f} pixels of the input)"
    ]
    for kernel in SHOWN_KERNELS:
        medians = far[(far["quantity"] == MEDIAN) & (far["kernel"] == kernel)]
        parts.append(
            f"median similarity, {kernel}:\n{write_grid(medians, 'value', 'layer', ['kind', 'pair'])}"
        )
    areas = far[far["quantity"] == AUC]
    shown = areas.assign(value=[write_interval(row, form=".3f", ends=".2f") for _, row in areas.iterrows()])
    confidence = far["confidence"].iloc[0]
    parts.append(
        "probability that two crops of one image are more similar than two of different images (AUC; "
        f"{confidence:.0%} intervals over images):\n{write_grid(shown, 'value', 'layer', ['kernel', 'kind'])}"
    )
    if n_images < n_requested:
        parts.append(f"note: {n_requested} images were requested, but only {n_images:.0f} could be used")
    return "\n\n".join(parts)


def draw_translation(figure: Figure, table: pd.DataFrame) -> None:
    """Draw similarity against shift for each layer and, below, medians and AUC over the layers at the largest shift."""
    layers = list(dict.fromkeys(table["layer"]))
    across = min(len(layers), PANELS_ACROSS)
    down = count_rows(len(layers), across)
    figure.set_size_inches(max(2.6 * across, 10.0), 2.7 * down + 3.6)
    grid = figure.add_gridspec(2, 1, height_ratios=[2.7 * down, 3.4])
    above, below = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    panels = make_panels(above, len(layers), across=across, sharex=True, sharey=True)
    kernel = SHOWN_KERNELS[0]
    for axes, layer in zip(panels, layers, strict=True):
        translation(table, layer=layer, kernel=kernel, legend=False, ax=axes)
        axes.set_title(f"{layer} (S = {table.loc[table['layer'] == layer, 'n_tokens'].iloc[0]})", fontsize=10)
    above.supylabel(f"similarity ({kernel}),\nmedian and quartiles", fontsize=9)
    for axes in panels[-across:]:
        axes.set_xlabel("shift (pixels of the input)", fontsize=9)
    share_legend(above, panels[:1], ncols=4)
    far = table[table["shift"] == table["shift"].max()]
    profiles = below.subplots(1, len(SHOWN_KERNELS) + 1)
    pixels = far["pixels"].iloc[0]
    for axes, name in zip(profiles, SHOWN_KERNELS, strict=False):
        _draw_profile(axes, far[(far["quantity"] == MEDIAN) & (far["kernel"] == name)], layers)
        axes.set_title(f"median similarity ({name}), {pixels:.0f} px", fontsize=10)
    _draw_profile(profiles[-1], far[(far["quantity"] == AUC) & (far["kernel"] == kernel)], layers)
    profiles[-1].axhline(0.5, color="grey", linewidth=0.8)
    profiles[-1].set_title(f"AUC, same above different ({kernel}), {pixels:.0f} px", fontsize=10)


def _draw_profile(axes: Axes, rows: pd.DataFrame, layers: list[str]) -> None:
    for (kind, pair), part in rows.groupby(["kind", "pair"], sort=False):
        places = [layers.index(layer) for layer in part["layer"]]
        draw_intervals(axes, places, part, linestyle=STYLES.get(pair, "-"), **LOOKS[kind])
    name_layers(axes, layers)
    axes.grid(axis="y", alpha=0.3)

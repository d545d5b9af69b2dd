"""Similarity of shifted crops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semrsm_dist.errors import InputError, require_known
from semrsm_dist.plot.figures import axes_or_current
from semrsm_dist.plot.looks import LOOKS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MEDIAN = "median similarity"
SAME, DIFFERENT = "same", "different"
STYLES = {SAME: "-", DIFFERENT: ":"}

_COLUMNS = {
    "layer", "kernel", "quantity", "kind", "pair", "pixels", "value", "lower_quartile", "upper_quartile"
}  # fmt: skip


def translation(
    table: pd.DataFrame,
    *,
    layer: str | None = None,
    kernel: str = "rbf",
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw how similar two crops are by how far the second one is shifted, of one image and of different images.

    Parameters
    ----------
    table : pandas.DataFrame
        That of the experiment `translation`.
    layer
        One of its layers; by default the last.
    kernel
        One of its kernels.
    legend
        Name the lines.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default the current axes.

    Returns
    -------
    matplotlib.axes.Axes
        With medians as lines and, of crops of one image, quartiles as bands.

    Raises
    ------
    ConfigError
        If layer or kernel is not in the table.
    InputError
        If it is not the table of `translation`.
    """
    missing = _COLUMNS - set(getattr(table, "columns", ()))
    if missing or table.empty:
        raise InputError(
            f"expected the table of the experiment translation, which has the columns {sorted(missing)}, too"
            if missing
            else "expected the table of the experiment translation, found an empty one"
        )
    layers = list(dict.fromkeys(table["layer"]))
    layer = layers[-1] if layer is None else layer
    require_known("layer", layer, layers)
    require_known("kernel", kernel, list(dict.fromkeys(table["kernel"])))
    axes = axes_or_current(ax)
    rows = table[(table["layer"] == layer) & (table["kernel"] == kernel) & (table["quantity"] == MEDIAN)]
    for (kind, pair), part in rows.groupby(["kind", "pair"], sort=False):
        label = f"{kind}, {pair} image{'s' if pair == DIFFERENT else ''}"
        axes.plot(part["pixels"], part["value"], STYLES[pair], label=label, **LOOKS[kind])
        if pair == SAME:
            quartiles = part["lower_quartile"], part["upper_quartile"]
            axes.fill_between(part["pixels"], *quartiles, alpha=0.15, **LOOKS[kind])
    axes.set_title(layer, fontsize=10, parse_math=False)
    axes.grid(alpha=0.3)
    if legend:
        axes.set(xlabel="shift (pixels of the input)", ylabel=f"similarity ({kernel}),\nmedian and quartiles")
        # Where it hides nothing.
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=7, frameon=False)
    return axes

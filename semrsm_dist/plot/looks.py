"""What figures of experiments share: colours and markers by name, panels, intervals, and legends beside the data.

Only `matplotlib.figure.Figure` is used, never a backend or `pyplot`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from semrsm_dist.evaluation.retrieval import SEMANTIC, SPATIAL

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

KINDS = (SPATIAL, SEMANTIC)
"""The two similarities, in the order in which they are drawn and listed."""

LOOKS: dict[str, dict[str, Any]] = {SPATIAL: {"color": "tab:blue"}, SEMANTIC: {"color": "tab:red"}}
DIFFERENCE = f"{SEMANTIC} - {SPATIAL}"
"""Kind of the rows that hold how far the two kinds are apart."""

_MARKERS = "o^sPXvd*<>hp8"
_UPRIGHT = 5
"""Layer names that fit below an axis without being turned."""


def style_names(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return a colour and a marker for each name, in the order given."""
    return {
        name: {"color": f"C{position % 10}", "marker": _MARKERS[position % len(_MARKERS)]}
        for position, name in enumerate(dict.fromkeys(names))
    }


def make_panels(figure: Figure | SubFigure, n: int, *, across: int, **options: Any) -> list[Axes]:
    """Return axes for all panels, in rows of at most `across`."""
    across = min(n, across)
    axes = figure.subplots(count_rows(n, across), across, squeeze=False, **options).ravel()
    for spare in axes[n:]:
        spare.remove()
    return list(axes[:n])


def count_rows(n: int, across: int) -> int:
    """Return in how many rows panels lie."""
    return -(-n // min(n, across))


def draw_intervals(
    axes: Axes, places: Sequence[float], rows: pd.DataFrame, value: str = "value", **look: Any
) -> None:
    """Draw values with the intervals in the columns `low` and `high`."""
    middle = rows[value].to_numpy(dtype=float)
    spread = np.abs(rows[["low", "high"]].to_numpy(dtype=float).T - middle)
    axes.errorbar(
        places,
        middle,
        yerr=spread,
        **{"marker": "o", "linestyle": "none", "markersize": 4, "elinewidth": 1.2, **look},
    )


def draw_beside(
    axes: Axes,
    rows: pd.DataFrame,
    looks: Mapping[str, Mapping[str, Any]],
    *,
    by: str,
    ticks: Sequence[Any],
    over: str = "layer",
    value: str = "value",
    spread: float = 0.7,
) -> None:
    """Draw values with intervals over the ticks, those of each name in `looks` (of column `by`) side by side."""
    for position, (name, look) in enumerate(looks.items()):
        part = rows[rows[by] == name]
        shift = spread * ((position + 0.5) / len(looks) - 0.5)
        draw_intervals(
            axes, [ticks.index(tick) + shift for tick in part[over]], part, value, label=name, **look
        )


def draw_kinds(axes: Axes, rows: pd.DataFrame, layers: Sequence[str]) -> None:
    """Draw both kinds over the layers, side by side."""
    looks = {kind: {"linestyle": "-", **look} for kind, look in LOOKS.items()}
    draw_beside(axes, rows, looks, by="kind", ticks=layers, spread=0.24)
    name_layers(axes, layers)


def name_layers(axes: Axes, layers: Sequence[str]) -> None:
    """Name layers below an axis, turned where they are many."""
    turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if len(layers) > _UPRIGHT else {}
    axes.set_xticks(range(len(layers)), layers, fontsize=8, parse_math=False, **turned)
    axes.set_xlim(-0.5, len(layers) - 0.5)


def share_legend(figure: Figure | SubFigure, axes: Iterable[Axes], *, ncols: int) -> None:
    """Put one legend for all axes below them, where it hides nothing."""
    entries = {
        label: handle
        for each in axes
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=min(ncols, max(len(entries), 1)),
        fontsize=9,
        frameon=False,
    )

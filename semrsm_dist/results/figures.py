"""Figures that are drawn into files, whatever backend the environment names for windows and notebooks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(**options: Any) -> Figure:
    """Return an empty figure with matplotlib's own renderer; `options` are those of `matplotlib.figure.Figure`.

    The variable MPLBACKEND, which Jupyter hands to every process below it, can name a backend that is not installed
    here. Matplotlib then refuses to be imported, so it is imported without the variable.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - slow to load
    except ValueError:
        if (backend := os.environ.pop("MPLBACKEND", None)) is None:
            raise
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
        finally:
            os.environ["MPLBACKEND"] = backend
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(**options)
    FigureCanvasAgg(figure)
    return figure

"""Where figures are drawn: into files, whatever backend the environment names, or into the user's axes."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(**options: Any) -> Figure:
    """Return an empty figure with matplotlib's own renderer; `options` are those of `matplotlib.figure.Figure`.

    Jupyter hands the variable MPLBACKEND to every process below it, where the backend that it names may not be
    installed. Matplotlib then refuses to be imported, and cannot be imported again without the variable once it has
    failed. So the first import is without it; a backend that exists is selected as matplotlib would have done.
    """
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib as mpl  # noqa: PLC0415 - slow to load
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with contextlib.suppress(ValueError):
            mpl.rcParams["backend"] = backend
    figure = Figure(**options)
    FigureCanvasAgg(figure)
    return figure


def axes_or_current(ax: Axes | None) -> Axes:
    """Return axes to draw into: those given, or the current ones of pyplot, which are made if there are none."""
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt  # noqa: PLC0415 - slow to load, and decides on a backend

    return plt.gca()

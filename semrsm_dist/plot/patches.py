"""Matched patches of two images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from semrsm_dist.errors import ConfigError
from semrsm_dist.plot.figures import axes_or_current

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from semrsm_dist.results.pair import Pair

BETWEEN = 0.15
"""Between both images, as a share of their height."""


def matches(pair: Pair, *, least: float = 0.02, ax: Axes | None = None) -> Axes:
    """Draw two images side by side, with lines between the tokens that are matched.

    Parameters
    ----------
    pair : Pair
        As `Run.pair` returns it. An image that cannot be read is an empty grid.
    least
        Tokens that contribute less than this share of the similarity have no line: matching had to pair them, too.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default the current axes.

    Returns
    -------
    matplotlib.axes.Axes
        With a line for each matched pair, in the colour of its place in the first image and as thick as it matters.

    Raises
    ------
    ConfigError
        If `least` is not a number from 0 to 1, or `pair` is no pair.
    """
    if isinstance(least, bool) or not isinstance(least, int | float) or not 0 <= least <= 1:
        raise ConfigError(f"least: {least!r}: expected a share, a number from 0 to 1")
    if not hasattr(pair, "grids"):
        raise ConfigError(f"pair: {pair!r:.100}: expected what Run.pair(i, j) returns")
    axes = axes_or_current(ax)
    left = 0.0
    corners, widths = [], []
    for image, (rows, columns), name, problem in zip(
        pair.images, pair.grids, pair.ids, pair.problems, strict=True
    ):
        width = columns / rows if image is None else image.width / image.height
        width = min(max(width, 0.25), 4.0)
        if image is not None:
            axes.imshow(np.asarray(image), extent=(left, left + width, 1.0, 0.0), interpolation="nearest")
        grid: dict[str, Any] = {
            "color": "white" if image is not None else "grey",
            "alpha": 0.3,
            "linewidth": 0.6,
        }
        axes.vlines(left + np.linspace(0, width, columns + 1), 0.0, 1.0, **grid)
        axes.hlines(np.linspace(0, 1.0, rows + 1), left, left + width, **grid)
        text = name if image is not None else f"{name}\n(no picture: {problem})"
        axes.text(
            left + width / 2, 1.03, text, ha="center", va="top", fontsize=8, parse_math=False, wrap=True
        )
        corners.append(left)
        widths.append(width)
        left += width + BETWEEN
    axes.set(
        xlim=(0.0, left - BETWEEN), ylim=(1.0, 0.0), xticks=[], yticks=[], aspect="equal", frame_on=False
    )
    _draw_lines(axes, pair, corners, widths, least)
    change = f"{pair.identity:.3f} position by position, " if np.isfinite(pair.identity) else ""
    axes.set_title(f"{pair.kernel} similarity: {change}{pair.similarity:.3f} after matching", fontsize=9)
    return axes


def _draw_lines(axes: Axes, pair: Pair, corners: list[float], widths: list[float], least: float) -> None:
    from matplotlib import colormaps  # noqa: PLC0415 - slow to load

    total = np.nansum(pair.contributions)
    shares = pair.contributions / total if total > 0 else np.zeros_like(pair.contributions)
    matched = (pair.permutation >= 0) & (shares >= least)
    # The strongest come last, above the others.
    tokens = np.flatnonzero(matched)[np.argsort(shares[matched], kind="stable")]
    for token in tokens:
        ends = [
            (corner + width * (place % columns + 0.5) / columns, (place // columns + 0.5) / rows)
            for place, (rows, columns), corner, width in zip(
                (token, pair.permutation[token]), pair.grids, corners, widths, strict=True
            )
        ]
        colour = colormaps["turbo"](token / pair.permutation.size)
        width = 0.8 + 2.2 * shares[token] / shares[tokens[-1]]
        axes.plot(*zip(*ends, strict=True), "o-", color=colour, linewidth=width, markersize=3, clip_on=False)

"""What a few measurements say about a larger run: costs fitted by least squares, and how far to trust them. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import lsq_linear
from scipy.stats import t as student

CONFIDENCE = 0.9
"""Of the interval of a predicted time."""

LEAST_SPREAD = 0.05
"""Least relative standard deviation of a run's time: a few measurements can agree by chance."""


@dataclass(frozen=True)
class Line:
    """A cost that has a fixed part and grows with a size."""

    fixed: float
    slope: float

    def __call__(self, size: float) -> float:
        """Return the cost at a size."""
        return self.fixed + self.slope * size


def fit_line(sizes: Sequence[float], costs: Sequence[float]) -> Line:
    """Fit a cost that neither begins below 0 nor falls; a single size is taken for all slope."""
    if len(set(sizes)) < 2:
        largest = max(sizes, default=0.0)
        return Line(0.0, float(np.mean(costs)) / largest) if largest else Line(0.0, 0.0)
    return Line(*fit_parts(np.column_stack([np.ones(len(sizes)), sizes]), costs))


def fit_parts(amounts: ArrayLike, costs: ArrayLike) -> NDArray[np.float64]:
    """Return what one unit of each amount costs, at least 0, by least squares.

    R measurements have the amounts (R, P), which cost (R,) together.
    """
    table = np.asarray(amounts, dtype=np.float64)
    scale = np.abs(table).max(axis=0)
    found, known = np.zeros(scale.size), scale > 0  # of what there is none, nothing is known
    # Not nnls: that of scipy before 1.15 can end without a solution, even for three measurements of two amounts.
    fitted = lsq_linear(
        table[:, known] / scale[known], np.asarray(costs, np.float64), bounds=(0, np.inf), method="bvls"
    )
    found[known] = fitted.x / scale[known]
    return found


@dataclass(frozen=True)
class TileCost:
    """The seconds that a worker takes for a tile: some for the tile, some for each pair, some for each image loaded."""

    tile: float
    pair: float
    image: float

    def seconds(self, tiles: float, pairs: float, images: float) -> float:
        """Return the seconds of this many tiles and pairs with this many images loaded."""
        return self.tile * tiles + self.pair * pairs + self.image * images


def interval_factor(ratios: Sequence[float], confidence: float = CONFIDENCE) -> float:
    """Return f such that a run's time lies between prediction / f and prediction * f with this confidence.

    The ratios are measured times of repeated trials relative to what was predicted for them: at least two. Their
    logarithms are taken as normal, and the run as one trial more (a prediction interval).
    """
    logs = np.log(ratios)
    spread = max(float(np.std(logs, ddof=1)), LEAST_SPREAD)
    quantile = float(student.ppf((1 + confidence) / 2, len(logs) - 1))
    return math.exp(quantile * spread * math.sqrt(1 + 1 / len(logs)))

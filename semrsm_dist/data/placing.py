"""Where boxes go on a square canvas: uniformly over what the others leave, each within a window of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LAYOUT_ATTEMPTS = 20

Corner = tuple[int, int]
"""Upper left corner of a box (top, left), in pixels."""


@dataclass(frozen=True, slots=True)
class Window:
    """The corners that a box may take: first and last of each coordinate, in pixels, both included."""

    top: tuple[int, int]
    left: tuple[int, int]

    def around(self, home: Corner, reach: int) -> Window:
        """Return the part of this window whose corners are at most `reach` from `home` in both coordinates."""
        (top_first, top_last), (left_first, left_last) = self.top, self.left
        top, left = home
        return Window(
            (max(top_first, top - reach), min(top_last, top + reach)),
            (max(left_first, left - reach), min(left_last, left + reach)),
        )


def place_boxes(
    sizes: Sequence[int], windows: Sequence[Window], *, canvas: int, overlap: float, rng: np.random.Generator
) -> list[Corner] | None:
    """Return corners for boxes, one after the other, each uniform over what the ones before leave of its window.

    None if they did not fit in any of `LAYOUT_ATTEMPTS` attempts.

    Parameters
    ----------
    sizes
        Sides of the square boxes, in pixels.
    windows
        Where each box may go; within the canvas.
    canvas
        Side of the canvas, in pixels.
    overlap
        Largest share of the smaller of two boxes that the other may cover.
    rng
        Random generator.
    """
    for _ in range(LAYOUT_ATTEMPTS):
        corners: list[Corner] = []
        for count, (size, window) in enumerate(zip(sizes, windows, strict=True)):
            free = _free_corners(size, corners, sizes[:count], window, canvas=canvas, overlap=overlap)
            if not len(free):
                break
            corners.append(divmod(int(free[rng.integers(len(free))]), canvas - size + 1))
        else:
            return corners
    return None


def regular_slots(low: int, high: int, *, canvas: int, overlap: float) -> list[Corner]:
    """Return corners of a regular grid of boxes of side `high` that respects `overlap`, row by row.

    Boxes of sides `low` to `high` centred in such slots respect it too: two boxes a <= b at distance
    p >= max(b / 2, (1 - overlap) b) cover (a + b) / 2 - p <= overlap * a of each other's side.
    """
    if high > canvas:
        return []
    pitch = math.ceil(high * (1 - min(overlap, 0.5)) - 1e-9)
    if overlap > 0 and low < high:
        pitch += 1  # centring rounds by up to half a pixel per box
    starts = range(0, canvas - high + 1, pitch)
    return [(top, left) for top in starts for left in starts]


def _free_corners(
    size: int, corners: Sequence[Corner], sizes: Sequence[int], window: Window, *, canvas: int, overlap: float
) -> NDArray[np.intp]:
    """Return the corners (flattened) in the window at which a box of `size` covers no placed box too much."""
    start = np.arange(canvas - size + 1)
    free = np.logical_and.outer(
        *((first <= start) & (start <= last) for first, last in (window.top, window.left))
    )
    for (top, left), other in zip(corners, sizes, strict=True):
        rows, columns = (
            np.clip(np.minimum(start + size, at + other) - np.maximum(start, at), 0, None)
            for at in (top, left)
        )
        free &= np.outer(rows, columns) <= overlap * min(size, other) ** 2
    return np.flatnonzero(free)

"""From the labelled objects of an image to its labels, with their number and area."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import NamedTuple, Self

from semrsm_dist.data.entries import ImageEntry

Corners = tuple[float, float, float, float]
"""Left, upper, right and lower border."""


class ObjectBox(NamedTuple):
    """The box around an object, as shares of the image's width and height; all NaN if it is unknown."""

    image_id: str
    x0: float
    y0: float
    x1: float
    y1: float

    @classmethod
    def within(cls, image_id: str, box: Corners, width: float, height: float) -> Self:
        """Return the part of a box that lies in an image, all in one unit; unknown as in `box_area`."""
        left, top, right, bottom = box
        if box_area(box, width, height) is None:
            return cls(image_id, *(math.nan,) * 4)
        x0, x1 = (min(max(side / width, 0.0), 1.0) for side in (left, right))
        y0, y1 = (min(max(side / height, 0.0), 1.0) for side in (top, bottom))
        return cls(image_id, x0, y0, x1, y1)


class ObjectTally:
    """The objects of images."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, int]] = defaultdict(dict)
        self._areas: dict[str, dict[str, float]] = defaultdict(dict)

    def add(self, image: str, label: str, area: float | None, count: int = 1) -> None:
        """Count objects of an image.

        Parameters
        ----------
        image, label
            The image that they are in, and what they are.
        area
            Their area as a share of the image's; None or NaN if unknown.
        count
            How many they are.
        """
        counts, areas = self._counts[image], self._areas[image]
        counts[label] = counts.get(label, 0) + count
        areas[label] = areas.get(label, 0.0) + (math.nan if area is None else area)

    def describe(self, entry: ImageEntry, image: str | None = None) -> ImageEntry:
        """Return an entry with the labels of its image, sorted, their counts and, if all are known, their areas.

        `image` is the name that its objects were added under, if that is not the entry's id.
        """
        counts = self._counts.get(image or entry.image_id, {})
        areas = self._areas.get(image or entry.image_id, {})
        labels = tuple(sorted(counts))
        is_known = not any(map(math.isnan, areas.values()))
        return replace(
            entry,
            labels=labels,
            label_counts=tuple(counts[label] for label in labels),
            label_areas=tuple(min(areas[label], 1.0) for label in labels) if is_known else None,
        )


def box_area(box: Corners, width: float, height: float) -> float | None:
    """Return the area of the part of a box that lies in an image, as a share of the image's area.

    Box, width and height of the image are in one unit. None if it is unknown: a border is no number, the box ends
    before it begins, or the image has no size.
    """
    left, top, right, bottom = box
    if not all(map(math.isfinite, (*box, width, height))) or min(width, height) <= 0:
        return None
    if right < left or bottom < top:
        return None
    inner_width = max(0.0, min(right, width) - max(left, 0.0))
    inner_height = max(0.0, min(bottom, height) - max(top, 0.0))
    return inner_width * inner_height / (width * height)

"""The conditions under which permutation invariance is judged: one control of the digit scenes at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from semrsm_dist.data.sources.digits import DigitScenes
from semrsm_dist.errors import ConfigError, first_line
from semrsm_dist.experiments.conditions import Factor

Size = tuple[int, int]

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)
DIGITS = (1, 2, 3, 4, 6)
OVERLAPS = (0.0, 0.1, 0.3, 0.6, 1.0)
DISPLACEMENTS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
SIZES = (2 / 3, 1.0, 4 / 3, 5 / 3)
SIZE_STEP = 4
"""Input sizes are rounded to multiples of this number of pixels."""

FACTORS: dict[Factor, str] = {
    "scale": "object scale (digit's side, share of the canvas)",
    "digits": "clutter (digits in each scene)",
    "overlap": "clutter (largest overlap)",
    "displacement": "displacement from a class's home",
    "canvas": "canvas = input size (pixels), digits as large as ever",
    "resolution": "input size (pixels) of the same scenes",
    "pair": "position carries the label: displacement from the side's centre",
}
"""What each factor is."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One run: the level of a factor, a key of `FACTORS`, with its scenes and the network's input size in pixels."""

    factor: Factor
    level: float
    data: DigitScenes
    input_size: Size

    @property
    def name(self) -> str:
        """Name of the run's directory."""
        return f"{self.factor}-{self.level:.4g}"

    def settings(self) -> tuple[str, Size]:
        """Return what the run depends on: conditions of different factors can be the same run."""
        return self.data.model_dump_json(), self.input_size


def list_conditions(
    base: DigitScenes, input_size: Size, factors: Sequence[Factor] = tuple(FACTORS)
) -> tuple[list[Condition], list[str]]:
    """Return the conditions around base scenes, one control changed in each, and why the others are not possible.

    Displacement needs room for ten homes, so all its levels have the largest scale of `SCALES` that leaves it.
    """
    conditions, left_out = [], []
    for factor, level, changes, size in _list_changes(base, input_size):
        if factor not in factors:
            continue
        try:
            data = DigitScenes(**{**base.model_dump(), **changes})
        except ConfigError as error:
            left_out.append(f"{factor} {level:.4g}: {first_line(error)}")
        else:
            conditions.append(Condition(factor, level, data, size))
    return conditions, left_out


def _list_changes(
    base: DigitScenes, input_size: Size
) -> Iterator[tuple[Factor, float, dict[str, Any], Size]]:
    for times in SCALES:
        low, high = (times * scale for scale in base.scale)
        yield "scale", 8 * (low + high) / 2 / base.canvas, {"scale": (low, high)}, input_size
    for count in DIGITS:
        yield "digits", count, {"digits": (count, count)}, input_size
    for overlap in OVERLAPS:
        yield "overlap", overlap, {"overlap": overlap}, input_size
    for displacement in DISPLACEMENTS:
        changes = {"scale": _roomy_scale(base), "displacement": displacement, "arrangement": "free"}
        yield "displacement", displacement, changes, input_size
    for times in SIZES:
        size = _times(input_size, times)
        yield "canvas", size[0], {"canvas": round(base.canvas * times)}, size
        yield "resolution", size[0], {}, size
    for displacement in DISPLACEMENTS:
        yield (
            "pair",
            displacement,
            {"digits": (2, 2), "arrangement": "pair", "displacement": displacement},
            input_size,
        )


def _roomy_scale(base: DigitScenes) -> tuple[float, float]:
    """Return the largest of the scales at which every class has a home of its own, or else the smallest."""
    scale = base.scale
    for times in sorted(SCALES, reverse=True):
        scale = (times * base.scale[0], times * base.scale[1])
        changes = {"scale": scale, "displacement": 0.0, "arrangement": "free"}
        try:
            DigitScenes(**{**base.model_dump(), **changes})
        except ConfigError:
            continue
        break
    return scale


def _times(size: Size, times: float) -> Size:
    height, width = (max(SIZE_STEP, SIZE_STEP * round(side * times / SIZE_STEP)) for side in size)
    return height, width

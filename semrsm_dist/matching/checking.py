"""What the class of a matcher must be, and what its parameters: checked before anything is matched."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from semrsm_dist.plugins import check_name


def find_problems(name: str, kind: type[Any]) -> Iterator[str]:
    """Yield what is wrong with the class of a matcher, with all its methods there: for `Plugins`."""
    yield from check_name(name, getattr(kind, "name", None))
    for attribute in ("certified", "takes_unequal"):
        if not isinstance(getattr(kind, attribute), bool):
            yield f"its {attribute} is {getattr(kind, attribute)!r}, not True or False"
    for attribute, least in (("version", 1), ("cpus", 0), ("gpus", 0)):
        if not is_number(getattr(kind, attribute), least):
            yield f"its {attribute} is {getattr(kind, attribute)!r}, not a number from {least} on"
    if any(field.is_required() for field in kind.model_fields.values()):
        yield "a parameter has no default"
        return
    try:
        matcher = kind()
        costs = (
            matcher.pair_seconds(196, 256),
            matcher.workspace_bytes(196, 256),
            matcher.panel_bytes(8, 196, 256),
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, its author must know
        yield f"with its defaults it fails ({type(error).__name__}: {error})"
        return
    for method, cost in zip(("pair_seconds", "workspace_bytes", "panel_bytes"), costs, strict=True):
        if not is_number(cost, 0) or (method == "pair_seconds" and cost == 0):
            yield f"its {method}, of 196 tokens and 256 channels, is {cost!r}, not a positive number"


def is_number(value: Any, least: int) -> bool:
    """Return whether a value is a finite number that is not below another one."""
    numbers = int | float | np.integer | np.floating
    return isinstance(value, numbers) and not isinstance(value, bool) and bool(least <= value < math.inf)


def unrecordable(value: Any) -> str:
    """Return what part of a parameter no record can hold, or an empty text."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value!r}, which JSON lacks"
    if isinstance(value, set | frozenset):
        return "a set, whose order differs from process to process"
    parts = (
        [*value, *value.values()]
        if isinstance(value, Mapping)
        else value
        if isinstance(value, list | tuple)
        else ()
    )
    return next(filter(None, map(unrecordable, parts)), "")

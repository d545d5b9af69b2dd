"""Labels within a cell of a table or an object of JSON, perhaps several levels down."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from semrsm_dist.data.entries import clean_labels, is_nan, parse_labels

LABELS = ("label", "labels")
"""Columns that hold labels, unless others are named."""


def labels_in(
    cell: Any, path: str = "", names: Sequence[str] = ()
) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Return the labels at a place, and, if they are those of objects, how many objects have each.

    Returns each label once, in the order in which they come; the counts are None where there is no path. Raises
    ValueError if there is no such place, or something else there.

    Parameters
    ----------
    cell
        A label, a list of labels, objects, or text: what `parse_labels` reads, or JSON.
    path
        Keys with dots between them, from the cell to the labels. Each may be of one object or of every object in a
        list: "categories" in ``{"categories": ["cat", "cat"]}``, "name" in ``[{"name": "cat"}, {"name": "cat"}]``.
    names
        Of the classes, if labels are their numbers; a negative one is no label.
    """
    if isinstance(cell, str) and path:
        cell = json.loads(cell) if cell.strip() else None
    for key in path.split(".") if path else ():
        cell = [_step(item, key) for item in cell] if isinstance(cell, list) else _step(cell, key)
    if isinstance(cell, str) and not path and not names:
        return tuple(dict.fromkeys(parse_labels(cell))), None
    values = _flatten(cell)
    labels = clean_labels(_name(value, names) for value in values)
    counts = Counter(labels)
    return tuple(counts), tuple(counts.values()) if path else None


def _step(item: Any, key: str) -> Any:
    if item is None:
        return None
    if not isinstance(item, Mapping):
        raise ValueError(f"has no keys, so there is no {key!r}: {str(item)[:80]!r}")  # noqa: TRY004 - the data is at fault
    if key not in item:
        raise ValueError(f"has no {key!r}, only {', '.join(map(repr, list(item)[:8])) or 'no keys'}")
    return item[key]


def _flatten(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [each for item in value for each in _flatten(item)]
    return [value]


def _name(value: Any, names: Sequence[str]) -> Any:
    if not names or value is None or is_nan(value):
        return value
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"{value!r} is no number of a class")
    number = int(value)
    if number >= len(names):
        raise ValueError(f"there is no class {number}, only {len(names)}")
    return names[number] if number >= 0 else None

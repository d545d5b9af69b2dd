"""What a run's numbers depend on, and the comparison that protects a resume.

A fingerprint is a flat mapping from a field's dotted name to a JSON value. Only what alters the entries of
a matrix belongs in it: the images' content, the weights, the preprocessing, the matcher and its
parameters. Workers, memory, retries and batch sizes do not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from semrsm_dist.errors import ResumeError

Fingerprint = dict[str, Any]

SHOWN = 60
"""Characters of a value that a refusal shows."""


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Fingerprint:
    """Flatten nested mappings to dotted names, with values as JSON would give them back.

    >>> flatten({"model": {"name": "vit", "size": (96, 96)}})
    {'model.name': 'vit', 'model.size': [96, 96]}
    """
    flat: Fingerprint = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = json.loads(json.dumps(value))
    return flat


_MEANINGS = dict.fromkeys(("images.sha256", "queries.sha256"), "  (other ids, contents or order)")
"""What it means that fields differ whose values say nothing to people."""


def differences(recorded: Mapping[str, Any], requested: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (field, recorded value, requested value) where two fingerprints differ, sorted by field."""
    fields = sorted(recorded.keys() | requested.keys())
    absent = object()
    rows = [(name, recorded.get(name, absent), requested.get(name, absent)) for name in fields]
    return [
        (name, "(absent)" if old is absent else old, "(absent)" if new is absent else new)
        for name, old, new in rows
        if old != new
    ]


def require_same(recorded: Mapping[str, Any], requested: Mapping[str, Any], run: object) -> None:
    """Refuse to continue a run whose numbers would change.

    Raises ResumeError with one line per field that differs, and the way out.
    """
    changed = differences(recorded, requested)
    if not changed:
        return
    width = max(len(name) for name, _, _ in changed)
    lines = [
        f"  {name:<{width}}  {' -> '.join(_shorten(old, new))}{_MEANINGS.get(name, '')}"
        for name, old, new in changed
    ]
    raise ResumeError(
        f"{run}: the run was begun with another configuration; continuing could mix two different matrices, so "
        "nothing was changed. Recorded -> requested:\n"
        + "\n".join(lines)
        + "\nGo back to the recorded values to continue, or give the new configuration a directory of its own "
        "(--set run=...)."
    )


def _shorten(*values: object) -> list[str]:
    """Return texts of two values, of any length, that show where they differ."""
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
    if len(set(texts)) < len(texts):  # such as "1" and 1
        texts = [json.dumps(value) for value in values]
    same = sum(1 for _ in takewhile(lambda characters: len(set(characters)) == 1, zip(*texts, strict=False)))
    start = max(0, same - SHOWN // 3) if max(map(len, texts)) > SHOWN else 0
    return [
        f"{'...' if start else ''}{text[start : start + SHOWN]}{'...' if len(text) > start + SHOWN else ''}"
        for text in texts
    ]

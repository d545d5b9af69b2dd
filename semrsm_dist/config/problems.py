"""What is wrong with a configuration, said in words of the file: place, key, value, what is expected, remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from semrsm_dist.config.reading import KeyPath, Places
from semrsm_dist.errors import did_you_mean
from semrsm_dist.fields import expected

Problem = Mapping[str, Any]
Keys = Mapping[str, Sequence[str]]

_SIDES = ("data", "queries")
_NESTED = "of"
_NOT_NESTED = ("features", "crops")


def explain(problems: Sequence[Problem], document: Any, origin: str, places: Places, keys: Keys) -> list[str]:
    """Return one line a problem.

    Parameters
    ----------
    problems
        As `pydantic.ValidationError.errors` lists them.
    document
        What was validated.
    origin
        Name of the configuration, for keys without a place.
    places
        Where each key is written.
    keys
        The keys of each section, `data` and `queries` one for each source (`data.folder`); the top level is "".
    """
    located = [(_location(problem["loc"], document), problem) for problem in problems]
    return [
        _explain(location, problem, document, origin, places, keys)
        for location, problem in located
        if not (problem["type"] == "too_short" and _is_about_items(location, located))
    ]


def find_place(location: KeyPath, origin: str, places: Places) -> str:
    """Return where a key is written, or else the nearest one above it, or else the first below it."""
    above = (location[:length] for length in range(len(location), 0, -1))
    below = (path for path in places if path[: len(location)] == location)
    return next((places[path] for path in (*above, *below) if path in places), origin)


def _explain(
    location: KeyPath, problem: Problem, document: Any, origin: str, places: Places, keys: Keys
) -> str:
    kind, given, key = problem["type"], problem["input"], ".".join(location)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _explain_source(location, given, origin, places, keys)
    where = find_place(location, origin, places)
    if kind in ("extra_forbidden", "invalid_key"):
        return f"{where}: unknown key {key!r}{_hint_for_key(location, document, keys)}"
    if kind == "missing":
        return f"{where}: the key {key!r} is missing; add it"
    if kind == "refused":
        where = find_place((problem["ctx"]["key"],), origin, places)
        return f"{where}: {problem['msg']}"
    shown = "no value" if given is None else repr(given)
    return f"{where}: {key}: {shown}: {expected(problem)}"


def _explain_source(location: KeyPath, given: Any, origin: str, places: Places, keys: Keys) -> str:
    key = ".".join((*location, "source"))
    sources = [name[len("data.") :] for name in keys if name.startswith("data.")]
    if location[1:] == (_NESTED,):
        sources = [name for name in sources if name not in _NOT_NESTED]
    where, known = find_place((*location, "source"), origin, places), ", ".join(sources)
    if not isinstance(given, Mapping) or "source" not in given:
        return f"{where}: the key {key!r} is missing; add it: one of {known}"
    name = given["source"]
    return f"{where}: {key}: {name!r}: expected one of {known}{did_you_mean(str(name), sources)}"


def _hint_for_key(location: KeyPath, document: Any, keys: Keys) -> str:
    """Return what an unknown key may have meant: one spelled alike here, or the same one elsewhere."""
    *above, name = location
    known = keys[_section_of(tuple(above), document)]
    homes = [section or "the top level" for section, names in keys.items() if name in names]
    if homes:
        return f"; it belongs to {' or '.join(homes)}; known here: {', '.join(known)}"
    return did_you_mean(name, known) or f"; known here: {', '.join(known)}"


def _section_of(location: KeyPath, document: Any) -> str:
    if not location:
        return ""
    if location[0] in _SIDES:
        section = document[location[0]]
        return f"data.{(section[_NESTED] if location[1:2] == (_NESTED,) else section)['source']}"
    return location[0]


def _location(loc: Sequence[str | int], document: Any) -> KeyPath:
    """Return a problem's location as a path in the file, without what pydantic adds to it.

    It adds the source behind `data` and `queries` and what these are crops of, and `[key]` behind a key that is itself
    the problem.
    """
    parts = list(loc)
    if len(parts) > 1 and parts[0] in _SIDES and _source(document, parts[0]) == parts[1]:
        del parts[1]
        if len(parts) > 2 and parts[1] == _NESTED and _source(document[parts[0]], _NESTED) == parts[2]:
            del parts[2]
    if parts[-1:] == ["[key]"] and not _holds(document, parts):
        del parts[-1]
    return tuple(str(part) for part in parts)


def _holds(document: Any, parts: Sequence[str | int]) -> bool:
    """Tell whether the path exists in the document."""
    for part in parts:
        if not isinstance(document, Mapping) or part not in document:
            return False
        document = document[part]
    return True


def _source(document: Any, side: str | int) -> Any:
    section = document.get(side)
    return section.get("source") if isinstance(section, Mapping) else None


def _is_about_items(location: KeyPath, located: Sequence[tuple[KeyPath, Problem]]) -> bool:
    """Tell whether items of a list are in trouble themselves, so that it only seems too short."""
    return any(other[: len(location)] == location and len(other) > len(location) for other, _ in located)

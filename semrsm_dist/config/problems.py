"""The problems of a configuration in terms of its file: place, key, value, what is expected, remedy."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from semrsm_dist.config.reading import KeyPath, Places
from semrsm_dist.errors import did_you_mean
from semrsm_dist.fields import Problem, explain_problem

Keys = Mapping[str, Sequence[str]]

SIDES = ("data", "queries")
"""The keys whose sections are data sources."""

_NESTED = "of"


def explain(problems: Sequence[Problem], document: Any, origin: str, places: Places, keys: Keys) -> list[str]:
    """Return one line per problem.

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
        The keys of each section; the top level is "". Where a key chooses what a section holds, there is one for each
        choice, such as `data (source: folder)`.
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
    kind, key = problem["type"], ".".join(location)
    where = find_place(location, origin, places)
    if kind in ("extra_forbidden", "invalid_key"):
        return f"{where}: unknown key {key!r}{_hint_for_key(location, document, keys)}"
    if kind == "refused":
        where = find_place((problem["ctx"]["key"],), origin, places)
        return f"{where}: {problem['msg']}"
    return f"{where}: {explain_problem(problem, key)}"


def _hint_for_key(location: KeyPath, document: Any, keys: Keys) -> str:
    """Return what an unknown key may have meant: one of similar spelling here, or the same one elsewhere."""
    *above, name = location
    known = keys[_section_of(tuple(above), document)]
    homes = [section or "the top level" for section, names in keys.items() if name in names]
    if homes:
        joined = " or ".join(_join_choices(homes))
        return f"; it belongs to {joined}: {_remedy(location, homes)}; known here: {', '.join(known)}"
    return did_you_mean(name, known) or f"; known here: {', '.join(known)}"


def _remedy(location: KeyPath, homes: Sequence[str]) -> str:
    """Return what to do about a key that belongs to another section, or to another choice of its own."""
    if not any(home.startswith(f"{location[0]} (") for home in homes) or len(location) == 1:
        return "move it there, or remove it"
    # Keys of matchers that are set to nothing count as not given.
    unset = f", which --set {'.'.join(location)}=null does" if location[0] == "matching" else ""
    return f"choose one of these, or remove the key{unset}"


def _join_choices(homes: Sequence[str]) -> list[str]:
    """Join `data (source: a)` and `data (source: b)` to `data (source: a, b)`."""
    choices: dict[str, list[str]] = {}
    for home in homes:
        section, _, choice = home.removesuffix(")").partition(": ")
        choices.setdefault(section, []).append(choice)
    return [f"{section}: {', '.join(found)})" if found[0] else section for section, found in choices.items()]


def _section_of(location: KeyPath, document: Any) -> str:
    if not location or location[0] not in SIDES:
        return location[0] if location else ""
    section = document[location[0]]
    for _ in itertools.takewhile(lambda key: key == _NESTED, location[1:]):
        section = section[_NESTED]
    return f"data (source: {section['source']})"


def _location(loc: Sequence[str | int], document: Any) -> KeyPath:
    """Return a problem's location as a path in the file, without the `[key]` that pydantic adds for a bad key."""
    parts = list(loc)
    if parts[-1:] == ["[key]"] and not _holds(document, parts):
        del parts[-1]
    return tuple(str(part) for part in parts)


def _holds(document: Any, parts: Sequence[str | int]) -> bool:
    """Return whether the path exists in the document."""
    for part in parts:
        if not isinstance(document, Mapping) or part not in document:
            return False
        document = document[part]
    return True


def _is_about_items(location: KeyPath, located: Sequence[tuple[KeyPath, Problem]]) -> bool:
    """Return whether items of a list are invalid themselves, so that it only seems too short."""
    return any(other[: len(location)] == location and len(other) > len(location) for other, _ in located)

"""Reading the text of a configuration: YAML in which every key keeps its line."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from semrsm_dist.data.opening import require_file
from semrsm_dist.errors import ConfigError, reason_of

KeyPath = tuple[str, ...]
Places = dict[KeyPath, str]

MOST_BYTES = 2**20
"""Size of a configuration file. It lists no images: tables do."""

MOST_NODES = 100_000
"""Keys and values of a configuration with its aliases written out, which nine lines can make billions of."""


class _Loader(yaml.SafeLoader):
    """Reads `1e-3` as a number, as YAML 1.2 does, and `2025-01-31` as text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_document(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], Places]:
    """Read a YAML file of keys and values, and apply settings to it.

    Settings are `dotted.key=value`, the value in YAML; one that begins with `--` is an option of its own. Returns the
    nested mapping, and the place of each key by its path: `file:line` or `--set key=value`. Raises ConfigError if the
    file cannot be read, is not YAML, repeats a key, or a setting cannot be applied.
    """
    document, node = _parse(_read_text(path), str(path), has_lines=True)
    if not isinstance(document, dict):
        found = "nothing" if document is None else reprlib.repr(document)
        raise ConfigError(f"{path}: expected keys and values such as `run: runs/mine`, found {found}")
    places = {key: f"{path}:{line}" for key, line in _key_lines(node, str(path))}
    apply_overrides(document, places, overrides)
    return document, places


def _read_text(path: Path) -> str:
    if os.path.exists(path / "run.json"):  # noqa: PTH110 - where it cannot be looked up, opening says why
        raise ConfigError(
            f"{path}: this is a run directory, not a configuration: open the run with semrsm_dist.open_run, see its "
            f"progress with semrsm status, or continue it with the configuration that it was started with"
        )
    try:
        require_file(path)
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not text in UTF-8 (byte {error.start}): a configuration is a YAML file; check the path, or "
            "save the file as UTF-8"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: the configuration cannot be read ({reason_of(error)}); check the path"
        ) from error
    if len(content) > MOST_BYTES:
        raise ConfigError(
            f"{path}: larger than {MOST_BYTES // 2**20} MiB, so not a configuration, which is a YAML file of some "
            "lines; check the path"
        )
    return text


def apply_overrides(document: dict[str, Any], places: Places, overrides: Sequence[str]) -> None:
    """Replace values of a document by `dotted.key=value` settings, and their places by the settings.

    Raises ConfigError if a setting is not of that form or cannot be applied.
    """
    if isinstance(overrides, str) or not all(isinstance(override, str) for override in overrides):
        raise ConfigError(f"expected a list of settings such as ['workers=2'], found {overrides!r}")
    for override in overrides:
        origin = override if override.startswith("--") else f"--set {override}"
        key, value = _parse_override(override.removeprefix("--"), origin)
        _apply(document, key, value, origin)
        for old in [old for old in places if old[: len(key)] == key]:
            del places[old]
        places[key] = origin


def parse_settings(settings: Sequence[str], option: str) -> dict[str, Any]:
    """Return `name=value` settings of an option as a mapping; values are YAML.

    Raises ConfigError if one is not of that form, or a name is given twice.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise ConfigError(f"{option} {setting}: expected name=value, for example {option} seed=1")
        if name in values:
            raise ConfigError(f"{option} {setting}: {name} is given twice; remove one")
        values[name] = _parse(text, f"{option} {setting}", has_lines=False)[0]
    return values


def _parse(text: str, origin: str, *, has_lines: bool) -> tuple[Any, yaml.Node | None]:
    """Return the content of a YAML text, and its syntax tree."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        content = None if node is None else loader.construct_document(node)
        n_nodes = 0 if node is None else _count(node, {})
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{origin}:{mark.line + 1}" if has_lines and mark else origin
        problem = error.problem or error.context
        raise ConfigError(
            f"{where}: not valid YAML: {problem}; check indentation, brackets and quotes"
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(
            f"{origin}: nested too deeply, or an alias contains itself; write it out"
        ) from error
    if n_nodes > MOST_NODES:
        raise ConfigError(
            f"{origin}: more than {MOST_NODES} keys and values with its aliases written out; a configuration has some "
            "dozens: remove aliases of aliases"
        )
    return content, node


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many nodes there are with all aliases written out; one within itself, refused later, counts once."""
    if id(node) not in known:
        known[id(node)] = 1
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        inner = (one for part in parts for one in (part if isinstance(part, tuple) else (part,)))
        known[id(node)] += sum(_count(one, known) for one in inner)
    return known[id(node)]


def _parse_override(override: str, origin: str) -> tuple[KeyPath, Any]:
    key, equals, text = override.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise ConfigError(f"{origin}: expected key=value, for example --set matching.tolerance=1e-4")
    return path, _parse(text, origin, has_lines=False)[0]


def _apply(document: dict[str, Any], path: KeyPath, value: Any, origin: str) -> None:
    *parents, last = path
    target = document
    for parent in parents:
        if target.get(parent) is None:
            target[parent] = {}
        target = target[parent]
        if not isinstance(target, dict):
            raise ConfigError(
                f"{origin}: {parent!r} is not a section with keys, but {target!r}; "
                f"set the whole of {parent!r}"
            )
    target[last] = value


def _key_lines(
    node: yaml.Node | None, origin: str, prefix: KeyPath = (), above: tuple[yaml.Node, ...] = ()
) -> Iterator[tuple[KeyPath, int]]:
    """Yield the path and line of every key and list item; refuse keys that are written twice."""
    if node in above:
        raise ConfigError(f"{origin}: {'.'.join(prefix)!r} is an alias that contains itself; write it out")
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            path = (*prefix, name)
            if name in first:
                raise ConfigError(
                    f"{origin}:{line}: the key {'.'.join(path)!r} is already in line {first[name]}; "
                    "remove one of them"
                )
            first[name] = line
            yield path, line
            yield from _key_lines(value, origin, path, (*above, node))
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            path = (*prefix, str(index))
            yield path, item.start_mark.line + 1
            yield from _key_lines(item, origin, path, (*above, node))

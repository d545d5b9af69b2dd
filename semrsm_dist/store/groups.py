"""Zarr groups, and what describes groups and arrays: their `zarr.json`."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import zarr
import zarr.errors

from semrsm_dist.data.opening import NOT_THERE
from semrsm_dist.errors import StorageError, unreadable
from semrsm_dist.store import paths
from semrsm_dist.store.paths import RunPath

log = logging.getLogger(__name__)

METADATA_ERRORS = (ValueError, TypeError, KeyError, AttributeError)
"""Errors that Zarr raises for a `zarr.json` that is truncated or invalid."""


class DamagedDescriptionError(StorageError):
    """A `zarr.json` is not what should be in its place."""


def create_group(root: RunPath, name: str) -> zarr.Group:
    """Open a group below a root, making it and all groups above it, so that the root opens as a whole.

    A damaged description is written anew, without attributes. Raises StorageError if it cannot be made.
    """
    with paths.writing(root / name):
        parts = name.split("/")
        for folder in (root, *(root.joinpath(*parts[: depth + 1]) for depth in range(len(parts)))):
            group = _make_group(folder)
        return group


def _make_group(folder: RunPath) -> zarr.Group:
    file, problem = folder / "zarr.json", "not the description of a group"
    paths.make_way(folder, for_folder=True)
    paths.make_way(file)
    try:
        if not paths.is_file(file) or _is_group(read_description(folder)):
            with reading_metadata(folder):
                return zarr.open_group(paths.zarr_store(folder), mode="a", use_consolidated=False)
    except (DamagedDescriptionError, zarr.errors.ContainsArrayError) as error:
        problem = str(error.__cause__ or error)
    log.warning("%s: damaged (%s); it is written anew", file, problem)
    paths.remove_file(file)
    return zarr.open_group(paths.zarr_store(folder), mode="a", use_consolidated=False)


def _is_group(description: Mapping[str, Any]) -> bool:
    """Return whether a description is that of a group; Zarr passes over names that it does not know."""
    kept = {name: description[name] for name in description.keys() - {"attributes", "consolidated_metadata"}}
    return kept == {"zarr_format": 3, "node_type": "group"}


def read_attributes(group: RunPath) -> dict[str, Any]:
    """Return the attributes of a group; none if it is not there or its description is damaged."""
    attributes: dict[str, Any] = read_description(group).get("attributes", {})
    return attributes


def read_description(node: RunPath) -> dict[str, Any]:
    """Return the description of an array or a group as it is written; empty if it is missing or damaged.

    Raises UnreadableFileError if the file system cannot read it.
    """
    file = node / "zarr.json"
    try:
        description = json.loads(paths.read_file(file))
    except (*NOT_THERE, ValueError, RecursionError):
        return {}
    except OSError as error:
        raise unreadable(file, error) from error
    is_object = isinstance(description, dict) and isinstance(description.get("attributes"), dict)
    return description if is_object else {}


@contextlib.contextmanager
def reading_metadata(node: RunPath) -> Iterator[None]:
    """Turn Zarr's errors for a damaged description of an array or a group into one that names it.

    Raises DamagedDescriptionError if `zarr.json` of the node is truncated or invalid.
    """
    file = node / "zarr.json"
    try:
        yield
    except (FileNotFoundError, zarr.errors.ContainsGroupError):
        raise
    except METADATA_ERRORS as error:
        raise DamagedDescriptionError(
            f"{file}: not the description of what should be here ({error}); nothing was overwritten: start the "
            "run's command (semrsm run ...), which writes it anew and keeps the chunks"
        ) from error

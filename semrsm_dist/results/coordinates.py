"""What goes with the images of a layer's results: their ids, labels, groups and norms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.data.entries import format_labels
from semrsm_dist.data.manifest import Manifest
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.labelled import DIMENSIONS, Values
from semrsm_dist.store.record import RunRecord, Side

Groups = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Numbers of the groups of all rows and columns, equal where images cannot be neighbours; -1 for none."""


def number_groups(manifests: Mapping[Side, Manifest]) -> Groups | None:
    """Return the groups of the images of rows and columns; None if there are none."""
    columns = manifests["images"].groups()
    rows = manifests.get("queries", manifests["images"]).groups()
    known = {group: number for number, group in enumerate({*rows, *columns} - {None})}
    if not known:
        return None
    numbers = [
        np.array([-1 if group is None else known[group] for group in side], np.int64)
        for side in (rows, columns)
    ]
    return numbers[0], numbers[1]


def digest_labels(manifests: Mapping[Side, Manifest]) -> str:
    """Return a hash of settings that may change from one session to the next without changing a number."""
    facts = {side: [manifest.labels(), manifest.groups()] for side, manifest in manifests.items()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def collect_coordinates(
    directory: RunDirectory, record: RunRecord, layer: str, manifests: Mapping[Side, Manifest]
) -> dict[str, tuple[str, Values]]:
    """Return the coordinates of a layer's rows and columns by name, each with its dimension."""
    coordinates: dict[str, tuple[str, Values]] = {}
    for dimension, side in zip(DIMENSIONS, (record.row_side, "images"), strict=True):
        norms: Any = FeatureStore(directory.features, side, layer).read_squared_norms()
        coordinates |= describe_images(dimension, manifests[side]) | {
            f"squared_norm{dimension.removeprefix('image')}": (dimension, norms)
        }
    return coordinates


def describe_images(dimension: str, manifest: Manifest) -> dict[str, tuple[str, Values]]:
    """Return the coordinates of one dimension that the manifest has."""
    suffix = dimension.removeprefix("image")
    values: dict[str, Values] = {
        dimension: manifest.image_ids(),
        f"labels{suffix}": list(map(format_labels, manifest.labels())),
        f"group{suffix}": [group or "" for group in manifest.groups()],
    }
    return {name: (dimension, column) for name, column in values.items()}

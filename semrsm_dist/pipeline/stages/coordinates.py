"""What goes with the images of a layer's results: their ids, labels, groups and norms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from semrsm_dist.data.entries import format_labels
from semrsm_dist.data.manifest import Manifest
from semrsm_dist.pipeline.session import Session
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.labelled import DIMENSIONS, Values
from semrsm_dist.store.record import RunRecord, Side


def digest_labels(manifests: Mapping[Side, Manifest]) -> str:
    """Return a hash of settings that may change from one session to the next without changing a number."""
    facts = {side: [manifest.labels(), manifest.groups()] for side, manifest in manifests.items()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def collect_coordinates(
    session: Session, record: RunRecord, layer: str, manifests: Mapping[Side, Manifest]
) -> dict[str, tuple[str, Values]]:
    """Return the coordinates of a layer's rows and columns by name, each with its dimension."""
    sides = dict(zip(DIMENSIONS, (record.row_side, "images"), strict=True))
    norms = {
        dimension: FeatureStore(session.directory.features, side, layer).read_squared_norms()
        for dimension, side in sides.items()
    }
    coordinates: dict[str, tuple[str, Values]] = {}
    for dimension, side in sides.items():
        manifest, suffix = manifests[side], dimension.removeprefix("image")
        values: dict[str, Values] = {
            dimension: manifest.image_ids(),
            f"labels{suffix}": list(map(format_labels, manifest.labels())),
            f"group{suffix}": [group or "" for group in manifest.groups()],
            f"squared_norm{suffix}": norms[dimension],
        }
        coordinates |= {name: (dimension, column) for name, column in values.items()}
    return coordinates

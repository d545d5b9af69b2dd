"""Verification of what lies beside the results: coordinates and attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.data.manifest import Manifest
from semrsm_dist.errors import StorageError, UnreadableFileError
from semrsm_dist.results.coordinates import describe_images, digest_labels
from semrsm_dist.results.verification.features import SoundFeatures
from semrsm_dist.results.verification.inspection import Inspection, kind_of
from semrsm_dist.results.verification.numbers import Problem
from semrsm_dist.results.verification.report import DESCRIPTION, Kind
from semrsm_dist.store.chunks import DamagedChunkError
from semrsm_dist.store.labelled import DIMENSIONS, LabelledGroup
from semrsm_dist.store.paths import is_file
from semrsm_dist.store.record import Side
from semrsm_dist.store.tiles import QUANTITIES, TileStore


def inspect_coordinates(
    inspection: Inspection,
    group: LabelledGroup,
    manifests: Mapping[Side, Manifest],
    features: tuple[SoundFeatures, SoundFeatures],
) -> None:
    """Compare the coordinates of a finished group with the manifests and the features' norms.

    Labels and groups are those of the session that wrote them: they are compared if that was the last one.
    """
    layer, record = group.layer, inspection.record
    is_current = group.read_attributes().get("recipe", {}).get("labels_sha256") == digest_labels(manifests)
    for dimension, side, known in zip(DIMENSIONS, (record.row_side, "images"), features, strict=True):
        suffix = dimension.removeprefix("image")
        expected: dict[str, Any] = {
            name: np.asarray(values, np.str_)
            for name, (_, values) in describe_images(dimension, manifests[side]).items()
            if is_current or name == dimension
        }
        for name in (dimension, f"labels{suffix}", f"group{suffix}", f"squared_norm{suffix}"):
            values = _read(inspection, group, name)
            if values is None or inspection.fast:
                continue
            wanted = known.squared_norms if name.startswith("squared_norm") else expected.get(name)
            wrong = None if wanted is None else _first_difference(values, wanted)
            if wrong is not None:
                text = f"it is not that of the {'features' if wanted is known.squared_norms else 'manifest'}: {wrong}"
                inspection.add(group.group / name, layer, "", Problem(Kind.COORDINATES, text))
    if isinstance(group, TileStore):
        names = _read(inspection, group, "quantity")
        if names is not None and tuple(names.tolist()) != QUANTITIES:
            text = f"the quantities are {', '.join(QUANTITIES)}, not {', '.join(names.tolist())}"
            inspection.add(group.group / "quantity", layer, "", Problem(Kind.COORDINATES, text))
    if not is_current and layer in record.requested:
        text = "the labels or groups beside the results are not those of the manifest"
        inspection.add(group.group, layer, DESCRIPTION, Problem(Kind.COORDINATES, text))


def inspect_attributes(inspection: Inspection, group: LabelledGroup, attributes: Mapping[str, Any]) -> None:
    """Compare the fingerprint that a finished group carries with the record's."""
    layer = group.layer
    expected = inspection.record.fingerprint | inspection.record.layers[layer].facts
    if attributes.get("layer") != layer or attributes.get("fingerprint") != expected:
        text = "it names another layer or fingerprint than the record"
        inspection.add(group.group, layer, DESCRIPTION, Problem(Kind.FOREIGN, text))


def _read(inspection: Inspection, group: LabelledGroup, name: str) -> NDArray[Any] | None:
    """Return a coordinate; None if it is at fault or cannot be read, which is then added."""
    try:
        return group.coordinate(name)
    except DamagedChunkError as error:
        problem = Problem(kind_of(error), f"its chunk {error.fault}")
    except UnreadableFileError as error:
        inspection.unchecked.append(str(error))
        return None
    except StorageError as error:
        is_there = is_file(group.group / name / DESCRIPTION)
        problem = Problem(Kind.DESCRIPTION if is_there else Kind.MISSING, str(error))
    inspection.add(group.group / name, group.layer, "", problem)
    return None


def _first_difference(found: NDArray[Any], wanted: NDArray[Any]) -> str | None:
    """Return what differs first, where `wanted` is known."""
    if found.shape != wanted.shape:
        return f"{len(found)} entries, not {len(wanted)}"
    wrong = found != wanted
    if wanted.dtype.kind == "f":
        wrong &= ~np.isnan(wanted)
    places = np.flatnonzero(wrong)
    if not places.size:
        return None
    first = int(places[0])
    return (
        f"{places.size} of {len(found)} entries, the first {first}: {found[first]!r}, not {wanted[first]!r}"
    )

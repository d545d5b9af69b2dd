"""A verification from beginning to end: the parts in order, for each layer of the run."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from semrsm_dist.config.schema import RunConfig
from semrsm_dist.data.manifest import Manifest
from semrsm_dist.errors import ConfigError, StorageError
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.progress import Reporter, require_reporter
from semrsm_dist.results.coordinates import number_groups
from semrsm_dist.results.matrices import LayerMatrices
from semrsm_dist.results.verification.coordinates import inspect_attributes, inspect_coordinates
from semrsm_dist.results.verification.features import SoundFeatures, inspect_features
from semrsm_dist.results.verification.files import (
    find_description_fault,
    inspect_groups,
    inspect_record,
    inspect_summary,
    read_manifests,
)
from semrsm_dist.results.verification.images import inspect_images
from semrsm_dist.results.verification.inspection import Inspection
from semrsm_dist.results.verification.matrices import inspect_matrices
from semrsm_dist.results.verification.neighbours import NeighbourInspection
from semrsm_dist.results.verification.numbers import Problem
from semrsm_dist.results.verification.recorded import recorded_config
from semrsm_dist.results.verification.report import DESCRIPTION, SAMPLE, Kind, Report
from semrsm_dist.results.verification.tiles import TileInspection
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.inventory import Inventory
from semrsm_dist.store.labelled import COMPLETE, LabelledGroup
from semrsm_dist.store.matrices import MatrixStore
from semrsm_dist.store.record import RunRecord, Side
from semrsm_dist.store.results import result_store


def verify(
    directory: RunDirectory,
    record: RunRecord,
    *,
    fast: bool = False,
    images: bool = False,
    sample: int = SAMPLE,
    seed: int | None = None,
    reporter: Reporter | None = None,
    is_working: bool = False,
) -> Report:
    """Verify a run; see `semrsm_dist.results.run.Run.verify`. While a driver is at work, nothing counts as missing."""
    for name, value in (("sample", sample), ("seed", 0 if seed is None else seed)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"{name}: {value!r}: expected a whole number from 0 on")
    inspection = Inspection(
        directory,
        record,
        require_reporter(reporter),
        fast,
        sample,
        secrets.randbelow(2**32) if seed is None else seed,
        is_working,
    )
    config = _read_config(inspection)
    matcher = None if config is None else _find_matcher(inspection, config)
    inspect_record(inspection)
    inspect_groups(inspection)
    inspect_summary(inspection)
    manifests = read_manifests(inspection)
    features: dict[tuple[Side, str], SoundFeatures] = {}
    for layer in record.layers:
        with inspection.reading(result_store(directory, record, layer).group, layer):
            _inspect_layer(inspection, layer, manifests, matcher, features)
    if images and config is not None:
        inspect_images(inspection, config, manifests, features)
    return Report(
        str(directory.path),
        tuple(inspection.faults),
        tuple(inspection.unchecked),
        tuple(inspection.incomplete),
        inspection.seed,
        inspection.checked,
        tuple(inspection.notes),
    )


def _read_config(inspection: Inspection) -> RunConfig | None:
    try:
        return recorded_config(inspection.directory, inspection.record)
    except ConfigError as error:
        inspection.unchecked.append(
            f"matcher and images: the recorded configuration is not understood here: {error}"
        )
        return None


def _find_matcher(inspection: Inspection, config: RunConfig) -> Matcher | None:
    matcher = config.matching.make_matcher()
    known = inspection.record.matching
    found = {"matcher": matcher.name, "version": matcher.version, **matcher.parameters}
    if found == {name: known.get(name) for name in found}:
        return matcher
    inspection.unchecked.append(f"gaps: the run's matcher {known['matcher']!r} is of another version here")
    return None


def _inspect_layer(
    inspection: Inspection,
    layer: str,
    manifests: Mapping[Side, Manifest],
    matcher: Matcher | None,
    features: dict[tuple[Side, str], SoundFeatures],
) -> None:
    """Check all that is stored of one layer."""
    record, directory = inspection.record, inspection.directory
    store = result_store(directory, record, layer)
    finished = _is_finished(inspection, store)
    for side in record.sides:
        features[side, layer] = inspect_features(inspection, side, layer, needed=finished)
    both = features[record.row_side, layer], features["images", layer]
    if record.neighbours is None:
        tiles = TileInspection(inspection, layer, both, matcher, finished)
        tiles.inspect()
    else:
        groups = number_groups(manifests) if len(manifests) == len(record.sides) else None
        NeighbourInspection(inspection, layer, both, matcher, finished, groups).inspect()
    if not finished:
        return
    attributes = store.read_attributes()
    inspect_attributes(inspection, store, attributes)
    if len(manifests) == len(record.sides):
        inspect_coordinates(inspection, store, manifests, both)
    if record.neighbours is None:
        if tiles.is_sound and not inspection.fast and all(side.known.all() for side in both):
            tiles.inspect_kernels(attributes)
        _inspect_stored(inspection, layer, tiles.is_sound, manifests, both)


def _is_finished(inspection: Inspection, store: LabelledGroup) -> bool:
    """Return whether all of a layer must be there."""
    layer, finished = store.layer, store.is_finished()
    if inspection.is_working:
        return False
    if finished:
        return True
    was_finished = layer in (inspection.directory.read_summary() or {}).get("layers", {})
    problem = _find_alteration(store) if was_finished else None
    if problem:
        inspection.add(store.group, layer, DESCRIPTION, problem)
    elif layer in inspection.record.requested:
        inspection.incomplete.append(f"layer {layer} is not finished: start the run's command again")
    return False


def _find_alteration(store: LabelledGroup) -> Problem | None:
    """Return what is wrong with the description of a group that was finished; None if it was begun again since."""
    if problem := find_description_fault(store.group):
        return problem
    if store.read_attributes().get(COMPLETE) in (None, False):
        return None
    return Problem(
        Kind.DESCRIPTION, "the description of this group is not as it was when the group was finished"
    )


def _was_stored(inspection: Inspection, store: MatrixStore) -> bool:
    """Return whether a session that ended in order has left matrices of a layer."""
    place = f"{store.root.name}/{store.layer}/"
    return any(file.startswith(place) for file in Inventory.read(inspection.directory).files)


def _inspect_stored(
    inspection: Inspection,
    layer: str,
    is_sound: bool,
    manifests: Mapping[Side, Manifest],
    features: tuple[SoundFeatures, SoundFeatures],
) -> None:
    """Check the stored matrices of a layer, if there are any of its present kernels and labels."""
    directory, record = inspection.directory, inspection.record
    store, tiles = MatrixStore(directory.matrices, layer), result_store(directory, record, layer)
    recipe = store.read_attributes().get("recipe")
    if recipe is None or not store.is_finished() or recipe != tiles.read_attributes().get("recipe"):
        if record.config["output"]["matrices"] == "stored" and layer in record.requested:
            problem = _find_alteration(store) if _was_stored(inspection, store) else None
            if problem:
                inspection.add(store.group, layer, DESCRIPTION, problem)
            else:
                inspection.incomplete.append(
                    f"layer {layer}: its matrices are to be stored, and are not yet: start the run's command again"
                )
        return
    if len(manifests) == len(record.sides):
        inspect_coordinates(inspection, store, manifests, features)
    try:
        matrices = LayerMatrices.open(tiles, record.layout(layer))  # type: ignore[arg-type]
    except StorageError as error:
        inspection.unchecked.append(f"{store.group}: {error}")
        return
    inspect_matrices(inspection, store, matrices, compare=is_sound and not inspection.fast)

"""Verification of the run's small files: the record, the manifests and the summary."""

from __future__ import annotations

from collections.abc import Mapping

from semrsm_dist.data.manifest import Manifest
from semrsm_dist.errors import InputError, StorageError
from semrsm_dist.results.verification.inspection import Inspection
from semrsm_dist.results.verification.numbers import Problem
from semrsm_dist.results.verification.report import DESCRIPTION, Kind
from semrsm_dist.store import chunks
from semrsm_dist.store.directory import RECORD, RECORD_COPY, SUMMARY
from semrsm_dist.store.paths import RunPath
from semrsm_dist.store.record import Side, read_record


def inspect_record(inspection: Inspection) -> None:
    """Check that both copies of the record are there and the same."""
    for name in (RECORD, RECORD_COPY):
        path = inspection.directory.path / name
        try:
            if read_record(path) != inspection.record:
                problem = Problem(Kind.DESCRIPTION, "it differs from the record's other copy, which is used")
            else:
                continue
        except FileNotFoundError:
            problem = Problem(Kind.MISSING, "one of the two copies of the record is not there")
        except StorageError as error:
            problem = Problem(Kind.DAMAGED, str(error))
        if not inspection.is_working:  # a driver may be writing it
            inspection.add(path, None, "", problem)


def inspect_groups(inspection: Inspection) -> None:
    """Check the descriptions of the groups above the layers' own."""
    directory = inspection.directory
    for root in (
        directory.features,
        directory.tiles,
        directory.candidates,
        directory.neighbours,
        directory.matrices,
    ):
        if not root.is_dir():
            continue
        for group in (root, *(root / side for side in inspection.record.sides if root == directory.features)):
            if problem := find_description_fault(group):
                inspection.add(group, None, DESCRIPTION, problem)


def find_description_fault(group: RunPath) -> Problem | None:
    """Return what is wrong with the description of a group: it is missing or damaged; None if it can be read."""
    if chunks.read_description(group):
        return None
    if (group / DESCRIPTION).exists():
        return Problem(Kind.DESCRIPTION, "the description of this group is damaged")
    return Problem(Kind.MISSING, "the description of this group is not there")


def inspect_summary(inspection: Inspection) -> None:
    """Check that the summary can be read, if there is one."""
    path = inspection.directory.path / SUMMARY
    if path.exists() and inspection.directory.read_summary() is None:
        inspection.add(path, None, "", Problem(Kind.DAMAGED, "the summary cannot be read"))


def read_manifests(inspection: Inspection) -> Mapping[Side, Manifest]:
    """Return the manifests that are those of the fingerprint; others are faults."""
    manifests = {}
    for side in inspection.record.sides:
        path = inspection.directory.manifest(side)
        try:
            manifest = inspection.directory.read_manifest(side)
        except (StorageError, InputError, TypeError) as error:
            kind = Kind.DAMAGED if path.exists() else Kind.MISSING
            inspection.add(path, None, "", Problem(kind, str(error)))
            continue
        expected = tuple(inspection.record.fingerprint[f"{side}.{name}"] for name in ("count", "sha256"))
        found = len(manifest.readable), manifest.digest()
        if found == expected:
            manifests[side] = manifest
        else:
            text = f"number and digest of its images are {found}, but those of the fingerprint are {expected}"
            inspection.add(path, None, "", Problem(Kind.MANIFEST, text))
    return manifests

"""Verification of the run's small files: the record, the manifests and the summary."""

from __future__ import annotations

from collections.abc import Mapping

from semrsm_dist.data.manifest import Manifest
from semrsm_dist.data.opening import NOT_THERE
from semrsm_dist.errors import InputError, StorageError, UnreadableFileError, reason_of
from semrsm_dist.results.verification.inspection import Inspection
from semrsm_dist.results.verification.numbers import Problem
from semrsm_dist.results.verification.report import DESCRIPTION, Kind
from semrsm_dist.store import groups, paths
from semrsm_dist.store.directory import RECORD, RECORD_COPY, SUMMARY
from semrsm_dist.store.paths import RunPath
from semrsm_dist.store.record import Side, read_record
from semrsm_dist.store.sealed import unseal


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
        except UnreadableFileError as error:
            inspection.unchecked.append(str(error))
            continue
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
        groups = (root, *(root / side for side in inspection.record.sides if root == directory.features))
        for group in groups:
            with inspection.reading(group, None):
                if paths.is_folder(root) and (problem := find_description_fault(group)):
                    inspection.add(group, None, DESCRIPTION, problem)


def find_description_fault(group: RunPath) -> Problem | None:
    """Return what is wrong with the description of a group: it is missing or damaged; None if it can be read."""
    if groups.read_description(group):
        return None
    if paths.exists(group / DESCRIPTION):
        return Problem(Kind.DESCRIPTION, "the description of this group is damaged")
    return Problem(Kind.MISSING, "the description of this group is not there")


def inspect_summary(inspection: Inspection) -> None:
    """Check that the summary can be read, if there is one."""
    path = inspection.directory.path / SUMMARY
    try:
        unseal(paths.read_file(path))
    except FileNotFoundError:
        return
    except (*NOT_THERE, ValueError, RecursionError) as error:
        inspection.add(
            path, None, "", Problem(Kind.DAMAGED, f"the summary cannot be read ({reason_of(error)})")
        )
    except OSError as error:
        inspection.unchecked.append(
            f"{path}: cannot be read ({reason_of(error)}); check the disk and the permissions"
        )


def read_manifests(inspection: Inspection) -> Mapping[Side, Manifest]:
    """Return the manifests that are those of the fingerprint; others are faults."""
    manifests = {}
    for side in inspection.record.sides:
        path = inspection.directory.manifest(side)
        try:
            manifest = inspection.directory.read_manifest(side)
        except UnreadableFileError as error:
            inspection.unchecked.append(str(error))
            continue
        except (StorageError, InputError, TypeError) as error:
            kind = Kind.DAMAGED if paths.exists(path) else Kind.MISSING
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

"""What a verification found."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

from semrsm_dist.errors import counted

SAMPLE = 1000
"""Pairs of a layer that are solved again by default."""

DESCRIPTION = "zarr.json"
"""Place of a fault in the description of an array or group, or in its attributes."""

SOLVED = "pairs solved again"
"""What a report counts even if there are none."""

SHOWN = 20
"""Faults that are printed of each kind."""


class Kind(StrEnum):
    """What can be wrong."""

    MISSING = "missing"
    """Part of a finished layer, or of the run, is not there."""
    DAMAGED = "damaged"
    """The bytes cannot be decoded."""
    FOREIGN = "foreign"
    """A chunk says that it belongs to another run, layer or place, or that its content is another."""
    DESCRIPTION = "description"
    """A `zarr.json`, or the record, is unreadable or describes something else."""
    NOT_FINITE = "not-finite"
    """A number is NaN or infinite, and neither token counts nor a norm of zero explain it."""
    NORMS = "norms"
    """A number contradicts the norms of the images, or norms or pooled vectors contradict the features."""
    ASYMMETRIC = "asymmetric"
    """Two entries that must be equal differ."""
    IDENTITY = "identity"
    """The inner product position by position is not that of the features, or larger than a certified match."""
    GAP = "gap"
    """A gap is negative, or above what the matcher certifies."""
    CERTIFICATE = "certificate"
    """The best permutation of a pair lies outside of what is stored of it."""
    KERNEL = "kernel"
    """A stored matrix, or the width of a kernel, is not what the inner products and norms give."""
    FEATURES = "features"
    """The features are not those of the fingerprint, or of the images."""
    COORDINATES = "coordinates"
    """Ids, labels, groups or norms beside the results are not those of the manifest and the features."""
    MANIFEST = "manifest"
    """The manifest is not that of the fingerprint, or of the results."""
    NEIGHBOURS = "neighbours"
    """Neighbours are out of order or impossible, or a better one was missed."""
    FLOORS = "floors"
    """A floor lies above what an image's neighbours reach, so that candidates can be missed."""
    IMAGE = "image"
    """An image is no longer the one that the run began with."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes
    ----------
    array
        Path of the array or the file in the run directory.
    layer
        The layer, if it is of one.
    place
        Position of the chunk in the array's grid, such as `0.2.5`; the image's id for images; "" for the whole.
    kind
        What kind of fault it is.
    message
        What was found, and where.
    repaired
        Whether it has been repaired.
    """

    array: str
    layer: str | None
    place: str
    kind: Kind
    message: str
    repaired: bool = False

    def __str__(self) -> str:
        return f"{self.array}{f' {self.place}' if self.place else ''}: {self.kind}: {self.message}"


@dataclass(frozen=True)
class Report:
    """What a verification found.

    Attributes
    ----------
    run
        The run directory.
    faults
        What is wrong.
    unchecked
        What could not be checked, and why.
    incomplete
        What has not been computed yet, layer by layer; of it, only what is there was checked.
    seed
        Of the samples: the same seed, and the same size, draw the same pairs.
    checked
        How many chunks, pairs and images were checked, by name.
    notes
        Layers of which no pairs were solved again, and why.
    """

    run: str
    faults: tuple[Fault, ...] = ()
    unchecked: tuple[str, ...] = ()
    incomplete: tuple[str, ...] = ()
    seed: int = 0
    checked: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong with what was checked, or nothing any more."""
        return all(fault.repaired for fault in self.faults)

    @property
    def exit_code(self) -> int:
        """1 with faults, else 2 if something could not be checked, else 3 if the run is incomplete, else 0."""
        if not self.is_sound:
            return 1
        return 2 if self.unchecked else 3 if self.incomplete else 0

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, with one entry for each fault."""
        return {**asdict(self), "sound": self.is_sound, "exit_code": self.exit_code}

    def with_repaired(self, before: Iterable[Fault]) -> Self:
        """Return this report, made after a repair, with the faults before it that are gone marked as repaired."""
        left = {(fault.array, fault.place, fault.kind) for fault in self.faults}
        gone = [fault for fault in before if (fault.array, fault.place, fault.kind) not in left]
        repaired = dict.fromkeys(replace(fault, repaired=True) for fault in gone)
        return replace(self, faults=(*repaired, *self.faults))


def format_report(report: Report) -> str:
    """Format a report for people."""
    counts = ", ".join(
        _counted(count, name) for name, count in report.checked.items() if count or name == SOLVED
    )
    lines = [f"{report.run}: checked {counts or 'nothing'} (seed {report.seed})"]
    shown: dict[tuple[Kind, bool], int] = {}
    for fault in report.faults:
        key = fault.kind, fault.repaired
        shown[key] = shown.get(key, 0) + 1
        if shown[key] <= SHOWN:
            lines.append(f"  {'repaired: ' if fault.repaired else ''}{fault}")
    lines += [
        f"  and {count - SHOWN} more of kind {kind} (--json lists all)"
        for (kind, _), count in shown.items()
        if count > SHOWN
    ]
    lines += [f"  {note}" for note in report.notes]
    lines += [f"  not checked: {reason}" for reason in report.unchecked]
    lines += [f"  incomplete: {what}" for what in report.incomplete]
    left = sum(not fault.repaired for fault in report.faults)
    if left:
        lines.append(f"  {counted(left, 'fault')}: semrsm verify --repair computes again what is broken")
    else:
        lines.append("  sound" if report.exit_code == 0 else "  no fault in what was checked")
    return "\n".join(lines)


def _counted(count: int, what: str) -> str:
    """Return a count with what was counted; of one, its first noun is in the singular."""
    return f"{count} {re.sub(r's(?= |$)', '', what, count=1) if count == 1 else what}"

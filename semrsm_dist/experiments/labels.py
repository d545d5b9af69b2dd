"""What experiments need of labels: that there are some, and that areas and numbers of objects are known."""

from __future__ import annotations

from typing import Literal

from semrsm_dist.data.manifest import Manifest
from semrsm_dist.errors import InputError, counted


def require_labels(images: Manifest, queries: Manifest | None = None) -> None:
    """Raise InputError unless some image of each side has labels."""
    for side, manifest in (("images", images), ("queries", queries)):
        if manifest is not None and not any(manifest.labels()):
            raise InputError(
                f"{side}: none has labels, and without them hits cannot be judged: give a table with labels, or a "
                "folder with a subfolder for each class"
            )


def require_areas(images: Manifest, queries: Manifest | None, min_area: float) -> list[str]:
    """Return a warning of images whose labels count whatever their area, which is unknown; see `Manifest.labels`.

    Raises InputError if areas are unknown on a side altogether, or no label of a side is large enough.
    """
    warnings: list[str] = []
    for side, manifest in (("images", images), ("queries", queries)):
        if manifest is None or min_area <= 0:
            continue
        unknown, labelled = manifest.count_without_areas(), sum(map(bool, manifest.labels()))
        if unknown == labelled:
            raise InputError(
                f"{side}: how much of an image a label covers is not known, so min_area cannot be applied: use a "
                "source that knows it (docs/own-data.md), give a table with label_areas, or leave min_area at 0"
            )
        kept = sum(map(bool, manifest.labels(min_area)))
        if not kept:
            raise InputError(
                f"{side}: no label covers {min_area:g} of its image, so there is nothing to retrieve; lower min_area"
            )
        warnings.append(
            f"{side}: labels that cover less than {min_area:g} of an image do not count: {kept} of {labelled} labelled "
            f"images keep one{f'; of {unknown}, areas are unknown, and all labels count' if unknown else ''}"
        )
    return warnings


def require_weights(
    images: Manifest, queries: Manifest | None, by: Literal["count", "area"], min_area: float
) -> list[str]:
    """Return a note of the weights of labels, and of images whose weights are unknown, which do not take part.

    Raises InputError if they are unknown, or 0, for all images of a side.
    """
    unit, column = ("number of objects", "label_counts") if by == "count" else ("area", "label_areas")
    notes: list[str] = []
    for side, manifest in (("images", images), ("queries", queries)):
        if manifest is None:
            continue
        labelled = sum(map(bool, manifest.labels(min_area)))
        weighed = sum(map(any, manifest.label_weights(by, min_area)))
        if not weighed:
            raise InputError(
                f"{side}: the {unit} of labels is not known, so weights: {by} cannot be applied: use a source that "
                f"knows it (docs/own-data.md), give a table with {column}, or leave weights at none"
            )
        left_out = labelled - weighed
        notes.append(
            f"{side}: labels are weighed by the {unit} of each"
            + (f"; {counted(left_out, 'image')} without it left out" if left_out else "")
        )
    return notes

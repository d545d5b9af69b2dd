"""The images of a run: list them, read each once, refuse or skip what cannot be read, keep the manifest."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from semrsm_dist.config.schema import CropsData, FeaturesData, FolderData, Images
from semrsm_dist.data.cityscapes import CityscapesImages
from semrsm_dist.data.crops import ShiftedCrops
from semrsm_dist.data.digits import DigitScenes
from semrsm_dist.data.egoobjects import EgoObjectsImages
from semrsm_dist.data.entries import ImageEntry, ImageSet
from semrsm_dist.data.files import is_uri
from semrsm_dist.data.folder import FolderImages
from semrsm_dist.data.imagenet import ImageNetImages
from semrsm_dist.data.manifest import Manifest, ManifestRow, find_known, scan
from semrsm_dist.data.table import TableImages, read_entries
from semrsm_dist.data.tiny_imagenet import TinyImageNetImages
from semrsm_dist.engine.protocol import Receipt, Resources, Task
from semrsm_dist.errors import ConfigError, InputError, StorageError
from semrsm_dist.pipeline.faults import attempt_each, first_cause
from semrsm_dist.pipeline.session import Session, slices
from semrsm_dist.store.record import Side

SCAN_BATCH = 64
SHOWN = 10

ImageData = Images | CropsData


def make_image_set(data: ImageData) -> ImageSet:
    """Return the image set that a section of the configuration describes."""
    if isinstance(data, CropsData):
        return ShiftedCrops(make_image_set(data.of), data.share, data.shifts, data.sample, data.seed)
    return _IMAGE_SETS[data.source](**data.model_dump(exclude={"source"}))


_IMAGE_SETS: dict[str, Callable[..., ImageSet]] = {
    "digits": DigitScenes,
    "folder": FolderImages,
    "table": TableImages,
    "egoobjects": EgoObjectsImages,
    "cityscapes": CityscapesImages,
    "tiny-imagenet": TinyImageNetImages,
    "imagenet": ImageNetImages,
}
"""By source; their parameters are the keys of its section."""


@dataclass(frozen=True)
class ScanBatch:
    """Images that are scanned together: a unit, which carries its entries so that workers hold no others."""

    first: int
    entries: tuple[ImageEntry, ...] = field(repr=False)


@dataclass(frozen=True)
class ScanWorker:
    """Reads, decodes and hashes batches of images; the rows travel back as the receipts' values."""

    run: Path
    image_set: ImageSet

    def __call__(self, units: tuple[Hashable, ...]) -> Iterator[Receipt]:
        """Scan batches of images."""
        return attempt_each(cast("tuple[ScanBatch, ...]", units), self._scan, self.run)

    def _scan(self, batch: ScanBatch) -> Receipt:
        rows = scan(self.image_set, batch.entries)
        return Receipt(batch, counts={"images": len(rows)}, value=rows)


def scan_images(session: Session, side: str, data: ImageData) -> Manifest:
    """Return the manifest of one side, scanning what is new or changed since an earlier session.

    The engine is asked for workers only if there is something to scan.

    Parameters
    ----------
    session
        The session.
    side
        `images` or `queries`.
    data
        Where the images come from.

    Raises
    ------
    ConfigError
        If the run directory lies among the images.
    InputError
        If there are too few images, or some are unreadable and the configuration does not say to skip them.
    """
    _refuse_run_among_images(session, data)
    image_set = make_image_set(data)
    with session.timed("scan"):
        entries = image_set.entries()
        rows = _rows_without_workers(session, side, image_set, entries)
    new = [index for index, row in enumerate(rows) if row is None]
    if new:
        for index, row in _scan_new(session, image_set, entries, new):
            rows[index] = row
    manifest = Manifest(tuple(row for row in rows if row is not None))
    _check_readable(session, side, manifest)
    return manifest


def _rows_without_workers(
    session: Session, side: str, image_set: ImageSet, entries: Sequence[ImageEntry]
) -> list[ManifestRow | None]:
    """Return what can be told in the driver: all of generated images, and what is as an earlier session saw it."""
    path = session.directory.manifest(side)
    parts: Iterator[list[ManifestRow]] | Iterator[list[ManifestRow | None]]
    if isinstance(image_set, DigitScenes):  # made in less time than it takes to hand them out
        parts = (scan(image_set, entries[start:stop]) for start, stop in slices(len(entries), SCAN_BATCH))
    elif path.exists():
        parts = find_known(image_set, entries, Manifest.from_parquet(path))
    else:
        return [None] * len(entries)
    rows: list[ManifestRow | None] = []
    with session.reporter.stage("scan", len(entries), "images") as shown:
        for part in parts:
            rows += part
            shown.advance(sum(row is not None for row in part))
            if session.stop.is_set():
                raise KeyboardInterrupt
    return rows


def _scan_new(
    session: Session, image_set: ImageSet, entries: Sequence[ImageEntry], new: Sequence[int]
) -> Iterator[tuple[int, ManifestRow]]:
    """Have images scanned by the engine's workers; yield the index and the row of each."""
    batches = [
        ScanBatch(start, tuple(entries[index] for index in new[start:stop]))
        for start, stop in slices(len(new), SCAN_BATCH)
    ]
    worker = ScanWorker(session.directory.path, image_set)
    outcome = session.work(
        "scan",
        lambda: session.engine.start_tasks(worker, Resources(cpus=1)),
        [Task(units=(batch,)) for batch in batches],
        unit="images",
        total=len(entries),
        done=len(entries) - len(new),
    )
    found = {cast("ScanBatch", batch).first: rows for batch, rows in outcome.values}
    if outcome.failures:
        raise StorageError(
            f"{len(outcome.failures)} batches of images could not be scanned; nothing was computed. First cause: "
            f"{first_cause(outcome.failures)}"
        )
    yield from zip(new, (row for batch in batches for row in found[batch.first]), strict=True)


def list_feature_images(side: str, data: FeaturesData, n_images: int) -> Manifest:
    """Return the manifest of ready-made features: ids from the table where there is one, else the index.

    Raises
    ------
    InputError
        If the table does not have one row for each image.
    """
    if data.table is None:
        return Manifest.from_ids([str(index) for index in range(n_images)])
    entries = read_entries(data.table, needs_uri=False)
    if len(entries) != n_images:
        raise InputError(
            f"{data.table}: {len(entries)} rows, but the features of {side} hold {n_images} images; give one row for "
            "each image, in the order of the features"
        )
    return Manifest.from_ids(
        [entry.image_id for entry in entries],
        [entry.labels for entry in entries],
        [entry.group for entry in entries],
    )


def require_enough(rectangular: bool, counts: Mapping[Side, int]) -> None:
    """Refuse a matrix without pairs.

    Raises
    ------
    InputError
        If a symmetric run has fewer than two images or a side of a rectangular run has none.
    """
    least = 1 if rectangular else 2
    for side, count in counts.items():
        if count < least:
            raise InputError(
                f"{side}: {count} usable image{'' if count == 1 else 's'}, but a similarity matrix needs at least "
                f"{least}; add images, or check the path and the file types"
            )


def _refuse_run_among_images(session: Session, data: ImageData) -> None:
    if isinstance(data, CropsData):
        data = data.of
    if not isinstance(data, FolderData) or is_uri(str(data.path)):
        return
    run, folder = session.directory.path.resolve(), Path(data.path).resolve()
    if run.is_relative_to(folder):
        raise ConfigError(
            f"run: {run}: lies inside the image folder {folder}, so the pictures that the run draws would be taken for "
            "its images; choose a directory outside it"
        )


def _check_readable(session: Session, side: str, manifest: Manifest) -> None:
    bad = manifest.unreadable
    if not bad:
        return
    shown = "\n".join(f"  {row.image_id}: {row.error}" for row in bad[:SHOWN])
    more = f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    if session.config.unreadable == "refuse":
        raise InputError(
            f"{side}: {len(bad)} of {len(manifest)} images cannot be read, so nothing was computed:\n{shown}{more}\n"
            "Mend or remove them, or go on without them with unreadable: skip"
        )
    session.warn(
        f"{side}: {len(bad)} of {len(manifest)} images cannot be read and are left out (listed in "
        f"{session.directory.manifest(side).name}):\n{shown}{more}"
    )

"""The images of a run: list them, read each once, refuse or skip what cannot be read, keep the manifest."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from semrsm_dist.data.entries import ImageEntry
from semrsm_dist.data.manifest import OK, UNREADABLE, Manifest, ManifestRow, find_known, scan
from semrsm_dist.data.source import ImageSource, list_entries
from semrsm_dist.engine.protocol import Receipt, Task
from semrsm_dist.errors import ConfigError, InputError, StorageError, counted, shorten
from semrsm_dist.pipeline.faults import attempt_each, first_cause, list_some
from semrsm_dist.pipeline.gone_inputs import continue_without, lacking, read_copy
from semrsm_dist.pipeline.session import Session
from semrsm_dist.plan.tiling import cut
from semrsm_dist.store.paths import RunPath
from semrsm_dist.store.record import ModelAnswer, Side

SCAN_BATCH = 64

THIN = 16
"""Ratio of an image's sides from which on the preprocessing is asked whether it can resize the image."""


@dataclass(frozen=True)
class ScanBatch:
    """Images that are scanned together: a unit, which carries its own entries so that workers hold no others."""

    first: int
    entries: tuple[ImageEntry, ...] = field(repr=False)


@dataclass(frozen=True)
class ScanWorker:
    """Reads, decodes and hashes batches of images; the rows travel back as the receipts' values."""

    run: RunPath
    source: ImageSource

    def __call__(self, units: tuple[Hashable, ...]) -> Iterator[Receipt]:
        """Scan batches of images."""
        return attempt_each(cast("tuple[ScanBatch, ...]", units), self._scan, self.run)

    def _scan(self, batch: ScanBatch) -> Receipt:
        try:
            rows = scan(self.source, batch.entries)
        except ConfigError as error:  # of a source that is not what it should be: trying again is no use
            return Receipt(batch, counts={"images": 0}, value=error)
        return Receipt(batch, counts={"images": len(rows)}, value=rows)


def list_images(session: Session, source: ImageSource) -> list[ImageEntry]:
    """Return the images of one side as its source lists them, without reading any.

    Raises
    ------
    ConfigError
        If the run directory lies among the images.
    InputError
        If there are none, or what lists them cannot be used.
    """
    run = session.directory.path.resolve()
    if source.would_list(str(run)):
        raise ConfigError(
            f"run: {run}: lies inside the image folder, so the pictures that the run draws would be taken for its "
            "images; choose a directory outside it"
        )
    with session.timed("scan"):
        return list_entries(source)


def scan_images(
    session: Session,
    side: Side,
    source: ImageSource,
    entries: Sequence[ImageEntry],
    model: ModelAnswer,
) -> Manifest:
    """Return the manifest of one side, scanning what is new or changed since an earlier session.

    Workers are started only if there is something to scan. Images that the model's preprocessing cannot resize count as
    unreadable. Raises InputError if some are unreadable and the configuration does not say to skip them.
    """
    previous = None if source.generated else read_copy(session, side)
    with session.timed("scan"):
        rows = _rows_without_workers(session, source, entries, previous)
    new = [index for index, row in enumerate(rows) if row is None]
    if new:
        for index, row in _scan_new(session, source, entries, new):
            rows[index] = row
    manifest = Manifest(tuple(row for row in rows if row is not None))
    if previous is not None:
        features = [(side, layer) for layer in model.layers]
        manifest = _restore_gone(session, source, manifest, previous, features)
    manifest = _without_thin(manifest, model)
    _check_readable(session, side, manifest)
    _warn_of_remarks(session, side, manifest)
    return manifest


def _rows_without_workers(
    session: Session, source: ImageSource, entries: Sequence[ImageEntry], previous: Manifest | None
) -> list[ManifestRow | None]:
    """Return what can be found in the driver: all of generated images, and what is as an earlier session saw it."""
    parts: Iterator[list[ManifestRow]] | Iterator[list[ManifestRow | None]]
    if source.generated:
        parts = (scan(source, entries[part]) for part in cut(slice(0, len(entries)), SCAN_BATCH))
    elif previous is not None:
        parts = find_known(source, entries, previous)
    else:
        return [None] * len(entries)
    rows: list[ManifestRow | None] = []
    with session.reporter.stage("scan", len(entries), "images") as shown:
        for part in parts:
            rows += part
            # Looking up what is known is no scan: if images are left, the scan of these counts them, too.
            shown.advance(sum(row is not None for row in part), None if source.generated else 0.0)
            if session.stop.is_set():
                raise KeyboardInterrupt
    return rows


def _without_thin(manifest: Manifest, model: ModelAnswer) -> Manifest:
    """Return the manifest in which images that are too thin to be resized count as unreadable."""
    sizes = {(row.width, row.height) for row in manifest.readable if row.width and row.height}
    thin = {(width, height) for width, height in sizes if max(width, height) >= THIN * min(width, height)}
    if not thin:
        return manifest
    from semrsm_dist.features.preprocessing import find_unsuitable  # noqa: PLC0415 - torch only where it is needed

    faults = find_unsuitable(thin, model.facts["data_config"])

    def judged(row: ManifestRow) -> ManifestRow:
        fault = faults.get((row.width or 0, row.height or 0)) if row.status == OK else None
        return row if fault is None else replace(row, sha256=None, status=UNREADABLE, error=fault)

    return Manifest(tuple(map(judged, manifest.rows)))


def _restore_gone(
    session: Session,
    source: ImageSource,
    manifest: Manifest,
    previous: Manifest,
    features: Sequence[tuple[Side, str]],
) -> Manifest:
    """Return the manifest with the known rows of images that are gone, if no features are missing."""
    gone = {}
    for index, row in enumerate(manifest.rows):
        known = previous.get(row.image_id) if row.status != OK else None
        had_file = known and known.status == OK and known.mtime_ns is not None and known.uri == row.uri
        if known and had_file and source.stamp(row.entry) is None:
            gone[index] = known.listed_as(row.entry)
    if not gone or lacking(session, features):
        return manifest
    names = shorten(row.image_id for row in gone.values())
    continue_without(session, f"{len(gone)} of {len(manifest)} images ({names})", features)
    return Manifest(tuple(gone.get(index, row) for index, row in enumerate(manifest.rows)))


def _scan_new(
    session: Session, source: ImageSource, entries: Sequence[ImageEntry], new: Sequence[int]
) -> Iterator[tuple[int, ManifestRow]]:
    """Let the engine's workers scan images; yield the index and the row of each."""
    batches = [
        ScanBatch(part.start, tuple(entries[index] for index in new[part]))
        for part in cut(slice(0, len(new)), SCAN_BATCH)
    ]
    worker = ScanWorker(session.directory.path, source)
    outcome = session.work(
        "scan",
        lambda: session.start_tasks(worker),
        [Task(units=(batch,)) for batch in batches],
        unit="images",
        total=len(entries),
        done=len(entries) - len(new),
    )
    found: dict[int, Any] = {cast("ScanBatch", batch).first: rows for batch, rows in outcome.values}
    refused = [error for error in found.values() if isinstance(error, ConfigError)]
    if refused:
        raise refused[0]
    if outcome.failures:
        raise StorageError(
            f"{len(outcome.failures)} of {len(batches)} batches of images could not be scanned; nothing was computed. "
            f"First cause: {first_cause(outcome.failures)}"
        )
    yield from zip(new, (row for batch in batches for row in found[batch.first]), strict=True)


def require_enough(rectangular: bool, counts: Mapping[Side, int]) -> None:
    """Refuse a matrix without pairs.

    Raises InputError if a symmetric run has fewer than two images or a side of a rectangular run has none.
    """
    least = 1 if rectangular else 2
    for side, count in counts.items():
        if count < least:
            raise InputError(
                f"{side}: {counted(count, 'usable image')}, but a similarity matrix needs at least "
                f"{least}; add images, or check the path and the file types"
            )


def _check_readable(session: Session, side: str, manifest: Manifest) -> None:
    bad = manifest.unreadable
    if not bad:
        return
    shown = list_some([f"{row.image_id}: {row.error}" for row in bad])
    if session.config.unreadable == "refuse":
        raise InputError(
            f"{side}: {len(bad)} of {len(manifest)} images cannot be read, so nothing was computed:\n{shown}\n"
            "Fix or remove them, or go on without them with unreadable: skip"
        )
    session.warn(
        f"{side}: {len(bad)} of {len(manifest)} images cannot be read and are left out (listed in "
        f"{session.directory.manifest(side).name}):\n{shown}"
    )


def _warn_of_remarks(session: Session, side: str, manifest: Manifest) -> None:
    found: dict[str, list[str]] = {}
    for row in manifest.rows:
        if row.remark:
            found.setdefault(row.remark, []).append(row.image_id)
    for remark, names in found.items():
        session.warn(f"{side}: {len(names)} of {len(manifest)} images ({shorten(names)}): {remark}")


def warn_of_copies(session: Session, manifests: Mapping[Side, Manifest]) -> None:
    """Warn of images with the same content: their similarity is that of an image with itself."""
    hashed = {
        side: [one for one in zip(manifest.image_ids(), manifest.contents(), strict=True) if one[1]]
        for side, manifest in manifests.items()
    }
    for side, images in hashed.items():
        first: dict[str | None, str] = {}
        copies = [name for name, content in images if first.setdefault(content, name) != name]
        if copies:
            session.warn(
                f"{side}: {len(copies)} of {len(images)} images ({shorten(copies)}) are exact copies of others; "
                "retrieval does not count an image's copies as hits, but they weigh in all other statistics: remove "
                "them if that is not meant"
            )
    database = {content for _, content in hashed["images"]}
    found = [name for name, content in hashed.get("queries", ()) if content in database]
    if found:
        session.warn(
            f"queries: {len(found)} of {len(hashed['queries'])} ({shorten(found)}) are also in data, with the same "
            "content; retrieval does not count a query's copies as hits, but the matrix and top-k lists have them"
        )

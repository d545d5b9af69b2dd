"""Importing ready-made features: copy them into the run, chunk by chunk, and check every number.

The copy makes the run self-contained and brings the features into the layout that matching reads. It is bounded in
memory whatever the size of the source. Afterwards the source must still be what it was when the run was begun; only
then are the copies marked as verified.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.data.manifest import Manifest
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.engine.protocol import Receipt, Task
from semrsm_dist.errors import InputError, MissingInputError, WorkError, shorten
from semrsm_dist.features.arrays import FeatureArray, hash_token_counts, load_token_counts
from semrsm_dist.pipeline.faults import attempt_each, first_cause
from semrsm_dist.pipeline.gone_inputs import continue_without, with_absolute_paths
from semrsm_dist.pipeline.session import Session
from semrsm_dist.plan.tiling import cut
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.feature_source import open_array
from semrsm_dist.store.features import FeatureStore, round_features
from semrsm_dist.store.paths import RunPath
from semrsm_dist.store.record import RunRecord, Side, SourceAnswer

TASK_CHUNKS = 8


class ImportChunk(NamedTuple):
    """A feature chunk of one layer: the unit of this stage."""

    layer: str
    number: int

    def __str__(self) -> str:
        return f"{self.layer}/{self.number}"


class Refused(NamedTuple):
    """An image whose features are not finite, or do not fit the stored type."""

    layer: str
    image: int
    is_finite: bool


@dataclass(frozen=True)
class ImportWorker:
    """Copies feature chunks of `chunk_size` images from ready-made features into the run."""

    run: RunPath
    side: Side
    data: FeaturesData
    chunk_size: int

    def __call__(self, units: tuple[Hashable, ...]) -> Iterator[Receipt]:
        """Copy chunks; a receipt's value lists the images that are refused."""
        opened = cache(self._open)  # once for all units: it takes longer than copying a chunk
        return attempt_each(
            cast("tuple[ImportChunk, ...]", units),
            lambda chunk: self._copy(chunk, *opened(chunk.layer)),
            self.run,
        )

    def _open(self, layer: str) -> tuple[FeatureArray, NDArray[np.int64], FeatureStore]:
        """Return the source of a layer, its token counts, and the store."""
        source = open_array(self.data.layers[layer], self.data.layout, layer)
        counts = load_token_counts(self.data.token_counts.get(layer), source.n_images, source.n_tokens)
        return source, counts, FeatureStore(RunDirectory(self.run).features, self.side, layer)

    def _copy(
        self, chunk: ImportChunk, source: FeatureArray, all_counts: NDArray[np.int64], store: FeatureStore
    ) -> Receipt:
        start = chunk.number * self.chunk_size
        stop = min(start + self.chunk_size, source.n_images)
        z, counts = source.read(start, stop), all_counts[start:stop]
        z[np.arange(source.n_tokens) >= counts[:, None]] = 0
        finite = np.isfinite(z).all(axis=(1, 2))
        z[~finite] = 0
        stored, fits = round_features(z, store.dtype())
        bad = np.flatnonzero(~(finite & fits))
        if bad.size:
            refused = [Refused(chunk.layer, start + int(k), bool(finite[k])) for k in bad]
            return Receipt(chunk, value=refused, counts={"images": 0})
        store.write_chunk(chunk.number, stored, counts)
        return Receipt(chunk, counts={"images": stop - start})


def import_features(
    session: Session, record: RunRecord, side: Side, data: FeaturesData, manifest: Manifest
) -> None:
    """Copy what is missing of one side's ready-made features.

    Raises
    ------
    InputError
        If features are NaN or infinite, or do not fit the stored type, naming the images and the layer; or if a source
        changed meanwhile: what was copied from it is then removed.
    WorkError
        If some chunks could not be copied.
    """
    sizes = [part.stop - part.start for part in cut(slice(0, record.counts[side]), record.chunk_size)]
    everything = [ImportChunk(layer, number) for layer in data.layers for number in range(len(sizes))]
    stores = {layer: FeatureStore(session.directory.features, side, layer) for layer in data.layers}
    present = {ImportChunk(layer, number) for layer in stores for number in stores[layer].present()}
    missing = [unit for unit in everything if unit not in present]
    session.counts["import"]["found"] += len(everything) - len(missing)
    session.counts["import"]["computed"] += len(missing)
    unverified = {unit.layer for unit in missing} | {
        layer for layer, store in stores.items() if not store.is_verified()
    }
    if not unverified:
        return
    for layer in {unit.layer for unit in missing}:
        try:
            open_array(data.layers[layer], data.layout, layer)
        except MissingInputError as error:  # features of a run were damaged, and their source is gone
            continue_without(session, str(error), [(side, layer)])
    worker = ImportWorker(
        session.directory.path, side, FeaturesData(**with_absolute_paths(data)), record.chunk_size
    )

    def recover(unit: ImportChunk) -> Receipt | None:
        is_there = stores[unit.layer].has_chunk(unit.number)
        return Receipt(unit, counts={"images": sizes[unit.number]}) if is_there else None

    outcome = session.work(
        "import",
        lambda: session.start_tasks(worker),
        [Task(units=tuple(missing[part])) for part in cut(slice(0, len(missing)), TASK_CHUNKS)],
        unit="images",
        total=len(data.layers) * sum(sizes),
        done=sum(sizes[unit.number] for unit in present),
        recover=recover,
    )
    for layer in sorted(unverified):
        known = record.cached.sources[f"{side}/{layer}"]
        if _has_changed(data, known, stores[layer]):
            copied = {unit.number for unit in missing if unit.layer == layer}
            stores[layer].remove(copied if stores[layer].is_verified() else None)
            raise InputError(
                f"{data.layers[layer]}: changed while it was imported, or its token counts did, so the copy would mix "
                "two arrays; it was removed, and nothing was computed: put the old content back and start the run's "
                "command, or begin a new run directory"
            )
    refused = [image for _, value in outcome.values for image in cast("list[Refused]", value)]
    if refused:
        _refuse(sorted(refused), manifest.image_ids(), side)
    if outcome.failures:
        raise WorkError(
            f"{len(outcome.failures)} of {len(everything)} chunks of {side} could not be imported; the others are kept "
            f"and the run's command tries again. First cause: {first_cause(outcome.failures)}"
        )
    for layer in unverified:
        stores[layer].mark_verified()


def _has_changed(data: FeaturesData, known: SourceAnswer, store: FeatureStore) -> bool:
    """Return whether a source has changed since the run began, by its time and by its bytes."""
    try:
        source = open_array(data.layers[store.layer], data.layout, store.layer)
        counts = load_token_counts(data.token_counts.get(store.layer), source.n_images, source.n_tokens)
        if source.signature() != known.signature or source.digest(counts) != known.sha256:
            return True
    except InputError:  # cut short, or gone
        return True
    if known.token_counts_sha256 is None or not store.is_complete():
        return False
    return any(
        hash_token_counts(each) != known.token_counts_sha256 for each in (counts, store.read_token_counts())
    )


def _refuse(refused: Sequence[Refused], image_ids: Sequence[str], side: str) -> None:
    names = (f"{image_ids[index]!r} (index {index}, layer {layer})" for layer, index, _ in refused)
    what = (
        "do not fit the stored type: values overflow it, or are so small that it loses their digits; the similarities "
        "would be wrong: scale the features, or use features.dtype: float32 if it is float16"
        if all(image.is_finite for image in refused)
        else "are NaN or infinite; no similarity can be computed from them: fix the source, or leave these images out "
        "of it"
    )
    raise InputError(
        f"{side}: features of {shorten(names, counts=True)} {what}; then start in a new run directory"
    )

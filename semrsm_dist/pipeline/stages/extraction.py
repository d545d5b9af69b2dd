"""Extraction: find the missing feature chunks, and let actors compute them from images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from semrsm_dist.data.manifest import Manifest
from semrsm_dist.data.source import ImageSource
from semrsm_dist.engine.protocol import Receipt, Resources, Task
from semrsm_dist.errors import InputError, WorkError, counted, shorten
from semrsm_dist.pipeline.faults import first_cause
from semrsm_dist.pipeline.inputs import model_spec
from semrsm_dist.pipeline.session import Session
from semrsm_dist.pipeline.stages.extraction_worker import (
    ChunkNews,
    ExtractorFactory,
    FeatureChunk,
)
from semrsm_dist.plan.tiling import cut
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.record import LayerSizes, RunRecord, Side

TASK_CHUNKS = 8
"""Maximum chunks per task, so that images are read ahead of the model."""

GPU_TASK_CHUNKS = 128
"""The same on a GPU, which is through with them in a second or two and waits between tasks."""


def extract_features(
    session: Session,
    record: RunRecord,
    sides: Mapping[Side, tuple[ImageSource, Manifest]],
    layers: Mapping[str, LayerSizes],
) -> None:
    """Extract what is missing of the features; all layers come from one pass of the model.

    If nothing is missing, no library that runs models is loaded. Batches are of the record's size, not the
    configuration's: the last bits of a network's output depend on it.

    Raises
    ------
    InputError
        If features are not finite, naming the images and the layers.
    WorkError
        If some chunks could not be extracted.
    """
    config = session.config.model
    if config is None or record.batch_size is None:
        raise ValueError("extraction needs a model section; the configuration was validated to have one")
    stores = {
        side: [FeatureStore(session.directory.features, side, layer) for layer in layers] for side in sides
    }
    chunks = [
        FeatureChunk(side, index, tuple(manifest.readable[part]))
        for side, (_, manifest) in sides.items()
        for index, part in enumerate(cut(slice(0, manifest.n_readable), record.chunk_size))
    ]
    present = {
        (side, index)
        for side, of_layers in stores.items()
        for index in set.intersection(*(store.present() for store in of_layers))
    }
    missing = [chunk for chunk in chunks if (chunk.side, chunk.number) not in present]
    session.counts["extraction"]["found"] += len(present)
    session.counts["extraction"]["computed"] += len(missing)
    if not missing:
        return
    gpus = session.engine.gpus
    count = config.actors or min(len(missing), gpus or session.engine.slots)
    factory = ExtractorFactory(
        run=session.directory.path,
        record=record,
        sources={chunk.side: sides[chunk.side][0] for chunk in missing},
        layers=layers,
        spec=model_spec(config),
        gpus=1 if gpus else 0,
        compiled=config.compile,
        jpeg_draft=config.jpeg_draft,
        n_images=sum(len(chunk.rows) for chunk in missing) // count,
    )
    resources = Resources(cpus=1, gpus=factory.gpus, memory=session.config.matching.cpu_memory)
    batch = max(1, min(GPU_TASK_CHUNKS if gpus else TASK_CHUNKS, len(missing) // (4 * count)))
    _warn_of_other_batches(session, config.batch_size, record)

    def recover(chunk: FeatureChunk) -> Receipt | None:
        is_there = all(store.has_chunk(chunk.number) for store in stores[chunk.side])
        return Receipt(replace(chunk, rows=()), counts={"images": len(chunk.rows)}) if is_there else None

    outcome = session.work(
        "extraction",
        lambda: session.engine.start_actors(factory, count, resources),
        [Task(units=tuple(missing[part])) for part in cut(slice(0, len(missing)), batch)],
        unit="images",
        total=sum(len(chunk.rows) for chunk in chunks),
        done=sum(len(chunk.rows) for chunk in chunks) - sum(len(chunk.rows) for chunk in missing),
        recover=recover,
    )
    news = [cast("ChunkNews", value) for _, value in outcome.values]
    _warn_of_smaller_batches(session, record.batch_size, news)
    _raise_if_refused([item for report in news for item in report.refused])
    if outcome.failures:
        raise WorkError(
            f"{len(outcome.failures)} of {len(chunks)} chunks of {' and '.join(sides)} could not be extracted; the "
            f"others are kept and the run's command tries again. First cause: {first_cause(outcome.failures)}"
        )


def _warn_of_other_batches(session: Session, requested: int, record: RunRecord) -> None:
    if requested == record.batch_size:
        return
    reason = (
        f"chunks of {counted(record.chunk_size, 'image')} are the largest batches"
        if requested > record.chunk_size and record.batch_size == record.chunk_size
        else "the run began with them"
    )
    session.warn(
        f"model.batch_size: {requested}: images are extracted in batches of {record.batch_size}, as {reason}"
    )


def _warn_of_smaller_batches(session: Session, batch_size: int, news: Sequence[ChunkNews]) -> None:
    halved = [item.smaller_batch for item in news if item.smaller_batch is not None]
    if halved:
        session.warn(
            f"a GPU's memory was too small for batches of {counted(batch_size, 'image')}; batches of down to "
            f"{min(halved)} were used, which changes the last bits of the features"
        )


def _raise_if_refused(refused: Sequence[tuple[str, str]]) -> None:
    if not refused:
        return
    layers = sorted({layer for layer, _ in refused})
    images = shorten(map(repr, sorted({image for _, image in refused})), counts=True)
    raise InputError(
        f"features of {images} in layer {', '.join(layers)} are NaN or infinite, or do not fit the stored type; no "
        "similarity can be computed from them: with half precision, use model.precision: float32 and features.dtype: "
        "float32, else leave these images out; then start in a new run directory"
    )

"""The worker of extraction: it holds the model, reads images, and writes chunks for all layers at once."""

from __future__ import annotations

import math
import socket
from collections import deque
from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from semrsm_dist.data.manifest import ManifestRow
from semrsm_dist.data.source import ImageSource
from semrsm_dist.engine.protocol import Receipt, Worker
from semrsm_dist.errors import ResumeError
from semrsm_dist.features.spec import ModelSpec
from semrsm_dist.machine import LEAST_READERS, count_readers, own_gpu
from semrsm_dist.pipeline.faults import attempt_each
from semrsm_dist.pipeline.inputs import describe_model
from semrsm_dist.pipeline.stages.image_readers import GROUP, ImageReader, ReaderPool
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.features import FeatureStore, round_features
from semrsm_dist.store.fingerprint import Fingerprint, differences, flatten
from semrsm_dist.store.paths import RunPath
from semrsm_dist.store.record import LayerSizes, RunRecord, Side

if TYPE_CHECKING:
    from semrsm_dist.features.extractor import ComingFeatures, Extractor

WRITERS = 4
"""Chunks that are written beside a model on a GPU, which computes them faster than one thread writes."""

FEW_IMAGES = 4096
"""Images of a worker on a GPU for which it is not worth while to start processes that read them."""


@dataclass(frozen=True)
class FeatureChunk:
    """Images of one side whose features are written together: the unit of this stage, identified by side and number."""

    side: Side
    number: int
    rows: tuple[ManifestRow, ...] = field(default=(), compare=False, repr=False)
    """Its readable images, with the expected hashes of their content. Only they travel with the chunk, so the memory of
    a worker does not depend on the number of images of the run."""

    def __str__(self) -> str:
        return f"{self.side}/{self.number}"


@dataclass(frozen=True)
class ExtractorFactory:
    """Creates an extraction worker where it is called: the model is loaded in the actor, not sent to it.

    One worker serves all sides, so that the model is loaded once for queries and database together.
    """

    run: RunPath
    record: RunRecord
    sources: Mapping[Side, ImageSource]
    """Where the images of each side are read."""
    layers: Mapping[str, LayerSizes]
    """The layers to extract and their sizes."""
    spec: ModelSpec
    """The model; it must match the record."""
    gpus: int
    """GPUs of a worker; with 0 the model runs on the CPU."""
    compiled: bool = False
    """Whether the network is compiled."""
    jpeg_draft: bool = False
    """Whether large JPEGs are decoded at a part of their size."""
    n_images: int = 0
    """Images that a worker can expect."""

    def __call__(self) -> Worker:
        """Load the model and return the worker.

        Raises
        ------
        ConfigError
            If the network cannot be compiled, or drafts cannot be used with its preprocessing.
        ResumeError
            If the model found here is not the run's.
        UnusableGpuError, WorkerLostError
            If a GPU is configured, but torch cannot use it, or it fails.
        """
        from semrsm_dist.features.extractor import Extractor  # noqa: PLC0415 - torch only where a model runs
        from semrsm_dist.features.outputs import OUTPUTS, OutputExtractor  # noqa: PLC0415

        extractor = (OutputExtractor if set(self.layers) == {OUTPUTS} else Extractor)(
            self.spec,
            tuple(self.layers),
            precision=self.record.model.precision,
            device=choose_device(self.gpus),
            batch_size=self.record.batch_size or 1,
            compiled=self.compiled,
        )
        self._require_same_model(*describe_model(extractor.model, extractor.layers))
        if self.gpus or self.compiled:
            extractor.warm_up()
        if self.jpeg_draft:
            extractor.preprocessing.least_size(extractor.model.input_size)  # or say that it is unknown
        return _ExtractionWorker(self, extractor)

    def _require_same_model(self, facts: Mapping[str, Any], layers: Mapping[str, LayerSizes]) -> None:
        changed = differences(
            _describe(self.record.model.facts, self.layers),
            _describe(facts, layers),
        )
        if changed:
            key, expected, found = changed[0]
            raise ResumeError(
                f"the model {self.spec.name!r} found on {socket.gethostname()} is not the run's: {key} is "
                f"{found} there, but {expected} in the run; mixing them would spoil the matrix: give all nodes "
                "the same weights and the same versions of this package, torch and timm"
            )


def _describe(facts: Mapping[str, Any], layers: Mapping[str, LayerSizes]) -> Fingerprint:
    return flatten({"model": facts, "layers": {layer: sizes.model_dump() for layer, sizes in layers.items()}})


def choose_device(gpus: int) -> str:
    """Return torch's name of the device for the calling worker, which was given this many GPUs.

    Never `auto`: a GPU that torch cannot use is an error, not a slow and half precise run on the CPU.
    """
    return f"cuda:{own_gpu()}" if gpus else "cpu"


@dataclass(frozen=True)
class ChunkNews:
    """What a receipt of a chunk reports besides its success."""

    refused: tuple[tuple[str, str], ...] = ()
    """Layers and images whose features are not finite or do not fit the stored type; the chunk was not written."""
    smaller_batch: int | None = None
    """Size of the batches from now on in this worker, if the GPU's memory did not suffice for more."""


class _ExtractionWorker:
    def __init__(self, setup: ExtractorFactory, extractor: Extractor) -> None:
        self._setup = setup
        self._extractor = extractor
        self._batch_size = setup.record.batch_size or 1
        self._writers = WRITERS if setup.gpus else 1
        count = count_readers(on_gpu=setup.gpus > 0)
        self._readers = ReaderPool(
            ImageReader(setup.sources, extractor.preprocessing, setup.jpeg_draft),
            count,
            in_processes=count > LEAST_READERS and setup.n_images > FEW_IMAGES,
        )
        features = RunDirectory(setup.run).features
        self._stores = {
            side: {layer: FeatureStore(features, side, layer) for layer in setup.layers}
            for side in setup.sources
        }

    def __call__(self, units: tuple[Hashable, ...]) -> Iterator[Receipt]:
        """Extract chunks; while the model is at work, the next images are read and the last features are written."""
        from semrsm_dist.features.reproducible import reproducible  # noqa: PLC0415 - torch only where a model runs

        chunks = cast("tuple[FeatureChunk, ...]", units)
        with (
            reproducible(),
            ThreadPoolExecutor(self._writers) as writers,
            closing(self._work_ahead(chunks, writers)) as coming,
        ):
            yield from attempt_each(chunks, lambda _: next(coming).result(), self._setup.run)

    def _work_ahead(
        self, chunks: Sequence[FeatureChunk], writers: ThreadPoolExecutor
    ) -> Generator[Future[Receipt], None, None]:
        """Yield the receipt to come of each chunk, once the next are in the hands of readers, model and writers."""
        reading = deque[list[Future[list[Any]]]]()
        writing = deque[Future[Receipt]]()
        started = (self._readers.start(chunk.side, chunk.rows) for chunk in chunks)
        try:
            for chunk in chunks:
                images = reading.popleft() if reading else next(started)
                ahead = math.ceil(2 * GROUP * self._readers.count / max(1, len(chunk.rows)))
                while len(reading) < ahead and (following := next(started, None)) is not None:
                    reading.append(following)
                writing.append(self._extract(chunk, images, writers))
                if len(writing) > self._writers:
                    yield writing.popleft()
            yield from writing
        finally:  # also if nobody wants the rest
            for future in (future for images in reading for future in images):
                future.cancel()

    def _extract(
        self, chunk: FeatureChunk, images: list[Future[list[Any]]], writers: ThreadPoolExecutor
    ) -> Future[Receipt]:
        """Let the model work on a chunk whose images are being read, and a writer write what comes of it."""
        try:
            coming = self._extractor.begin([image for group in images for image in group.result()])
        except Exception as error:  # noqa: BLE001 - raised for this chunk alone, when it is its turn
            failed = Future[Receipt]()
            failed.set_exception(error)
            return failed
        before, self._batch_size = self._batch_size, self._extractor.batch_size
        news = ChunkNews(smaller_batch=self._batch_size) if self._batch_size < before else None
        return writers.submit(self._write, chunk, coming, news)

    def _write(self, chunk: FeatureChunk, coming: ComingFeatures, news: ChunkNews | None) -> Receipt:
        """Write a chunk's features, or refuse those that are not finite or do not fit the stored type."""
        from semrsm_dist.features.extractor import NonFiniteFeaturesError  # noqa: PLC0415 - as above

        done = replace(chunk, rows=())  # receipts are small
        try:
            features = coming.result()
        except NonFiniteFeaturesError as error:
            refused = [(error.layer, chunk.rows[index].image_id) for index in error.indices]
            return Receipt(done, counts={"images": 0}, value=ChunkNews(refused=tuple(refused)))
        stores = self._stores[chunk.side]
        missing = {layer: store for layer, store in stores.items() if not store.has_chunk(chunk.number)}
        rounded = {layer: round_features(features[layer], store.dtype()) for layer, store in missing.items()}
        refused = [
            (layer, chunk.rows[index].image_id)
            for layer, (_, fits) in rounded.items()
            for index in np.flatnonzero(~fits)
        ]
        if refused:
            return Receipt(done, counts={"images": 0}, value=ChunkNews(refused=tuple(refused)))
        for layer, store in missing.items():
            store.write_chunk(chunk.number, rounded[layer][0])
        return Receipt(done, counts={"images": len(chunk.rows)}, value=news)

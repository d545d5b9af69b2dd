"""The worker of extraction: it holds the model, reads images, and writes chunks for all layers at once."""

from __future__ import annotations

import socket
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from semrsm_dist.data.manifest import ManifestRow
from semrsm_dist.data.source import ImageSource, load_image
from semrsm_dist.engine.protocol import Receipt, Worker
from semrsm_dist.errors import InputError, ResumeError
from semrsm_dist.features.spec import ModelSpec
from semrsm_dist.machine import own_gpu
from semrsm_dist.pipeline.faults import attempt_each
from semrsm_dist.pipeline.inputs import describe_model
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.fingerprint import Fingerprint, differences, flatten
from semrsm_dist.store.paths import RunPath
from semrsm_dist.store.record import LayerSizes, RunRecord, Side

if TYPE_CHECKING:
    from semrsm_dist.features.extractor import Extractor, Prepared

READERS = 4
"""Threads that decode and resize images beside the model: for a photograph that takes as long as a small network.

It is also how many images of full size a worker holds at most; what waits for the model is resized.
"""


@dataclass(frozen=True)
class FeatureChunk:
    """Images of one side whose features are written together: the unit of this stage.

    Attributes
    ----------
    side, number
        Which chunk it is; two chunks are equal if these are.
    rows
        Its readable images, with the expected hashes of their content. Only they travel with the chunk, so the memory
        of a worker does not depend on the number of images of the run.
    """

    side: Side
    number: int
    rows: tuple[ManifestRow, ...] = field(default=(), compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.side}/{self.number}"


@dataclass(frozen=True)
class ExtractorFactory:
    """Creates an extraction worker where it is called: the model is loaded in the actor, not sent to it.

    One worker serves all sides, so that the model is loaded once for queries and database together.

    Parameters
    ----------
    run, record
        The run directory and its record.
    sources
        Where the images of each side are read.
    layers
        The layers to extract and their sizes.
    spec
        The model; it must match the record.
    gpus
        GPUs of a worker; with 0 the model runs on the CPU.
    """

    run: RunPath
    record: RunRecord
    sources: Mapping[Side, ImageSource]
    layers: Mapping[str, LayerSizes]
    spec: ModelSpec
    gpus: int

    def __call__(self) -> Worker:
        """Load the model and return the worker.

        Raises
        ------
        ConfigError
            If a GPU is configured, but torch cannot use it.
        ResumeError
            If the model found here is not the run's.
        """
        from semrsm_dist.features.extractor import Extractor  # noqa: PLC0415 - torch only where a model runs
        from semrsm_dist.features.outputs import OUTPUTS, OutputExtractor  # noqa: PLC0415

        extractor = (OutputExtractor if set(self.layers) == {OUTPUTS} else Extractor)(
            self.spec,
            tuple(self.layers),
            precision=self.record.model.precision,
            device=choose_device(self.gpus),
            batch_size=self.record.batch_size or 1,
        )
        self._require_same_model(*describe_model(extractor.model, extractor.layers))
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
    """What a receipt of a chunk reports besides its success.

    Attributes
    ----------
    refused
        Layers and images whose features are not finite; the chunk was not written.
    smaller_batch
        Size of the batches from now on in this worker, if the GPU's memory did not suffice for more.
    """

    refused: tuple[tuple[str, str], ...] = ()
    smaller_batch: int | None = None


class _ExtractionWorker:
    def __init__(self, setup: ExtractorFactory, extractor: Extractor) -> None:
        self._setup = setup
        self._extractor = extractor
        features = RunDirectory(setup.run).features
        self._stores = {
            side: {layer: FeatureStore(features, side, layer) for layer in setup.layers}
            for side in setup.sources
        }

    def __call__(self, units: tuple[Hashable, ...]) -> Iterator[Receipt]:
        """Extract chunks; the next chunk's images are read while the model is at work."""
        from semrsm_dist.features.extractor import reproducible  # noqa: PLC0415 - torch only where a model runs

        chunks = cast("tuple[FeatureChunk, ...]", units)
        with reproducible(self._extractor.precision), ThreadPoolExecutor(READERS) as readers:
            images = self._read_ahead(readers, chunks)

            def extract(chunk: FeatureChunk) -> Receipt:
                return self._extract(chunk, [image.result() for image in next(images)])

            yield from attempt_each(chunks, extract, self._setup.run)

    def _read_ahead(
        self, readers: ThreadPoolExecutor, chunks: Sequence[FeatureChunk]
    ) -> Iterator[list[Future[Prepared]]]:
        """Yield the images of each chunk when those of the next are being read."""
        reading = self._start_reading(readers, chunks[0])
        for following in chunks[1:]:
            images, reading = reading, self._start_reading(readers, following)
            yield images
        yield reading

    def _start_reading(self, readers: ThreadPoolExecutor, chunk: FeatureChunk) -> list[Future[Prepared]]:
        source = self._setup.sources[chunk.side]
        return [readers.submit(self._read, source, row) for row in chunk.rows]

    def _read(self, source: ImageSource, row: ManifestRow) -> Prepared:
        loaded = load_image(source, row.entry)
        if loaded.sha256 != row.sha256:
            raise InputError(
                f"image {row.image_id!r} is no longer the one that this run began with (hash {loaded.sha256[:12]}, "
                f"not {str(row.sha256)[:12]}); its features were not taken, as the matrix would show them under the "
                "old content: put the old content back and start the same command, or begin a new run directory"
            )
        return self._extractor.transform(loaded.image)

    def _extract(self, chunk: FeatureChunk, images: list[Prepared]) -> Receipt:
        from semrsm_dist.features.extractor import NonFiniteFeaturesError  # noqa: PLC0415

        batch_size, done = self._extractor.batch_size, replace(chunk, rows=())  # receipts are small
        try:
            features = self._extractor(images)
        except NonFiniteFeaturesError as error:
            refused = [(error.layer, chunk.rows[index].image_id) for index in error.indices]
            return Receipt(done, counts={"images": 0}, value=ChunkNews(refused=tuple(refused)))
        stores = self._stores[chunk.side]
        missing = {layer: store for layer, store in stores.items() if not store.has_chunk(chunk.number)}
        with np.errstate(over="ignore"):  # an overflow becomes infinite, and is refused
            stored = {
                layer: features[layer].astype(store.dtype(), copy=False) for layer, store in missing.items()
            }
        refused = [
            (layer, chunk.rows[index].image_id)
            for layer, z in stored.items()
            for index in np.flatnonzero(~np.isfinite(z).all(axis=(1, 2)))
        ]
        if refused:
            return Receipt(done, counts={"images": 0}, value=ChunkNews(refused=tuple(refused)))
        for layer, store in missing.items():
            store.write_chunk(chunk.number, stored[layer])
        now = self._extractor.batch_size
        news = ChunkNews(smaller_batch=now) if now < batch_size else None
        return Receipt(done, counts={"images": len(chunk.rows)}, value=news)

"""Extraction: actors hold the model, read images, and write whole panels of features for all layers at once."""

from __future__ import annotations

import socket
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from semrsm_dist.data.records import ImageRecord, ImageSet
from semrsm_dist.engine.protocol import Receipt, Resources, Task, Worker
from semrsm_dist.errors import InputError, ResumeError, WorkError
from semrsm_dist.stages.faults import failure_receipt, first_cause
from semrsm_dist.stages.session import Session, slices
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.features import FeatureStore

if TYPE_CHECKING:
    from torch import Tensor

    from semrsm_dist.features.extractor import Extractor
    from semrsm_dist.features.models import ModelSpec

TASK_PANELS = 8
"""Panels of a task at most, so that images are read ahead of the model."""

READERS = 4
"""Threads that decode and resize images beside the model: for a photograph that takes as long as a small network.

It is also how many images of full size a worker holds at most; what waits for the model is resized.
"""


@dataclass(frozen=True)
class ExtractorFactory:
    """Makes an extraction worker where it is called: the model is loaded in the actor, not sent to it.

    Parameters
    ----------
    run, side
        The run directory and which of its sides.
    image_set, records
        The readable images, in the order of the matrix.
    spec, weights_sha256
        The model, and the hash that its weights must have.
    layers, precision, batch_size
        The layers to read, and how the model runs.
    panel
        Images of a feature chunk.
    """

    run: Path
    side: str
    image_set: ImageSet
    records: tuple[ImageRecord, ...]
    spec: ModelSpec
    weights_sha256: str
    layers: tuple[str, ...]
    precision: str
    batch_size: int
    panel: int

    def __call__(self) -> Worker:
        """Load the model and return the worker.

        Raises
        ------
        ResumeError
            If the weights found here are not the run's.
        """
        from semrsm_dist.features.extractor import Extractor  # noqa: PLC0415 - torch only where a model runs

        extractor = Extractor(
            self.spec, self.layers, precision=self.precision, device="auto", batch_size=self.batch_size
        )
        found = extractor.model.weights_sha256
        if found != self.weights_sha256:
            raise ResumeError(
                f"the weights of {self.spec.name!r} found on {socket.gethostname()} have the hash {found[:12]}..., "
                f"the run's have {self.weights_sha256[:12]}...; mixing them would spoil the matrix: give all nodes "
                "the same weights file"
            )
        return _ExtractionWorker(self, extractor)


class _ExtractionWorker:
    def __init__(self, setup: ExtractorFactory, extractor: Extractor) -> None:
        self._setup = setup
        self._extractor = extractor
        features = RunDirectory(setup.run).features
        self._stores = {layer: FeatureStore(features, setup.side, layer) for layer in setup.layers}

    def __call__(self, units: tuple[Hashable, ...]) -> Iterator[Receipt]:
        """Extract panels, by number; the next panel's images are read while the model is at work."""
        panels = cast("tuple[int, ...]", units)
        with ThreadPoolExecutor(READERS) as readers:
            pending = self._start_reading(readers, panels[0])
            for position, panel in enumerate(panels):
                images = pending
                if position + 1 < len(panels):
                    pending = self._start_reading(readers, panels[position + 1])
                try:
                    yield self._extract(panel, [image.result() for image in images])
                except Exception as error:  # noqa: BLE001 - recorded against the panel, which is tried again
                    yield failure_receipt(panel, error)

    def _start_reading(self, readers: ThreadPoolExecutor, panel: int) -> list[Future[Tensor]]:
        return [readers.submit(self._read, record) for record in self._records(panel)]

    def _read(self, record: ImageRecord) -> Tensor:
        return self._extractor.transform(self._setup.image_set.read(record))

    def _records(self, panel: int) -> tuple[ImageRecord, ...]:
        start = panel * self._setup.panel
        return self._setup.records[start : start + self._setup.panel]

    def _extract(self, panel: int, images: list[Tensor]) -> Receipt:
        from semrsm_dist.features.extractor import NonFiniteFeaturesError  # noqa: PLC0415

        records = self._records(panel)
        try:
            features = self._extractor(images)
        except NonFiniteFeaturesError as error:
            refused = [(error.layer, records[index].image_id) for index in error.indices]
            return Receipt(panel, counts={"images": 0}, value=refused)
        missing = {layer: store for layer, store in self._stores.items() if not store.has_panel(panel)}
        with np.errstate(over="ignore"):  # an overflow becomes infinite, and is refused
            stored = {
                layer: features[layer].astype(store.dtype(), copy=False) for layer, store in missing.items()
            }
        refused = [
            (layer, records[index].image_id)
            for layer, z in stored.items()
            for index in np.flatnonzero(~np.isfinite(z).all(axis=(1, 2)))
        ]
        if refused:
            return Receipt(panel, counts={"images": 0}, value=refused)
        for layer, store in missing.items():
            store.write_panel(panel, stored[layer])
        return Receipt(panel, counts={"images": len(records)})


def extract_features(
    session: Session,
    side: str,
    image_set: ImageSet,
    records: Sequence[ImageRecord],
    *,
    spec: ModelSpec,
    weights_sha256: str,
    layers: Sequence[str],
    precision: str,
    panel: int,
) -> None:
    """Extract what is missing of one side's features; all layers come from one pass of the model.

    Raises
    ------
    InputError
        If features are not finite, naming the images and the layers.
    WorkError
        If some panels could not be extracted.
    """
    config = session.config.model
    if config is None:
        raise ValueError("extraction needs a model section; the configuration was validated to have one")
    spans = slices(len(records), panel)
    stores = [FeatureStore(session.directory.features, side, layer) for layer in layers]
    present = set.intersection(*(store.present() for store in stores))
    missing = [index for index in range(len(spans)) if index not in present]
    session.counts["extraction"]["found"] += len(present)
    session.counts["extraction"]["computed"] += len(missing)
    if not missing:
        return
    gpus = session.engine.gpus
    count = config.actors or min(len(missing), gpus or session.engine.slots)
    factory = ExtractorFactory(
        run=session.directory.path,
        side=side,
        image_set=image_set,
        records=tuple(records),
        spec=spec,
        weights_sha256=weights_sha256,
        layers=tuple(layers),
        precision=precision,
        batch_size=config.batch_size,
        panel=panel,
    )
    resources = Resources(cpus=1, gpus=1 if gpus else 0, memory=int(session.config.matching.worker_memory))
    batch = max(1, min(TASK_PANELS, len(missing) // (4 * count)))
    refused: list[tuple[str, str]] = []
    failures = session.work(
        "extraction",
        lambda: session.engine.start_actors(factory, count, resources),
        [Task(units=tuple(missing[start:stop])) for start, stop in slices(len(missing), batch)],
        total=len(records),
        done=sum(spans[index][1] - spans[index][0] for index in present),
        unit="images",
        amount=lambda receipt: int(receipt.counts["images"]),
        on_value=lambda receipt: refused.extend(cast("list[tuple[str, str]]", receipt.value)),
    )
    _raise_if_refused(refused)
    if failures:
        raise WorkError(
            f"{len(failures)} of {len(spans)} panels of {side} could not be extracted; the others are kept and the "
            f"same command tries again. First cause: {first_cause(failures)}"
        )


def _raise_if_refused(refused: Sequence[tuple[str, str]]) -> None:
    if not refused:
        return
    layers = sorted({layer for layer, _ in refused})
    images = sorted({image for _, image in refused})
    more = f" and {len(images) - 5} more" if len(images) > 5 else ""
    raise InputError(
        f"features of {', '.join(repr(image) for image in images[:5])}{more} in layer {', '.join(layers)} are NaN or "
        "infinite; no similarity can be computed from them: if half precision overflowed, use model.precision: float32 "
        "and features.dtype: float32, else leave these images out; then start in a new run directory"
    )

"""Extraction: actors hold the model, read images, and write whole panels of features for all layers at once."""

from __future__ import annotations

import socket
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from semrsm_dist.data.manifest import OK, Manifest, ManifestRow
from semrsm_dist.data.records import ImageSet
from semrsm_dist.engine.local import own_gpu
from semrsm_dist.engine.protocol import Receipt, Resources, Task, Worker
from semrsm_dist.errors import InputError, ResumeError, WorkError
from semrsm_dist.stages.faults import failure_receipt, first_cause
from semrsm_dist.stages.identity import describe_model, model_spec
from semrsm_dist.stages.session import Session, slices
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.fingerprint import differences, flatten

if TYPE_CHECKING:
    from semrsm_dist.features.extractor import Extractor, Prepared
    from semrsm_dist.features.models import ModelSpec

TASK_PANELS = 8
"""Panels of a task at most, so that images are read ahead of the model."""

READERS = 4
"""Threads that decode and resize images beside the model: for a photograph that takes as long as a small network.

It is also how many images of full size a worker holds at most; what waits for the model is resized.
"""


class Panel(NamedTuple):
    """Images of one side whose features are written together: the unit of this stage."""

    side: str
    number: int

    def __str__(self) -> str:
        return f"{self.side}/{self.number}"


@dataclass(frozen=True)
class SideImages:
    """What one side of the matrix is made of.

    Parameters
    ----------
    image_set, rows
        The readable images, in the order of the matrix, with the hashes that their content must have.
    """

    image_set: ImageSet
    rows: tuple[ManifestRow, ...]

    @classmethod
    def of(cls, image_set: ImageSet, manifest: Manifest) -> SideImages:
        """Return the readable images of a manifest."""
        return cls(image_set, tuple(row for row in manifest.rows if row.status == OK))


@dataclass(frozen=True)
class ExtractorFactory:
    """Makes an extraction worker where it is called: the model is loaded in the actor, not sent to it.

    One worker serves all sides, so that the model is loaded once for queries and database together.

    Parameters
    ----------
    run
        The run directory.
    sides
        The images of each of its sides.
    spec, facts, layers
        The model, and what `describe_model` must find when it is loaded: its facts and the sizes of its layers.
    precision, batch_size
        How the model runs.
    panel
        Images of a feature chunk.
    gpus
        GPUs of a worker; with 0 the model runs on the CPU.
    """

    run: Path
    sides: Mapping[str, SideImages]
    spec: ModelSpec
    facts: Mapping[str, Any]
    layers: Mapping[str, Mapping[str, int]]
    precision: str
    batch_size: int
    panel: int
    gpus: int

    def __call__(self) -> Worker:
        """Load the model and return the worker.

        Raises
        ------
        ConfigError
            If there is to be a GPU, but torch cannot use it.
        ResumeError
            If the model found here is not the run's.
        """
        from semrsm_dist.features.extractor import Extractor  # noqa: PLC0415 - torch only where a model runs
        from semrsm_dist.features.outputs import OUTPUTS, OutputExtractor  # noqa: PLC0415

        extractor = (OutputExtractor if set(self.layers) == {OUTPUTS} else Extractor)(
            self.spec,
            tuple(self.layers),
            precision=self.precision,
            device=choose_device(self.gpus),
            batch_size=self.batch_size,
        )
        self._require_same_model(*describe_model(extractor.model, extractor.layers))
        return _ExtractionWorker(self, extractor)

    def _require_same_model(self, facts: Mapping[str, Any], layers: Mapping[str, Mapping[str, int]]) -> None:
        changed = differences(
            flatten({"model": self.facts, "layers": self.layers}), flatten({"model": facts, "layers": layers})
        )
        if changed:
            key, expected, found = changed[0]
            raise ResumeError(
                f"the model {self.spec.name!r} found on {socket.gethostname()} is not the run's: {key} is "
                f"{found} there, but {expected} in the run; mixing them would spoil the matrix: give all nodes "
                "the same weights and the same versions of this package, torch and timm"
            )


def choose_device(gpus: int) -> str:
    """Return torch's name of the device for the calling worker, which was given so many GPUs.

    Never `auto`: a GPU that torch cannot use is an error, not a slow and half precise run on the CPU.
    """
    return f"cuda:{own_gpu()}" if gpus else "cpu"


@dataclass(frozen=True)
class PanelNews:
    """What a receipt of a panel tells beside its success.

    Attributes
    ----------
    refused
        Layers and images whose features are not finite; the panel was not written.
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
            for side in setup.sides
        }

    def __call__(self, units: tuple[Hashable, ...]) -> Iterator[Receipt]:
        """Extract panels; the next panel's images are read while the model is at work."""
        panels = cast("tuple[Panel, ...]", units)
        with ThreadPoolExecutor(READERS) as readers:
            pending = self._start_reading(readers, panels[0])
            for position, panel in enumerate(panels):
                images = pending
                if position + 1 < len(panels):
                    pending = self._start_reading(readers, panels[position + 1])
                try:
                    yield self._extract(panel, [image.result() for image in images])
                except Exception as error:  # noqa: BLE001 - recorded against the panel, which is tried again
                    yield failure_receipt(panel, error, self._setup.run)

    def _start_reading(self, readers: ThreadPoolExecutor, panel: Panel) -> list[Future[Prepared]]:
        image_set = self._setup.sides[panel.side].image_set
        return [readers.submit(self._read, image_set, row) for row in self._rows(panel)]

    def _read(self, image_set: ImageSet, row: ManifestRow) -> Prepared:
        loaded = image_set.load(row.record)
        if loaded.sha256 != row.sha256:
            raise InputError(
                f"image {row.image_id!r} is no longer the one that this run was begun with (hash {loaded.sha256[:12]}, "
                f"not {str(row.sha256)[:12]}); its features were not taken, as the matrix would show them under the "
                "old content: put the old content back and start the same command, or begin a new run directory"
            )
        return self._extractor.transform(loaded.image)

    def _rows(self, panel: Panel) -> tuple[ManifestRow, ...]:
        start = panel.number * self._setup.panel
        return self._setup.sides[panel.side].rows[start : start + self._setup.panel]

    def _extract(self, panel: Panel, images: list[Prepared]) -> Receipt:
        from semrsm_dist.features.extractor import NonFiniteFeaturesError  # noqa: PLC0415

        rows, batch_size = self._rows(panel), self._extractor.batch_size
        try:
            features = self._extractor(images)
        except NonFiniteFeaturesError as error:
            refused = [(error.layer, rows[index].image_id) for index in error.indices]
            return Receipt(panel, counts={"images": 0}, value=PanelNews(refused=tuple(refused)))
        stores = self._stores[panel.side]
        missing = {layer: store for layer, store in stores.items() if not store.has_panel(panel.number)}
        with np.errstate(over="ignore"):  # an overflow becomes infinite, and is refused
            stored = {
                layer: features[layer].astype(store.dtype(), copy=False) for layer, store in missing.items()
            }
        refused = [
            (layer, rows[index].image_id)
            for layer, z in stored.items()
            for index in np.flatnonzero(~np.isfinite(z).all(axis=(1, 2)))
        ]
        if refused:
            return Receipt(panel, counts={"images": 0}, value=PanelNews(refused=tuple(refused)))
        for layer, store in missing.items():
            store.write_panel(panel.number, stored[layer])
        now = self._extractor.batch_size
        news = PanelNews(smaller_batch=now) if now < batch_size else None
        return Receipt(panel, counts={"images": len(rows)}, value=news)


def extract_features(
    session: Session,
    sides: Mapping[str, SideImages],
    *,
    facts: Mapping[str, Any],
    layers: Mapping[str, Mapping[str, int]],
    precision: str,
    batch_size: int,
    panel: int,
) -> None:
    """Extract what is missing of the features; all layers come from one pass of the model.

    Where nothing is missing, no library that runs models is loaded.

    Parameters
    ----------
    session
        The session.
    sides, facts, layers, precision, batch_size, panel
        As in `ExtractorFactory`. The batch size is the run's, not the configuration's: the last bits of a network's
        output depend on it.

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
    n_images = {
        Panel(side, index): stop - start
        for side, images in sides.items()
        for index, (start, stop) in enumerate(slices(len(images.rows), panel))
    }
    present = {
        Panel(side, index) for side in sides for index in _present(session.directory.features, side, layers)
    }
    missing = [unit for unit in n_images if unit not in present]
    session.counts["extraction"]["found"] += len(present)
    session.counts["extraction"]["computed"] += len(missing)
    if not missing:
        return
    gpus = session.engine.gpus
    count = config.actors or min(len(missing), gpus or session.engine.slots)
    factory = ExtractorFactory(
        run=session.directory.path,
        sides={side: sides[side] for side in {unit.side: None for unit in missing}},
        spec=model_spec(config),
        facts=facts,
        layers=layers,
        precision=precision,
        batch_size=batch_size,
        panel=panel,
        gpus=1 if gpus else 0,
    )
    resources = Resources(cpus=1, gpus=factory.gpus, memory=int(session.config.matching.worker_memory))
    batch = max(1, min(TASK_PANELS, len(missing) // (4 * count)))
    _warn_of_other_batches(session, batch_size, panel)
    news: list[PanelNews] = []
    failures = session.work(
        "extraction",
        lambda: session.engine.start_actors(factory, count, resources),
        [Task(units=tuple(missing[start:stop])) for start, stop in slices(len(missing), batch)],
        total=sum(n_images.values()),
        done=sum(n_images[unit] for unit in present),
        unit="images",
        amount=lambda receipt: int(receipt.counts["images"]),
        on_value=lambda receipt: news.append(cast("PanelNews", receipt.value)),
    )
    _warn_of_smaller_batches(session, batch_size, news)
    _raise_if_refused([item for told in news for item in told.refused])
    if failures:
        raise WorkError(
            f"{len(failures)} of {len(n_images)} panels of {' and '.join(sides)} could not be extracted; the others "
            f"are kept and the same command tries again. First cause: {first_cause(failures)}"
        )


def _present(features: Path, side: str, layers: Iterable[str]) -> set[int]:
    """Return the numbers of the panels that no layer lacks."""
    return set.intersection(*(FeatureStore(features, side, layer).present() for layer in layers))


def _warn_of_other_batches(session: Session, batch_size: int, panel: int) -> None:
    asked = session.config.model.batch_size if session.config.model else batch_size
    if asked == batch_size:
        return
    reason = (
        f"panels of {panel} images are the largest batches"
        if asked > panel and batch_size == panel
        else "the run was begun with them"
    )
    session.warn(f"model.batch_size: {asked}: images are extracted in batches of {batch_size}, as {reason}")


def _warn_of_smaller_batches(session: Session, batch_size: int, news: Sequence[PanelNews]) -> None:
    halved = [item.smaller_batch for item in news if item.smaller_batch is not None]
    if halved:
        session.warn(
            f"a GPU's memory did not suffice for batches of {batch_size} images; batches of down to {min(halved)} "
            "took their place, on which the last bits of features depend"
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

"""Verification of images against the manifest, and of features against what they were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.config.schema import RunConfig
from semrsm_dist.data.entries import UnreadableImageError, smallest
from semrsm_dist.data.manifest import Manifest, ManifestRow
from semrsm_dist.data.source import ImageSource, load_image
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.errors import InputError, MissingInputError, SemrsmError
from semrsm_dist.features.arrays import load_token_counts
from semrsm_dist.features.spec import ModelSpec
from semrsm_dist.results.verification.features import SoundFeatures
from semrsm_dist.results.verification.inspection import Inspection
from semrsm_dist.results.verification.numbers import Problem
from semrsm_dist.results.verification.recorded import SECTIONS
from semrsm_dist.results.verification.report import Kind
from semrsm_dist.store.feature_source import open_array
from semrsm_dist.store.features import FEATURES
from semrsm_dist.store.record import Side

EXTRACTED = 32
"""Images of a side whose features are extracted again, at most."""

CLOSE = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 2e-1}
"""How far features may be from those of another batch or machine by precision, as a share of their norm."""

Sound = Mapping[tuple[Side, str], SoundFeatures]


def inspect_images(
    inspection: Inspection, config: RunConfig, manifests: Mapping[Side, Manifest], features: Sound
) -> None:
    """Check that the images, or the ready-made features, are still those that the run began with.

    What is gone cannot be checked; a finished run no longer needs it.
    """
    for side, manifest in manifests.items():
        data = getattr(config, SECTIONS[side])
        if isinstance(data, FeaturesData):
            for layer in data.layers:
                _compare_source(inspection, side, layer, data, features[side, layer])
        elif isinstance(data, ImageSource):
            intact = _hash_images(inspection, side, data, manifest.readable)
            if not inspection.fast:
                _extract_sample(inspection, config, side, data, intact, features)


def _hash_images(
    inspection: Inspection, side: Side, source: ImageSource, rows: Sequence[ManifestRow]
) -> list[tuple[int, ManifestRow]]:
    """Return the images whose content is that of the manifest, with their indices."""
    intact: list[tuple[int, ManifestRow]] = []
    gone: list[str] = []
    path = inspection.directory.manifest(side)

    def check(item: tuple[int, ManifestRow]) -> None:
        row = item[1]
        try:
            loaded = load_image(source, row.entry, smallest)
        except UnreadableImageError as error:
            if row.mtime_ns is not None and source.stamp(row.entry) is None:
                gone.append(row.image_id)
            else:
                inspection.add(
                    path, None, row.image_id, Problem(Kind.IMAGE, f"it cannot be read any more: {error}")
                )
        except SemrsmError as error:
            inspection.unchecked.append(f"image {row.image_id}: {error}")
        else:
            if loaded.sha256 == row.sha256:
                intact.append(item)
            else:
                text = f"its content has the hash {loaded.sha256[:12]}, not {str(row.sha256)[:12]}"
                inspection.add(path, None, row.image_id, Problem(Kind.IMAGE, text))

    inspection.each(side, "images", list(enumerate(rows)), check)
    if gone:
        inspection.unchecked.append(
            f"{len(gone)} of {len(rows)} {side} are no longer there, such as {gone[0]!r}"
        )
    return sorted(intact, key=lambda item: item[0])


def _extract_sample(
    inspection: Inspection,
    config: RunConfig,
    side: Side,
    source: ImageSource,
    intact: Sequence[tuple[int, ManifestRow]],
    features: Sound,
) -> None:
    """Extract the features of a few images again, and compare them with those that are stored."""
    record, model = inspection.record, config.model
    if model is None or not intact:
        return
    rng = inspection.rng("", f"images of {side}")
    chosen = [intact[place] for place in sorted(rng.permutation(len(intact))[:EXTRACTED])]
    layers = [layer for layer in record.model.layers if (side, layer) in features]
    from semrsm_dist.features.extractor import Extractor  # noqa: PLC0415 - torch only where a model runs
    from semrsm_dist.features.reproducible import reproducible  # noqa: PLC0415 - as above

    spec = ModelSpec(
        model.name, model.weights, model.input_size, model.seed, model.prompt, model.preprocessing
    )
    try:
        extractor = Extractor(
            spec, layers, precision=record.model.precision, device="cpu", batch_size=record.batch_size or 1
        )
        found = extractor.model.describe()["weights_sha256"]
        if found != record.model.facts["weights_sha256"]:
            raise InputError(f"the weights found here have the hash {found}, not that of the run")
        with reproducible():
            least = extractor.preprocessing.least_size if model.jpeg_draft else None
            images = [extractor.transform(load_image(source, row.entry, least).image) for _, row in chosen]
            extracted = extractor(images)
    except SemrsmError as error:
        inspection.unchecked.append(f"features of {side} were not extracted again: {error}")
        return
    for layer in layers:
        known = features[side, layer]
        read, close = known.reader(), CLOSE[record.model.precision]
        for (index, row), z in zip(chosen, extracted[layer], strict=True):
            if known.known[index]:
                _compare(inspection, known, index, row.image_id, (read(index), np.asarray(z)), close)
    inspection.count("images extracted again", len(chosen))


def _compare_source(
    inspection: Inspection, side: Side, layer: str, data: FeaturesData, known: SoundFeatures
) -> None:
    """Compare imported features with their source, chunk by chunk."""
    path: Path = data.layers[layer]
    try:
        source = open_array(path, data.layout, layer)
        counts = load_token_counts(data.token_counts.get(layer), source.n_images, source.n_tokens)
    except MissingInputError as error:
        inspection.unchecked.append(f"features of {side}: {error}")
        return
    except InputError as error:
        inspection.add(path, layer, "", Problem(Kind.IMAGE, str(error)))
        return
    if source.n_images != len(known.known):
        text = f"it holds {source.n_images} images, not {len(known.known)}"
        inspection.add(path, layer, "", Problem(Kind.IMAGE, text))
        return
    read = known.reader()

    def check(number: int) -> None:
        start = number * known.chunk_size
        stop = min(start + known.chunk_size, source.n_images)
        if not known.known[start:stop].all():
            return
        z = source.read(start, stop).astype(known.store.dtype())
        for index in range(start, stop):
            _compare(
                inspection, known, index, str(index), (read(index), z[index - start, : counts[index]]), 0.0
            )

    numbers = list(range(-(-source.n_images // known.chunk_size)))
    inspection.each(f"source of {layer} ({side})", "source chunks", numbers, check)


def _compare(
    inspection: Inspection,
    known: SoundFeatures,
    index: int,
    name: str,
    both: tuple[NDArray[Any], NDArray[Any]],
    close: float,
) -> None:
    """Compare stored features of an image with new ones, up to a share of their norm."""
    stored, new = (each.astype(np.float64) for each in both)
    apart = float(np.linalg.norm(stored - new)) if stored.shape == new.shape else np.inf
    if apart > close * float(np.linalg.norm(new)):
        number = index // known.chunk_size
        text = f"image {name!r}: the features differ from those that are made of it now by {apart:.3g}"
        place = (number, 0, 0)
        inspection.add(known.store.group / FEATURES, known.store.layer, place, Problem(Kind.FEATURES, text))

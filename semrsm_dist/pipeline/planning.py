"""The cost of a run before it starts, measured on a few of its own images and computed from its sizes."""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semrsm_dist.config.schema import Data, FeaturesData, RunConfig, check_sources
from semrsm_dist.data.entries import ImageEntry, UnreadableImageError
from semrsm_dist.data.manifest import Manifest
from semrsm_dist.data.source import ImageSource, list_entries
from semrsm_dist.engine import make_engine
from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.features.arrays import FeatureArray, load_token_counts
from semrsm_dist.machine import limit_threads
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.matching.matchers import make_matcher
from semrsm_dist.pipeline.feature_inputs import check_features
from semrsm_dist.pipeline.inputs import RunInputs, check_model, model_spec, storage_itemsize
from semrsm_dist.pipeline.sizing import choose_sizes, layer_result_bytes, worker_bytes
from semrsm_dist.plan.cost import feature_bytes
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.progress import format_seconds
from semrsm_dist.store.feature_source import open_array
from semrsm_dist.store.record import LayerRecord, LayerSizes, Side

CALIBRATION_IMAGES = 8
CALIBRATION_SECONDS = 2.0

Sample = tuple[NDArray[Any], NDArray[np.int64] | None]
"""Features of a few images (T, S, C) and their token counts; None if all have S."""


def plan_run(config: RunConfig) -> dict[str, Any]:
    """Return what a run would cost. Nothing is written, and nothing but a calibration is computed.

    Parameters
    ----------
    config
        The run.

    Returns
    -------
    dict
        JSON values: images by side, the number of neighbours if the run keeps them, seconds per image of
        extraction; per layer S, C, tiles, pairs, seconds per pair (measured on images of the run, one core),
        core-hours, bytes of features and results; the sums; the free disk and whether it suffices (`fits`); the
        memory at the peak, which is what this process took for libraries, model and calibration, and the panels
        of all workers; the seconds to load the model and compile the matcher, and
        the estimated duration on the engine's CPUs with these.

    Raises
    ------
    InputError, ConfigError
        As `run`, if the calibration meets the cause.
    """
    matcher = make_matcher(config.matching.matcher, **config.matching.parameters)
    sides: dict[Side, Data] = {"images": config.data}
    if config.queries is not None:
        sides["queries"] = config.queries
    counts, samples, image_seconds, loading = _sample(config, sides)
    engine = make_engine(config.engine, address=config.address, workers=config.workers)
    try:
        machine = engine.describe()
    finally:
        engine.close()
    slots = max(1, int(str(machine["cpus"])))
    inputs = RunInputs(
        {side: Manifest.from_ids([str(index) for index in range(count)]) for side, count in counts.items()},
        {layer: LayerSizes(n_tokens=z.shape[1], n_channels=z.shape[2]) for layer, (z, _) in samples.items()},
        {},
    )
    chosen, _ = choose_sizes(config, matcher, inputs, {}, workers=slots)
    with limit_threads(1):
        started = time.perf_counter()
        matcher.compile()
        start_seconds = loading + time.perf_counter() - started
        layers = {
            layer: _plan_layer(config, matcher, inputs, chosen[layer], _measure_pair(matcher, *sample))
            for layer, sample in samples.items()
        }
    core_seconds = sum(facts["core_seconds"] for facts in layers.values())
    extraction = image_seconds * sum(counts.values())
    disk = sum(facts["feature_bytes"] + facts["result_bytes"] for facts in layers.values())
    free = shutil.disk_usage(_existing(config.run)).free
    worker_memory = min(
        int(config.matching.worker_memory),
        max(worker_bytes(config, matcher, layer) for layer in chosen.values()),
    )
    return {
        "run": str(config.run),
        "images": counts,
        "matcher": {"name": matcher.name, **matcher.parameters},
        "neighbours": None if config.output.neighbours is None else config.output.neighbours.k,
        "layers": layers,
        "image_seconds": image_seconds,
        "extraction_core_hours": extraction / 3600,
        "matching_core_hours": core_seconds / 3600,
        "start_seconds": start_seconds,
        "seconds": start_seconds + (core_seconds + extraction) / slots,
        "disk_bytes": disk,
        "disk_free_bytes": free,
        "fits": disk <= free,
        "worker_memory_bytes": worker_memory,
        "peak_memory_bytes": _peak_memory() + slots * worker_memory,
        "engine": machine,
    }


def format_plan(plan: Mapping[str, Any]) -> str:
    """Format a plan for people."""
    counts = " x ".join(f"{count} {side}" for side, count in plan["images"].items())
    lines = [f"{plan['run']}: {counts}, matcher {plan['matcher']}"]
    lines.append(
        f"{'layer':<24} {'S':>6} {'C':>6} {'pairs':>12} {'tile':>5} {'ms/pair':>9} {'core-hours':>11}"
    )
    for layer, facts in plan["layers"].items():
        lines.append(
            f"{layer:<24} {facts['n_tokens']:>6} {facts['n_channels']:>6} {facts['pairs']:>12} {facts['tile']:>5} "
            f"{1e3 * facts['pair_seconds']:>9.3f} {facts['core_seconds'] / 3600:>11.2f}"
        )
    if plan["neighbours"] is not None:
        lines.append(
            f"{plan['neighbours']} neighbours of each image: bounds decide most pairs, so that core-hours and time are "
            "upper limits"
        )
    if plan["image_seconds"]:
        lines.append(
            f"extraction: {1e3 * plan['image_seconds']:.0f} ms/image, {plan['extraction_core_hours']:.2f} core-hours"
        )
    gib = 2.0**30
    workers, engine = plan["engine"]["cpus"], plan["engine"]["engine"]
    lines += [
        f"disk: up to {plan['disk_bytes'] / gib:.2f} GiB, {plan['disk_free_bytes'] / gib:.1f} GiB free",
        f"memory: about {plan['peak_memory_bytes'] / gib:.1f} GiB at the peak, with up to "
        f"{plan['worker_memory_bytes'] / gib:.2f} GiB for each of {workers} workers in matching; "
        f"{plan['engine']['memory'] / gib:.1f} GiB there",
        f"about {format_seconds(plan['seconds'])} on {workers} CPUs ({engine} engine), of which "
        f"{format_seconds(plan['start_seconds'])} to load the model and compile the matcher",
    ]
    if not plan["fits"]:
        lines.append(
            "the disk may be too small, and the run would be refused: free space, choose another run directory, use "
            "features.dtype: float16, or fewer layers or kernels"
        )
    return "\n".join(lines)


def check_run(config: RunConfig) -> None:
    """Find what a run would refuse, as far as that takes neither the content of images nor a download.

    Raises
    ------
    InputError, ConfigError
        If there are no such images or features, features do not fit their token counts, their table, each other or the
        matcher, or there is no such model, layer or pretrained weights.
    """
    check_sources(config)
    sides: Mapping[Side, Data | None] = {"images": config.data, "queries": config.queries}
    ready = {side: data for side, data in sides.items() if isinstance(data, FeaturesData)}
    check_features(ready, make_matcher(config.matching.matcher, **config.matching.parameters))
    if config.model is not None:
        check_model(config.model)


def _sample(
    config: RunConfig, sides: Mapping[Side, Data]
) -> tuple[dict[Side, int], dict[str, Sample], float, float]:
    """Return image counts, features of a few images for each layer, seconds per image and to load the model."""
    if isinstance(config.data, FeaturesData):
        sources = {
            side: {layer: open_array(path, data.layout, layer) for layer, path in data.layers.items()}
            for side, data in sides.items()
            if isinstance(data, FeaturesData)
        }
        counts = {side: next(iter(layers.values())).n_images for side, layers in sources.items()}
        samples: dict[str, Sample] = {
            layer: _sample_features(source, config.data.token_counts.get(layer))
            for layer, source in sources["images"].items()
        }
        return counts, samples, 0.0, 0.0
    if config.model is None:
        raise ConfigError("images need a model; add the section model with name, weights and layers")
    readers: dict[Side, ImageSource] = {
        side: data for side, data in sides.items() if isinstance(data, ImageSource)
    }
    entries = {side: list_entries(source) for side, source in readers.items()}
    started = time.perf_counter()
    from semrsm_dist.features.extractor import Extractor  # noqa: PLC0415 - torch only where a model runs

    extractor = Extractor(
        model_spec(config.model),
        config.model.layers,
        precision=config.model.precision,
        batch_size=config.model.batch_size,
    )
    loading = time.perf_counter() - started
    started = time.perf_counter()
    images = _read_some(config, readers["images"], entries["images"])
    samples = {layer: (z, None) for layer, z in extractor(images).items()}
    seconds = (time.perf_counter() - started) / len(images)
    return {side: len(found) for side, found in entries.items()}, samples, seconds, loading


def _sample_features(source: FeatureArray, token_counts: Path | None) -> Sample:
    z = source.read(0, min(CALIBRATION_IMAGES, source.n_images))
    return z, load_token_counts(token_counts, source.n_images, source.n_tokens)[: len(z)]


def _read_some(config: RunConfig, source: ImageSource, entries: Sequence[ImageEntry]) -> list[Image.Image]:
    """Read a few images from all over the list: neighbours are often similar."""
    images = []
    for entry in entries[:: max(1, len(entries) // CALIBRATION_IMAGES)][:CALIBRATION_IMAGES]:
        try:
            images.append(source.read(entry))
        except UnreadableImageError:
            if config.unreadable == "refuse":
                raise
    if not images:
        raise InputError(
            f"none of {CALIBRATION_IMAGES} images from all over the list can be read, so nothing can be measured; fix "
            "the images, or check the path"
        )
    return images


def _measure_pair(matcher: Matcher, z: NDArray[Any], token_counts: NDArray[np.int64] | None) -> float:
    """Return the seconds of one pair: whole rows of pairs until enough time has passed."""
    panel = matcher.prepare(z, token_counts)
    pairs, started = 0, time.perf_counter()
    for first in range(len(z)):
        matcher.solve_tile(panel.part(slice(first, first + 1)), panel)
        pairs += len(z)
        if time.perf_counter() - started > CALIBRATION_SECONDS:
            break
    return (time.perf_counter() - started) / pairs


def _plan_layer(
    config: RunConfig, matcher: Matcher, inputs: RunInputs, sizes: LayerRecord, pair_seconds: float
) -> dict[str, Any]:
    counts = inputs.counts()
    layout = Layout.of_sides(counts, sizes.tile_size)
    n_tokens, n_channels = sizes.n_tokens, sizes.n_channels
    itemsize = storage_itemsize(config.features)
    return {
        "n_tokens": n_tokens,
        "n_channels": n_channels,
        "tile": layout.tile_size,
        "pairs": layout.total_pairs,
        "pair_seconds": pair_seconds,
        "core_seconds": pair_seconds * layout.total_pairs,
        "feature_bytes": sum(
            feature_bytes(count, n_tokens, n_channels, itemsize) for count in counts.values()
        ),
        "result_bytes": layer_result_bytes(config, matcher, layout),
    }


def _existing(path: Path) -> Path:
    """Return the nearest folder above a path that exists, to ask for its disk."""
    for folder in (path.absolute(), *path.absolute().parents):
        if folder.is_dir():
            return folder
    return Path(tempfile.gettempdir())


def _peak_memory() -> int:
    """Return the largest memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

"""The record of a run with its sizes: feature chunks and tiles as a worker's memory and a task's time allow."""

from __future__ import annotations

import functools
import math
import platform
from collections.abc import Mapping

from semrsm_dist.config.schema import RunConfig
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.engine.protocol import Engine
from semrsm_dist.errors import ConfigError, LimitError, StorageError
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.pipeline.inputs import RunInputs, find_version
from semrsm_dist.pipeline.memory import PAIR_BYTES, WorkerMemory, allowed_memory
from semrsm_dist.pipeline.session import Session
from semrsm_dist.plan.cost import feature_bytes, neighbour_bytes, result_bytes
from semrsm_dist.plan.tiling import (
    LARGEST_GPU_TILE,
    LARGEST_TILE,
    MOST_PANELS,
    Layout,
    choose_tile_size,
    matrix_shape,
    smallest_tile,
)
from semrsm_dist.store.paths import free_bytes
from semrsm_dist.store.record import LayerRecord, RunRecord

LARGEST_CHUNK = 32
"""Images of a feature chunk: one batch of a model, and the granularity in which extraction resumes.

Fewer only where a worker's memory demands it, more only where so many images would make too many chunks: the last bits
of a network's output depend on the batch, so the number of workers or the size of tiles must not affect it.
"""

IMPORTED_CHUNK_BYTES = 2**20
"""About the size of a chunk of ready-made features: fewer and larger files, which no model's batch limits."""

RESULTS_SHARE = 8
"""The results of a tile take at most 1/8 of a worker's memory, unless there are very many images."""

GPU_TILE_SECONDS = 1.0
"""Longest that a tile should take on a GPU: its results are large by then."""


def count_workers(engine: Engine, matcher: Matcher) -> int:
    """Return how many workers match at once, if the memory suffices for all."""
    if matcher.gpus:
        return max(1, int(engine.gpus / matcher.gpus))
    return engine.slots


def make_record(session: Session, matcher: Matcher, inputs: RunInputs, known: RunRecord | None) -> RunRecord:
    """Return the record of the run with what this session requests; sizes once chosen are kept.

    Raises ConfigError as `choose_sizes` does.
    """
    config = session.config
    before = known.layers if known else {}
    layers, chunk_size = choose_sizes(
        config,
        matcher,
        inputs,
        before,
        workers=count_workers(session.engine, matcher),
        allowed=allowed_memory(config, matcher, session.engine.describe()),
    )
    _warn_of_larger_tiles(session, layers)
    if known:
        chunk_size = known.chunk_size
    batch_size = known.batch_size if known else None
    if config.model is not None and batch_size is None:
        batch_size = min(config.model.batch_size, chunk_size)
    in_order = before if layers.keys() <= before.keys() else layers  # in the network's order, if it is known
    return RunRecord(
        fingerprint=known.fingerprint if known else inputs.facts,  # equal, but perhaps 1.0 and not 1
        layers={**in_order, **before, **layers},
        requested=tuple(layers),
        chunk_size=chunk_size,
        batch_size=batch_size,
        counts=inputs.counts(),
        cached=inputs.cached,
        config=config.model_dump(mode="json"),
        versions=_versions(),
    )


def _warn_of_larger_tiles(session: Session, layers: Mapping[str, LayerRecord]) -> None:
    requested = session.config.matching.tile
    larger = max(layer.tile_size for layer in layers.values())
    if requested is not None and larger > requested:
        session.warn(
            f"matching.tile: {requested}: so many images would make too many files: tiles of {larger} x {larger} are "
            f"written, which workers solve {requested} x {requested} images at a time"
        )


def choose_sizes(
    config: RunConfig,
    matcher: Matcher,
    inputs: RunInputs,
    known: Mapping[str, LayerRecord],
    *,
    workers: int,
    allowed: int,
) -> tuple[dict[str, LayerRecord], int]:
    """Choose the sizes of tiles and feature chunks; layers that an earlier session has sized keep their tiles.

    There are so many `workers` of matching, which are `allowed` so many bytes of memory each. Raises ConfigError if the
    tiles do not fit into a worker's memory, or differ from those of the run.

    Returns
    -------
    layers
        The record of each requested layer.
    chunk_size
        Images of a feature chunk.
    """
    layers, fitting, memory = {}, [], WorkerMemory(config, matcher, inputs.counts(), allowed)
    for layer, sizes in inputs.layers.items():
        pair_seconds = matcher.pair_seconds(sizes.n_tokens, sizes.n_channels)
        size = _tile_size(memory, pair_seconds, workers)
        if layer in known:
            if config.matching.tile is not None and size != known[layer].tile_size:
                raise ConfigError(
                    f"matching.tile: {config.matching.tile}: layer {layer!r} of this run is cut into tiles of "
                    f"{known[layer].tile_size}, which cannot change once it has begun: remove the key, or start a new "
                    "run directory"
                )
            size = known[layer].tile_size
        layers[layer] = LayerRecord(
            n_tokens=sizes.n_tokens,
            n_channels=sizes.n_channels,
            tile_size=size,
            pair_seconds=pair_seconds,
            facts=inputs.layer_facts.get(layer, {}),
        )
        fitting.append(memory.count_fitting(layer, layers[layer]))
    return layers, min(_chunk_size(config, inputs, layers), _power_of_two(min(fitting)))


def _chunk_size(config: RunConfig, inputs: RunInputs, layers: Mapping[str, LayerRecord]) -> int:
    """Return the images of a feature chunk, whatever the memory: a power of two.

    Of ready-made features, which no batch of a model limits, it may be larger, but not so large that a panel of a tile
    would read a part of it.
    """
    size = LARGEST_CHUNK
    while max(inputs.counts().values()) > MOST_PANELS * size:
        size *= 2
    if not all(isinstance(data, FeaturesData) for data in (config.data, config.queries or config.data)):
        return size
    itemsize = config.features.itemsize
    image_bytes = max(layer.n_tokens * layer.n_channels * itemsize for layer in layers.values())
    tile = min(layer.tile_size for layer in layers.values())
    return max(size, _power_of_two(min(tile, IMPORTED_CHUNK_BYTES // image_bytes)))


def _power_of_two(most: int) -> int:
    """Return the largest power of two that is not above a number, or 1."""
    return 1 << (max(1, most).bit_length() - 1)


def layer_result_bytes(config: RunConfig, matcher: Matcher, layout: Layout) -> int:
    """Return the uncompressed size of a layer's results, in bytes."""
    itemsize = 8 if matcher.is_exact else 4
    if config.output.neighbours is not None:
        return neighbour_bytes(layout.n_rows, layout.row_panels, config.output.neighbours.k, itemsize)
    n_kernels = len(config.kernels) if config.output.matrices == "stored" else None
    return result_bytes(layout.total_pairs, layout.n_rows * layout.n_columns, n_kernels, itemsize)


def largest_disk_bytes(config: RunConfig, matcher: Matcher, record: RunRecord) -> int:
    """Return the bytes of a run's features and results if nothing could be compressed."""
    itemsize, needed = config.features.itemsize, 0
    for name, layer in record.layers.items():
        needed += layer_result_bytes(config, matcher, record.layout(name)) + sum(
            feature_bytes(count, layer.n_tokens, layer.n_channels, itemsize)
            for count in record.counts.values()
        )
    return needed


def require_disk(session: Session, matcher: Matcher, record: RunRecord) -> None:
    """Refuse to begin a run that the disk cannot hold.

    Raises StorageError if the uncompressed results and features are larger than the free space.
    """
    needed = largest_disk_bytes(session.config, matcher, record)
    free = free_bytes(session.directory.path)
    if free is not None and needed > free:
        raise StorageError(
            f"{session.directory.path}: the run takes up to {needed / 2**20:.0f} MiB, but {free / 2**20:.0f} MiB are "
            "free; nothing was computed: free space, use features.dtype: float16, or fewer layers or kernels"
        )


def matching_memory(session: Session, matcher: Matcher, record: RunRecord) -> WorkerMemory:
    """Return the memory of a worker that matches in this session."""
    allowed = allowed_memory(session.config, matcher, session.engine.describe())
    return WorkerMemory(session.config, matcher, record.counts, allowed)


def require_memory(session: Session, matcher: Matcher, record: RunRecord) -> None:
    """Refuse a session whose first worker of matching would be killed for its memory.

    Only on one machine: a cluster may grow by nodes whose memory is not known yet. Raises LimitError if a worker takes
    more than the machines, or the container, allow in all.
    """
    needed = matching_memory(session, matcher, record).largest(record)
    facts = session.engine.describe()
    limit = int(str(facts["memory"]))
    if needed > limit and is_one_machine(facts):
        raise LimitError(
            f"a worker of matching takes up to {needed / 2**20:.0f} MiB, but {limit / 2**20:.0f} MiB are allowed here; "
            "nothing was computed: lower matching.worker_memory, or use a machine or container with more memory"
        )


def is_one_machine(facts: Mapping[str, object]) -> bool:
    """Return whether an engine's description is that of one machine, with its memory; a cluster's bare head is none."""
    return facts["nodes"] == 1 and facts["memory"] != 0


def _tile_size(memory: WorkerMemory, pair_seconds: float, workers: int) -> int:
    """Return the tile size: as requested, or its first multiple that makes few enough files, within the matrix."""
    matching, gpus = memory.config.matching, memory.matcher.gpus
    n_rows, n_columns = matrix_shape(memory.counts)
    smallest = smallest_tile(n_rows, n_columns, symmetric="queries" not in memory.counts)
    requested, longest = matching.tile, max(n_rows, n_columns)
    if requested is not None:
        return min(requested * -(-smallest // requested), longest)
    share = pair_seconds * longest * longest / 2 / (8 * workers)
    return choose_tile_size(
        longest,
        smallest,
        math.isqrt(memory.allowed // (RESULTS_SHARE * PAIR_BYTES)),
        pair_seconds=pair_seconds,
        tile_seconds=min(GPU_TILE_SECONDS if gpus else matching.task_seconds, max(share, 0.05)),
        limit=LARGEST_GPU_TILE if gpus else LARGEST_TILE,
    )


@functools.cache
def _versions() -> dict[str, str]:
    names = ("semrsm-dist", "numpy", "scipy", "numba", "zarr", "torch", "timm", "ray")
    found = {name: find_version(name) for name in names}
    return {
        "python": platform.python_version(),
        **{name: version for name, version in found.items() if version},
    }

"""The sizes of feature chunks and tiles, from those of the features, the memory of a worker and the time of a task."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from semrsm_dist.config.schema import RunConfig
from semrsm_dist.errors import ConfigError, StorageError
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.pipeline.inputs import RunInputs, storage_itemsize
from semrsm_dist.pipeline.session import Session
from semrsm_dist.plan.cost import feature_bytes, result_bytes
from semrsm_dist.plan.tiling import Layout, choose_tile_size

LARGEST_CHUNK = 32
"""Images of a feature chunk: one batch of a model, and the granularity in which extraction resumes.

Fewer only where a worker's memory asks for it: the last bits of a network's output depend on the batch, so the
number of workers or the tile_sizes of tiles must have no say in it.
"""

PROCESS_BYTES = 8 * 1024**2
"""What a worker needs beside panels and workspace: one tile of results and its buffers."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a run.

    Attributes
    ----------
    layers
        For each layer: n_tokens, n_channels, and the size of its tiles.
    chunk_size
        Images of a feature chunk.
    """

    layers: dict[str, dict[str, int]]
    chunk_size: int


def choose_sizes(
    config: RunConfig, matcher: Matcher, inputs: RunInputs, known: Mapping[str, Any], *, workers: int
) -> Sizes:
    """Choose the sizes of feature chunks and tiles; layers that an earlier session has sized keep their tiles.

    Parameters
    ----------
    config, matcher, inputs
        The run.
    known
        The layers in the run's record.
    workers
        Number of workers that share the tiles.

    Raises
    ------
    ConfigError
        If the tiles do not fit into a worker's memory, or others than the run's are requested for.
    """
    longest = max(inputs.counts().values())
    layers = {}
    chunk_size = LARGEST_CHUNK
    for layer, sizes in inputs.layers.items():
        n_tokens, n_channels = sizes["n_tokens"], sizes["n_channels"]
        requested = config.matching.tile
        if layer in known:
            size = known[layer]["tile_size"]
            if requested is not None and requested != size:
                raise ConfigError(
                    f"matching.tile: {requested}: layer {layer!r} of this run is cut into tiles of {size}, which "
                    "cannot change once it has begun: remove the key, or start a new run directory"
                )
        else:
            size = requested
        fitting = _require_memory(config, matcher, layer, sizes, size or 1)
        if size is None:
            size = _tile_size(config, matcher, n_tokens, n_channels, longest, workers)
        chunk_size = min(chunk_size, 1 << (fitting.bit_length() - 1))
        layers[layer] = {"n_tokens": n_tokens, "n_channels": n_channels, "tile_size": size}
    return Sizes(layers, chunk_size)


def panel_budget(
    config: RunConfig, matcher: Matcher, layers: Mapping[str, Mapping[str, int]], chunk_size: int
) -> int:
    """Return the memory that one worker has for prepared panels in the largest of the layers, in bytes.

    Parameters
    ----------
    config, matcher
        The run.
    layers, chunk_size
        As in `Sizes`. Reading a tile's images decodes whole chunks of `chunk_size` images.
    """
    return min(
        _budget(config, matcher, sizes["n_tokens"], sizes["n_channels"])
        - _loading_bytes(
            sizes["n_tokens"],
            sizes["n_channels"],
            max(sizes["tile_size"], chunk_size),
            storage_itemsize(config.features),
        )
        for sizes in layers.values()
    )


def require_disk(session: Session, inputs: RunInputs, tile_sizes: Mapping[str, int]) -> None:
    """Refuse to begin a run that the disk cannot hold.

    Raises
    ------
    StorageError
        If the uncompressed results and features are larger than the free space.
    """
    config, counts = session.config, inputs.counts()
    needed = 0
    for layer, sizes in inputs.layers.items():
        layout = Layout(
            counts[inputs.row_side], counts["images"], tile_sizes[layer], inputs.row_side == "images"
        )
        needed += result_bytes(
            layout.n_rows, layout.n_columns, layout.total_pairs, len(config.kernels)
        ) + sum(
            feature_bytes(count, sizes["n_tokens"], sizes["n_channels"], storage_itemsize(config.features))
            for count in counts.values()
        )
    free = shutil.disk_usage(session.directory.path).free
    if needed > free:
        raise StorageError(
            f"{session.directory.path}: the run takes up to {needed / 2**20:.0f} MiB, but {free / 2**20:.0f} MiB are "
            "free; nothing was computed: free space, use features.dtype: float16, or fewer layers or kernels"
        )


def _tile_size(
    config: RunConfig, matcher: Matcher, n_tokens: int, n_channels: int, n_images: int, workers: int
) -> int:
    pair_seconds = matcher.pair_seconds(n_tokens, n_channels)
    total_seconds = pair_seconds * n_images * n_images / 2
    return choose_tile_size(
        n_images,
        _image_bytes(config, matcher, n_tokens, n_channels),
        _budget(config, matcher, n_tokens, n_channels),
        pair_seconds=pair_seconds,
        task_seconds=min(config.matching.task_seconds, max(total_seconds / (8 * workers), 0.05)),
    )


def _require_memory(
    config: RunConfig, matcher: Matcher, layer: str, sizes: Mapping[str, int], size: int
) -> int:
    """Return the images of the largest panel of which two fit into a worker, refusing tiles that are larger."""
    n_tokens, n_channels = sizes["n_tokens"], sizes["n_channels"]
    image_bytes, budget = (
        measure(config, matcher, n_tokens, n_channels) for measure in (_image_bytes, _budget)
    )
    fitting = budget // (2 * image_bytes)
    if size > fitting:
        remedy = (
            "begin a run with smaller tiles" if size > 1 else "choose layers with fewer tokens or channels"
        )
        needed = -(-(int(config.matching.worker_memory) - budget + 2 * size * image_bytes) // 2**20)
        raise ConfigError(
            f"matching.worker_memory: {int(config.matching.worker_memory) // 2**20} MiB for a worker, but tiles of "
            f"{size} x {size} images of layer {layer!r} take up to {needed} MiB; nothing was computed: set it to at "
            f"least {needed}MiB, or {remedy}"
        )
    return fitting


def _budget(config: RunConfig, matcher: Matcher, n_tokens: int, n_channels: int) -> int:
    """Return the memory that one worker has for panels, in bytes."""
    workspace = matcher.workspace_bytes(n_tokens, n_channels)
    return int(config.matching.worker_memory) - PROCESS_BYTES - workspace


def _image_bytes(config: RunConfig, matcher: Matcher, n_tokens: int, n_channels: int) -> int:
    """Return the memory of one image of a panel.

    Two panels are prepared and one is being loaded: that is counted as two of half as much again.
    """
    loading = _loading_bytes(n_tokens, n_channels, 1, storage_itemsize(config.features))
    return matcher.panel_bytes(1, n_tokens, n_channels) + loading // 2


def _loading_bytes(n_tokens: int, n_channels: int, n_images: int, itemsize: int) -> int:
    """Return the memory of a panel between the disk and its preparation: as stored, and one wider copy."""
    return n_images * n_tokens * n_channels * (itemsize + 8)

"""The memory of a worker of matching: what panels, results and workspace take, and how many images it has room for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from semrsm_dist.config.schema import RunConfig
from semrsm_dist.errors import ConfigError
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.matching.search.block import search_bytes
from semrsm_dist.plan.tiling import matrix_shape
from semrsm_dist.store.record import LayerRecord, LayerSizes, RunRecord, Side

PROCESS_BYTES = 8 * 1024**2
"""Memory of a worker in addition to panels and workspace, with results of tiles up to 256 x 256, in bytes."""

PAIR_BYTES = 96
"""Memory of a pair of a tile: three float64 as solved, as one array to write, as encoded, and of the next tile."""

GPU_MEMORY = 16 * 2**30
"""Most memory of a worker that matches on a GPU, where none is configured: a GPU matches faster than panels are
prepared, so workers keep them."""


def allowed_memory(config: RunConfig, matcher: Matcher, machine: Mapping[str, object]) -> int:
    """Return the memory that a worker of matching may take on an engine's machine, in bytes."""
    if config.matching.worker_memory is not None or not matcher.gpus:
        return config.matching.cpu_memory
    share = int(int(str(machine.get("memory_per_gpu", 0))) * matcher.gpus / 2)
    return min(max(share, config.matching.cpu_memory), GPU_MEMORY)


@dataclass(frozen=True)
class WorkerMemory:
    """The memory of a worker of matching, in bytes: `allowed` in all, in a run of this many images by side."""

    config: RunConfig
    matcher: Matcher
    counts: Mapping[Side, int]
    allowed: int

    def count_fitting(self, layer: str, sizes: LayerRecord) -> int:
        """Return the images of the largest panel of which two fit, here and in a worker on CPUs.

        Raises ConfigError if no pair fits.
        """
        image_bytes, budget = self._image_bytes(sizes), self._budget(sizes)
        fitting = budget // (2 * image_bytes)
        if fitting < 1:
            needed = -(-(self.allowed - budget + 2 * image_bytes) // 2**20)
            raise ConfigError(
                f"matching.worker_memory: {self.allowed // 2**20} MiB for a worker, but a pair of images of layer "
                f"{layer!r} and the results of a tile of {sizes.tile_size} x {sizes.tile_size} take up to {needed} "
                f"MiB; nothing was computed: set it to at least {needed}MiB, set a smaller matching.tile, or choose "
                "layers with fewer tokens or channels"
            )
        return min(fitting, max(1, self.config.matching.cpu_memory // (2 * image_bytes)))

    def panel_size(self, layer: LayerRecord) -> int:
        """Return the images of a panel: those along an edge of a tile, or a power of two of which two panels fit."""
        fitting = self._budget(layer) // (2 * self._image_bytes(layer))
        wanted = min(self.config.matching.tile or layer.tile_size, layer.tile_size)
        return wanted if wanted <= fitting else 1 << max(fitting.bit_length() - 1, 0)

    def panel_budget(self, record: RunRecord) -> int:
        """Return the memory for prepared panels in the largest requested layer.

        Reading a tile's images decodes whole feature chunks, for which memory is set aside.
        """
        layers = [record.layers[name] for name in record.requested]
        return min(
            self._budget(layer) - self._loading_bytes(layer, max(self.panel_size(layer), record.chunk_size))
            for layer in layers
        )

    def prepared_bytes(self, n_images: int, sizes: LayerSizes) -> int:
        """Return the memory of a panel that is prepared for matching or, for neighbours, for a search."""
        keeps_matrices = self.config.output.neighbours is None
        more = 0 if keeps_matrices else search_bytes(n_images, sizes.n_tokens, sizes.n_channels)
        return self.matcher.panel_bytes(n_images, sizes.n_tokens, sizes.n_channels) + more

    def largest(self, record: RunRecord) -> int:
        """Return the memory that a worker takes at most: it keeps as many panels as there is room for."""
        n_images = sum(self.counts.values())
        needed = (
            self._taken(layer) + self.prepared_bytes(n_images, layer) for layer in record.layers.values()
        )
        return min(self.allowed, max(needed))

    def _taken(self, layer: LayerRecord) -> int:
        """Return the memory of two panels of a layer, the workspace and the results."""
        panels = 2 * self.panel_size(layer) * self._image_bytes(layer)
        return self.allowed - self._budget(layer) + panels

    def _budget(self, layer: LayerRecord) -> int:
        """Return the memory for panels."""
        workspace = self.matcher.workspace_bytes(layer.n_tokens, layer.n_channels)
        pairs = math.prod(min(layer.tile_size, length) for length in matrix_shape(self.counts))
        return self.allowed - PROCESS_BYTES - workspace - max(0, pairs - 256**2) * PAIR_BYTES

    def _image_bytes(self, sizes: LayerSizes) -> int:
        """Return the memory of one image of a panel.

        Two panels are prepared and one is being loaded: that is counted as two of half as much again.
        """
        return self.prepared_bytes(1, sizes) + self._loading_bytes(sizes, 1) // 2

    def _loading_bytes(self, sizes: LayerSizes, n_images: int) -> int:
        """Return the memory of a panel between the disk and its preparation: as stored, and one wider copy."""
        return n_images * sizes.n_tokens * sizes.n_channels * (self.config.features.itemsize + 8)

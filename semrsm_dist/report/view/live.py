"""A run of which the page is shown part by part, as it is asked for: nothing is read that nobody looks at."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.errors import ConfigError, require_known
from semrsm_dist.plot.orders import Indices
from semrsm_dist.progress import Reporter, SilentReporter
from semrsm_dist.report.bundle import colour_scale
from semrsm_dist.report.gathering import (
    LARGE,
    Gathered,
    choose_first,
    find_finished,
    is_certified,
    list_labels,
    number_labels,
)
from semrsm_dist.report.maps import (
    Orders,
    cluster_images,
    find_matrix,
    kernels_of,
    order_images,
    read_pairs,
)
from semrsm_dist.report.matches import match_pairs
from semrsm_dist.report.page import render
from semrsm_dist.report.page_data import Data, Images, Layer, Order, PairFacts, Tiles
from semrsm_dist.report.pictures import SIZES, read_picture
from semrsm_dist.report.retrieval import RetrievalSet, find_queries
from semrsm_dist.report.view.cache import Cache
from semrsm_dist.report.view.filling import Filler, Source
from semrsm_dist.report.view.pyramid import Tile
from semrsm_dist.report.view.tiles import VERSION, CachedTiles, MapTiles, describe_tiles
from semrsm_dist.results.images import NO_HASH, ImageReader
from semrsm_dist.results.neighbours import Similarities
from semrsm_dist.results.run import Run
from semrsm_dist.store.inventory import read_generation

LOOK_SECONDS = 1.0
"""Between two looks at whether a session, such as a repair, has changed the run."""

Answer = tuple[bytes | None, float]
"""What was asked for, None while it is not there, and the share of the work that is done."""


class LiveRun:
    """A run as a server answers from it, in any number of threads.

    Tiles and orders are kept in a cache, by default in the folder `view` of the run directory, or in memory where that
    cannot be written to.
    """

    def __init__(self, run: Run, cache: Cache | None = None) -> None:
        self.run = run
        self.generation, self._checked = read_generation(run.directory), time.monotonic()
        self.finished, self._notes = find_finished(run)
        folder = run.directory.view
        self.cache = cache or Cache(folder if isinstance(folder, Path) else None)
        self._manifests = {side: run.manifest(side) for side in run.record.sides}
        self._labels = {side: manifest.labels() for side, manifest in self._manifests.items()}
        self._readers = {side: ImageReader(run, side, manifest) for side, manifest in self._manifests.items()}
        self._filler, self._later = Filler(), _Later()
        self._lock = threading.Lock()
        self._sources: dict[tuple[str, str], Source] = {}
        self._maps: dict[tuple[str, str, Order], CachedTiles] = {}

    def close(self) -> None:
        """Stop what is at work."""
        self._filler.close()

    def current(self) -> LiveRun:
        """Return this object or, where a session has written chunks since, another one for the run as it is now."""
        if time.monotonic() - self._checked < LOOK_SECONDS:
            return self
        self._checked = time.monotonic()
        if read_generation(self.run.directory) == self.generation:
            return self
        renewed = LiveRun(Run(self.run.directory.path), self.cache)
        self.close()
        return renewed

    def page(self) -> str:
        """Return the page."""
        notes = [*self._notes]
        for side, reader in self._readers.items():
            if reader.problem:
                notes.append(reader.problem)
            elif reader.n_unknown:
                notes.append(f"{reader.n_unknown:,} of {self.run.record.counts[side]:,} {side}: {NO_HASH}.")
        if self.cache.folder is None:
            notes.append(
                "What is made for this page is kept in memory: no folder of the run can be written to."
            )
        data = self.describe()
        return render(self.run, Gathered(data, {}, notes), shown=data)

    def describe(self) -> Data:
        """Return what the page knows before it asks."""
        labels = list_labels(self._manifests.values())
        images = {
            side: Images(
                count=len(manifest),
                rows=None,
                ids=manifest.image_ids(),
                labels=number_labels(self._labels[side], labels),
                pictured=None,
                problems={},
                thumbnails=None,
                served=not self._readers[side].problem,
            )
            for side, manifest in self._manifests.items()
        }
        return Data(
            symmetric=self.run.is_symmetric,
            certified=is_certified(self.run),
            labels=labels,
            images=images,
            seen={},
            layers=[
                Layer(name=layer, maps=None, tiles=self._tiles_of(layer), queries=None, matches=None)
                for layer in self.finished
            ],
            first=choose_first(self.run, self.finished),
            colours=colour_scale(),
            served=True,
        )

    def _tiles_of(self, layer: str) -> Tiles | None:
        if self.run.record.neighbours is not None:
            return None
        has_labels = any(map(any, self._labels.values()))
        return describe_tiles(
            self.run, layer, ["given", "label", "cluster"] if has_labels else ["given", "cluster"]
        )

    def tile(self, layer: str, kernel: str, order: Order, tile: Tile) -> Answer:
        """Return a tile as `CachedTiles.read` does; nothing while the order is not known.

        Raises
        ------
        ConfigError
            If there are no such maps.
        IndexError, StorageError
            As `CachedTiles.read`.
        """
        places, share = self._find_order(layer, order)
        if places is None:
            return None, share
        return self._tiles(layer, kernel, order, places).read(tile)

    def _tiles(self, layer: str, kernel: str, order: Order, places: tuple[Indices, Indices]) -> CachedTiles:
        name = layer, kernel, order
        with self._lock:
            if name not in self._maps:
                if (layer, kernel) not in self._sources:
                    matrices = self.run.matrices(layer)
                    require_known("kernel", kernel, kernels_of(self.run, matrices)[0])
                    self._sources[layer, kernel] = Source(matrices, kernel)
                source = self._sources[layer, kernel]
                kinds = "semantic", "spatio-semantic"
                widths = [find_matrix(source.matrices, kernel, kind).sigma for kind in kinds]
                identity = f"{self.run.record.id_of(layer)} {self.generation} {layer} {kernel} {widths}"
                self._maps[name] = CachedTiles(
                    MapTiles(source, places), places, identity, self.cache, self._filler
                )
            return self._maps[name]

    def order(self, layer: str, order: Order) -> Answer:
        """Return the images of the rows in an order and, of a rectangular run, those of the columns, as uint32."""
        found, share = self._find_order(layer, order)
        if found is None:
            return None, share
        return as_bytes(found, symmetric=self.run.is_symmetric), 1.0

    def queries(self, layer: str) -> Answer:
        """Return the queries of a layer as JSON, see `semrsm_dist.report.page_data.Queries`."""
        self._require(layer)
        groups = [manifest.groups() for manifest in self._manifests.values()]
        settings = self.run.record.config["retrieval"]["k"], self._labels, groups
        name = self._name("queries", layer, repr(settings))
        return self._later.get(name, self.cache, lambda reporter: self._find_queries(layer, reporter))

    def pair(self, layer: str, row: int, column: int) -> PairFacts | None:
        """Return what the run has of a pair, matched again; None of a pair that it does not keep.

        In a symmetric run, the earlier image comes first. Raises IndexError if there is no such pair.
        """
        self._require(layer)
        counts = self.run.record.counts
        is_swapped = self.run.is_symmetric and row > column
        if is_swapped or row >= counts[self.run.record.row_side] or column >= counts["images"]:
            raise IndexError((row, column))
        known = self._similarities(layer, row, column)
        if known is None:
            return None
        matches, note = match_pairs(self.run, layer, {(row, column): known}, SilentReporter())
        return PairFacts(**known._asdict(), matches=matches, note=note)

    def picture(self, side: str, image: int, *, large: bool) -> tuple[bytes | None, str]:
        """Return the picture of an image as a JPEG file, large as the model sees it, and what is wrong with it.

        Raises ConfigError or IndexError if there is no such side or image.
        """
        require_known("side", side, self._readers)
        if image >= self.run.record.counts[side]:
            raise IndexError(image)
        return read_picture(self._readers[side], image, LARGE if large else SIZES[0], seen=large)

    def _require(self, layer: str) -> None:
        require_known("layer", layer, self.finished)

    @cached_property
    def _quick_orders(self) -> Orders:
        """The orders that need no similarities: the same in every layer."""
        layout = self.run.layout(self.finished[0])
        rows, columns = np.arange(layout.n_rows), np.arange(layout.n_columns)
        return order_images(self._labels, rows, columns, self.run.record.row_side)

    def _find_order(self, layer: str, order: Order) -> tuple[tuple[Indices, Indices] | None, float]:
        self._require(layer)
        if self.run.record.neighbours is not None:
            raise ConfigError("a run that keeps neighbours has no maps")
        if order in self._quick_orders:
            return self._quick_orders[order], 1.0
        if order != "cluster":
            raise ConfigError(f"the images have no labels to be sorted {order}")
        name = self._name("order", layer)
        content, share = self._later.get(name, self.cache, lambda reporter: self._cluster(layer, reporter))
        if content is None:
            return None, share
        both: NDArray[np.uint32] = np.frombuffer(content, "<u4")
        n_rows = self.run.layout(layer).n_rows
        return (both[:n_rows].astype(np.intp), both[n_rows:].astype(np.intp)), 1.0

    def _cluster(self, layer: str, reporter: Reporter) -> bytes:
        matrices, layout = self.run.matrices(layer), self.run.layout(layer)
        rows, columns = np.arange(layout.n_rows), np.arange(layout.n_columns)
        with reporter.stage("order", layout.n_rows, "images") as stage:
            return as_bytes(cluster_images(matrices, rows, columns, stage))

    def _find_queries(self, layer: str, reporter: Reporter) -> bytes:
        images = RetrievalSet(self.run, self._manifests)
        queries, _ = find_queries(self.run, layer, images, 1, reporter)
        return queries.model_dump_json().encode()

    def _similarities(self, layer: str, row: int, column: int) -> Similarities | None:
        if self.run.record.neighbours is None:
            values = read_pairs(self.run.matrices(layer), np.array([row]), np.array([column]))
            return Similarities(*(float(part[0]) for part in (values.semantic, values.spatial, values.gap)))
        kept = self.run.layer_neighbours(layer).find(row, column, symmetric=self.run.is_symmetric)
        return None if kept is None else kept[0]

    def _name(self, kind: str, layer: str, more: str = "") -> str:
        """Return the name in the cache of something that depends on a layer's numbers, and on more."""
        facts = f"{VERSION} {self.run.record.id_of(layer)} {self.generation} {layer} {more}"
        return f"{kind}-{hashlib.sha256(facts.encode()).hexdigest()[:24]}"


class _Later:
    """Makes what takes long, one after the other, in threads that end with the process."""

    def __init__(self) -> None:
        self._turn, self._lock = threading.Lock(), threading.Lock()
        self._futures: dict[str, tuple[Future[bytes], _Share]] = {}

    def get(self, name: str, cache: Cache, make: Callable[[Reporter], bytes]) -> Answer:
        """Return what was made or kept, or nothing and how much of it is done; raises what making it raised."""
        if (kept := cache.read(name)) is not None:
            return kept, 1.0
        with self._lock:
            if name not in self._futures:
                begun: tuple[Future[bytes], _Share] = Future(), _Share()
                threading.Thread(target=self._make, args=(*begun, make), daemon=True).start()
                self._futures[name] = begun
            future, share = self._futures[name]
            if not future.done():
                return None, share.value
            del self._futures[name]  # if it failed, it is tried again when it is asked for again
        content = future.result()
        cache.write(name, content)
        return content, 1.0

    def _make(self, future: Future[bytes], share: _Share, make: Callable[[Reporter], bytes]) -> None:
        with self._turn:
            try:
                future.set_result(make(share))
            except Exception as error:  # noqa: BLE001 - for the one who asks for it
                future.set_exception(error)


class _Share(SilentReporter):
    """Knows how much of the last stage is done, and is one itself."""

    def __init__(self) -> None:
        self.value, self._total = 0.0, 1

    @contextlib.contextmanager
    def stage(
        self, name: str, total: int, unit: str, done: int = 0, *, effort: float | None = None
    ) -> Iterator[_Share]:
        """Count a stage from its beginning."""
        self.value, self._total = 0.0, max(total, 1)
        yield self

    def advance(self, amount: int, effort: float | None = None) -> None:
        """Count what is done; never quite all, before the result is there."""
        self.value = min(self.value + amount / self._total, 0.99)

    def tick(self) -> None:
        """Do nothing."""


def as_bytes(order: tuple[Indices, Indices], *, symmetric: bool = False) -> bytes:
    """Return the images of rows and, unless they are the same, of columns as uint32."""
    return np.concatenate(order[:1] if symmetric else order).astype("<u4").tobytes()


ORDERS: tuple[Order, ...] = get_args(Order)

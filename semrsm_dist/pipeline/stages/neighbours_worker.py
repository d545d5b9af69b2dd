"""The workers of a search for neighbours: one searches tiles for candidates, the other chooses the best of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from semrsm_dist.engine.protocol import Receipt
from semrsm_dist.matching.kernels import cosine_of_pairs
from semrsm_dist.matching.matchers.auction import Auction
from semrsm_dist.matching.panel import PackedPanel
from semrsm_dist.matching.search.block import SearchPanel
from semrsm_dist.matching.search.device_bounds import divide_work
from semrsm_dist.matching.search.pruning_bounds import principal_directions
from semrsm_dist.matching.search.tile import Criterion, Pairs, Searched, TileSearch, rank_pairs
from semrsm_dist.pipeline.faults import attempt_each
from semrsm_dist.pipeline.stages.matching_worker import Key, MatchingWorker, Part, write_timed
from semrsm_dist.plan.tiling import Layout, Tile
from semrsm_dist.results.coordinates import Groups
from semrsm_dist.store.candidates import CandidateStore
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.neighbours import NOBODY, NeighbourStore
from semrsm_dist.store.paths import RunPath
from semrsm_dist.store.tiles import encode

SAMPLED = 16
"""Images from all over a layer whose tokens choose the channels of sketches."""

DECISIONS = ("by_bounds", "by_sketches", "by_products", "solved")
"""The counts of a receipt that say how the pairs of a tile were decided."""


@dataclass(frozen=True)
class SearchWorker(MatchingWorker):
    """Searches tiles: loads missing panels, decides all pairs, writes the candidates, and yields a receipt.

    With a matcher on GPUs, these bound all pairs, and the CPU decides what that leaves open.
    """

    wanted: Mapping[str, Criterion]
    """For each layer, what decides whether a pair is kept."""
    groups: Groups | None
    """The groups of the images; None if there are none."""

    @override
    def compile(self) -> None:
        matcher, _ = divide_work(cast(Auction, self.matcher))
        TileSearch(matcher, Criterion(1, -np.inf, single=True), both=True).compile()

    @override
    def _solve(self, tiles: Sequence[Tile]) -> Callable[[], Receipt]:
        """Search the first of the remaining tiles; return what writes its candidates.

        The floors that it raises are written at once, for the next tile. They hold even if the candidates get lost.
        """
        tile, layout = tiles[0], self.layouts[tiles[0].layer]
        started = time.perf_counter()
        matcher, on_device = divide_work(cast(Auction, self.matcher))
        search = TileSearch(matcher, self.wanted[tile.layer], layout.symmetric, on_device)
        store = self._held.candidates(
            RunDirectory(self.run).candidates, tile.layer, self.wanted[tile.layer].k
        )
        known = {panel: store.read_known(panel) for panel in self._ranked(tile)}
        floors = self._floors(known, tile)
        found, decided, loading, searching, bounding = [], np.zeros(4, np.int64), 0.0, 0.0, 0.0
        for number, part in enumerate(self._parts(tile)):
            before = time.perf_counter()
            panels = self._load(part, tiles, number)
            loaded = time.perf_counter()
            searched = self._search(search, tile, part, panels, floors)
            found.append(searched.pairs)
            decided += searched.counts
            loading += loaded - before
            searching += time.perf_counter() - loaded
            bounding += searched.bound_seconds
        kept = search.select(Pairs.join(found), floors)
        solved = time.perf_counter()
        for panel, best in self._rank(known, tile, kept).items():
            # What others have written meanwhile is lost, and found again.
            if not np.array_equal(best, known[panel]):
                store.write_known(panel, best)
        numbers = encode(kept.matched, kept.identity, kept.upper_bound, store.dtype)
        candidates = np.stack([kept.rows, kept.columns, *numbers])
        counts = {
            "pairs": layout.n_pairs(tile.row, tile.column),
            "tiles": 1,
            "load_seconds": loading,
            "product_seconds": bounding,
            "match_seconds": searching - bounding,
            "solve_seconds": solved - started - loading - searching,
            "write_seconds": time.perf_counter() - solved,
            **dict(zip(DECISIONS, decided.tolist(), strict=True)),
        }
        return partial(write_timed, tile, partial(store.write, (tile.row, tile.column), candidates), counts)

    def _ranked(self, tile: Tile) -> set[int]:
        """Return the panels whose images a tile has neighbours for: of its rows and, if symmetric, of its columns."""
        return {tile.row, tile.column} if self.layouts[tile.layer].symmetric else {tile.row}

    def _floors(
        self, known: Mapping[int, NDArray[np.float64]], tile: Tile
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what the k-th best similarity of each row and column of a tile is known to reach."""
        layout = self.layouts[tile.layer]
        columns = layout.columns(tile.column)
        return known[tile.row][0, :, -1], (
            known[tile.column][0, :, -1]
            if layout.symmetric
            else np.full(columns.stop - columns.start, np.inf)
        )

    def _search(
        self,
        search: TileSearch,
        tile: Tile,
        part: Part,
        panels: Sequence[SearchPanel],
        floors: tuple[NDArray[np.float64], NDArray[np.float64]],
    ) -> Searched:
        """Search a part of a tile; the pairs are returned with their indices in the tile."""
        layout = self.layouts[tile.layer]
        origin = layout.rows(tile.row).start, layout.columns(tile.column).start
        spans = [slice(key.start, key.stop) for key in part]
        local = [
            slice(span.start - start, span.stop - start) for span, start in zip(spans, origin, strict=True)
        ]
        groups = [
            np.full(span.stop - span.start, -1) if self.groups is None else self.groups[side][span]
            for side, span in enumerate(spans)
        ]
        found = search.search(
            panels[0],
            panels[1],
            (floors[0][local[0]], floors[1][local[1]]),
            (groups[0], groups[1]),
            triangular=part.rows == part.columns,
        )
        rows, columns = found.pairs.rows + local[0].start, found.pairs.columns + local[1].start
        return found._replace(pairs=found.pairs._replace(rows=rows, columns=columns))

    def _rank(
        self, known: Mapping[int, NDArray[np.float64]], tile: Tile, kept: Pairs
    ) -> dict[int, NDArray[np.float64]]:
        """Return the best similarities of the images of a tile with what it has found, as they are stored."""
        layout = self.layouts[tile.layer]
        rows = kept.rows + layout.rows(tile.row).start
        columns = kept.columns + layout.columns(tile.column).start
        ends: dict[int, list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = {panel: [] for panel in known}
        ends[tile.row].append((kept.rows, columns))
        if layout.symmetric:
            ends[tile.column].append((kept.columns, rows))
        ranked = {}
        for panel, sides in ends.items():
            image, rank = np.nonzero(known[panel][1] >= 0)
            similarity, index = known[panel][:, image, rank]
            owners = np.concatenate([image, *(owner for owner, _ in sides)])
            others = np.concatenate([index.astype(np.int64), *(other for _, other in sides)])
            similarity = np.concatenate([similarity, *(kept.similarity for _ in sides)])
            best = rank_pairs(owners, others, similarity, known[panel].shape[1:])
            there = best >= 0
            ranked[panel] = np.stack([np.full(best.shape, -np.inf), np.full(best.shape, -1.0)])
            ranked[panel][:, there] = similarity[best[there]], others[best[there]]
        return ranked

    @override
    def _read(self, key: Key) -> SearchPanel:
        panel = cast(PackedPanel, super()._read(key))
        if key.layer not in self._held.directions:
            self._held.directions[key.layer] = self._choose_directions(key)
        return SearchPanel.of(
            panel,
            self._held.directions[key.layer],
            double=panel.raw.dtype == np.float64,
            on_device=self.matcher.gpus > 0,
        )

    def _choose_directions(self, key: Key) -> NDArray[np.float64]:
        """Return the directions of a layer's sketches, from a few images from all over it."""
        n_images = self.layouts[key.layer].n_columns
        count = min(SAMPLED, n_images, self.panel_limits[key.layer].n_images)
        store = self._held.features(RunDirectory(self.run).features, "images", key.layer)
        spans = [slice(n, n + 1) for n in np.linspace(0, n_images - 1, count).astype(int).tolist()]
        z, counts = (
            np.concatenate([read(span) for span in spans]) for read in (store.read, store.read_token_counts)
        )
        return principal_directions(cast(PackedPanel, self.matcher.prepare(z, counts)))


class RowPanel(NamedTuple):
    """The rows of a panel of one layer."""

    layer: str
    panel: int

    def __str__(self) -> str:
        return f"{self.layer}/{self.panel}"


class Candidates(NamedTuple):
    """Candidates of the rows of a panel: `owners` in it and the `others` of all images, (n,), and `numbers` (3, n)."""

    owners: NDArray[np.int64]
    others: NDArray[np.int64]
    numbers: NDArray[np.float64]

    def joined(self, more: Candidates) -> Candidates:
        """Return these and more."""
        return Candidates(
            np.concatenate([self.owners, more.owners]),
            np.concatenate([self.others, more.others]),
            np.concatenate([self.numbers, more.numbers], axis=1),
        )

    def some(self, places: NDArray[np.int64]) -> Candidates:
        """Return those at some places."""
        return Candidates(self.owners[places], self.others[places], self.numbers[:, places])


@dataclass(frozen=True)
class ChoosingWorker:
    """Chooses the neighbours of the rows of panels from the candidates of their tiles."""

    run: RunPath
    row_side: str
    layouts: Mapping[str, Layout]
    """The layout of each layer."""
    k: int
    """Neighbours of an image."""

    def __call__(self, units: tuple[Hashable, ...]) -> Iterator[Receipt]:
        """Choose the neighbours of panels; yield a receipt for each."""
        norms = cache(self._norms)
        return attempt_each(
            cast("tuple[RowPanel, ...]", units), lambda unit: self._choose(unit, *norms(unit.layer)), self.run
        )

    def _norms(self, layer: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        features = RunDirectory(self.run).features
        rows, columns = (
            FeatureStore(features, side, layer).read_squared_norms() for side in (self.row_side, "images")
        )
        return rows, columns

    def _choose(self, unit: RowPanel, norms_i: NDArray[np.float64], norms_j: NDArray[np.float64]) -> Receipt:
        layout = self.layouts[unit.layer]
        rows = layout.rows(unit.panel)
        shape = (rows.stop - rows.start, self.k)
        store = CandidateStore(RunDirectory(self.run).candidates, unit.layer, self.k)
        best = Candidates(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((3, 0)))
        similarity, places = np.empty(0), np.full(shape, -1)
        for more in self._candidates(store, layout, unit.panel):
            best = best.joined(more)
            norms = norms_i[rows][more.owners], norms_j[more.others]
            similarity = np.concatenate([similarity, cosine_of_pairs(more.numbers[0], *norms)])
            places = rank_pairs(best.owners, best.others, similarity, shape)
            chosen = places >= 0
            best, similarity = best.some(places[chosen]), similarity[places[chosen]]
            places[chosen] = np.arange(similarity.size)
        there = places >= 0
        indices = np.full(shape, NOBODY)
        indices[there] = best.others[places[there]]
        chosen_numbers = np.full((3, *shape), np.nan)
        chosen_numbers[:, there] = best.numbers[:, places[there]]
        neighbours = NeighbourStore(RunDirectory(self.run).neighbours, unit.layer)
        neighbours.write(unit.panel, indices, chosen_numbers)
        return Receipt(unit, counts={"panels": 1})

    def _candidates(self, store: CandidateStore, layout: Layout, panel: int) -> Iterator[Candidates]:
        """Yield the candidates of a panel's rows, tile by tile."""
        for column in range(layout.column_panels):
            if not layout.symmetric or column >= panel:
                owners, others, *numbers = store.read((panel, column))
                start = layout.columns(column).start
                yield Candidates(owners.astype(np.int64), others.astype(np.int64) + start, np.stack(numbers))
            if layout.symmetric and column <= panel:
                others, owners, *numbers = store.read((column, panel))
                start = layout.rows(column).start
                yield Candidates(owners.astype(np.int64), others.astype(np.int64) + start, np.stack(numbers))

"""Verification of a run that keeps neighbours: candidates, floors, neighbours, and a search by brute force."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.kernels import cosine_of_pairs
from semrsm_dist.results.verification.inspection import ArrayChunks
from semrsm_dist.results.verification.numbers import (
    ROUNDING,
    Numbers,
    Problem,
    best_inner_product,
    check_match,
)
from semrsm_dist.results.verification.report import Kind
from semrsm_dist.results.verification.tiles import UNSOUND, LayerInspection
from semrsm_dist.store.candidates import CANDIDATES, FIELDS, KNOWN, CandidateStore, most_candidates
from semrsm_dist.store.neighbours import DESCRIPTIONS, INDICES, NOBODY, NUMBERS, NeighbourStore
from semrsm_dist.store.record import NeighbourSettings

Groups = tuple[NDArray[np.int64], NDArray[np.int64]] | None


@dataclass
class NeighbourInspection(LayerInspection):
    """The verification of a layer's neighbours, and of the candidates that they were chosen from.

    Of a finished layer, all neighbours must be there; then candidates need not be.
    """

    groups: Groups
    """Of the images of rows and columns; None if there are none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        inspection, layer, layout, size = self.inspection, self.layer, self._layout, self._layout.tile_size
        self._k, self._threshold = inspection.record.neighbours or NeighbourSettings(0, None)
        k, n_rows, most = self._k, layout.n_rows, most_candidates(layout, self._k)
        self._store = NeighbourStore(inspection.directory.neighbours, layer)
        group = CandidateStore(inspection.directory.candidates, layer, k).group
        shape, sizes = (len(FIELDS), layout.row_panels, layout.column_panels * most), (len(FIELDS), 1, most)
        self._candidates = ArrayChunks(inspection, group, CANDIDATES, layer, shape, sizes, optional=True)
        self._known = ArrayChunks(
            inspection, group, KNOWN, layer, (2, n_rows, k), (2, size, k), optional=True
        )
        self._arrays = {
            name: ArrayChunks(
                inspection, self._store.group, name, layer, (n_rows, k), (size, k), optional=not self.finished
            )
            for name in DESCRIPTIONS
        }
        self._readers = tuple(side.reader() for side in self.features)
        self._sound = np.zeros(layout.row_panels, bool)
        self._worst = np.full(layout.n_rows, np.nan)  # the similarity of each image's k-th neighbour
        # Neighbours of each image that can be solved again.
        self._solvable = np.zeros(layout.n_rows, np.int64)

    def inspect(self) -> None:
        """Check everything that is there, a sample of neighbours, and a sample of images by brute force."""
        layout, layer = self._layout, self.layer
        panels = [(panel, 0) for panel in range(layout.row_panels)]
        there = [set(array.find(panels, needed=self.finished)) for array in self._arrays.values()]
        found = sorted(set.intersection(*there))
        self.inspection.each(f"neighbours of {layer}", "panels of neighbours", found, self._check_panel)
        tiles = self._candidates.find([(0, *tile) for tile in layout.tiles()], needed=False)
        self.inspection.each(f"candidates of {layer}", "tiles of candidates", tiles, self._check_candidates)
        floors = self._known.find([(0, *panel) for panel in panels], needed=False)
        self.inspection.each(f"floors of {layer}", "panels of floors", floors, self._check_floors)
        if not self.inspection.fast:
            self._solve_sample()
            self._search_sample()

    # --- neighbours ---------------------------------------------------------------------------------

    def _check_panel(self, index: tuple[int, ...]) -> None:
        parts = {name: array.read(index) for name, array in self._arrays.items()}
        if self.inspection.fast or any(part is None for part in parts.values()):
            return
        rows, indices = self._layout.rows(index[0]), np.asarray(parts[INDICES])
        numbers = Numbers(*(np.asarray(parts[name], np.float64) for name in NUMBERS))
        problems = list(self._find_problems(rows, indices, numbers))
        for name, problem in problems:
            self._arrays[name].add(index, problem)
        if not problems:
            self._sound[index[0]] = True
            self._solvable[rows] = self._is_solvable(rows, indices).sum(axis=1)

    def _is_solvable(self, rows: slice, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of the neighbours of some rows are there, with sound features of both images."""
        left, right = (features.known for features in self.features)
        solvable: NDArray[np.bool_] = left[rows, None] & (indices != NOBODY) & right[indices]
        return solvable

    def _find_problems(
        self, rows: slice, indices: NDArray[np.int64], numbers: Numbers
    ) -> Iterator[tuple[str, Problem]]:
        """Yield what is wrong with the neighbours of some rows, each with the name of its array."""
        there = indices != NOBODY
        if not ((indices >= NOBODY) & (indices < self._layout.n_columns)).all():
            text = f"an index that is not from {NOBODY} to {self._layout.n_columns - 1}"
            yield INDICES, Problem(Kind.NEIGHBOURS, text)
            return
        if not all((np.isnan(values) | there).all() for values in numbers):
            yield INDICES, Problem(Kind.NEIGHBOURS, "numbers where there is no neighbour")
        owners, others = np.nonzero(there)[0] + rows.start, indices[there]
        for problem in self._check_numbers(owners, others, Numbers(*(each[there] for each in numbers))):
            yield "matched", problem
        similarity = np.full(indices.shape, np.nan)
        similarity[there] = self._similarity(owners, others, numbers.matched[there])
        for text, wrong in (*self._impossible(rows, indices), *self._out_of_order(indices, similarity)):
            if wrong.any():
                row, rank = (int(place) for place in np.argwhere(wrong)[0])
                yield INDICES, Problem(Kind.NEIGHBOURS, f"{text}: image {rows.start + row}, rank {rank + 1}")
        self._worst[rows] = np.where(there[:, -1], similarity[:, -1], -np.inf)

    def _out_of_order(
        self, indices: NDArray[np.int64], similarity: NDArray[np.float64]
    ) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield what is wrong with the ranks of neighbours, and where."""
        there, before, after = indices != NOBODY, similarity[:, :-1], similarity[:, 1:]
        with np.errstate(invalid="ignore"):
            unordered = (before < after) | ((before == after) & (indices[:, :-1] > indices[:, 1:]))
            below = similarity < (-np.inf if self._threshold is None else self._threshold)
        yield "out of order", unordered | ~there[:, :-1] & there[:, 1:]
        yield "below the threshold", below

    def _impossible(self, rows: slice, indices: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield what no neighbour can be, and where it is one."""
        there, own = indices != NOBODY, np.arange(rows.start, rows.stop)[:, None]
        if self._layout.symmetric:
            yield "an image is its own neighbour", indices == own
        ordered = np.sort(np.where(there, indices, -1 - np.arange(indices.shape[1])), axis=1)
        again = np.zeros(indices.shape, bool)
        again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
        yield "a neighbour is there twice", again
        if self.groups is not None:
            left, right = self.groups[0][rows, None], self.groups[1][indices]
            yield "a neighbour of the same group", there & (left == right) & (left >= 0)

    def _similarity(
        self, rows: NDArray[np.int64], columns: NDArray[np.int64], matched: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        features_i, features_j = self.features
        return cosine_of_pairs(matched, features_i.squared_norms[rows], features_j.squared_norms[columns])

    # --- candidates and floors ------------------------------------------------------------------------

    def _check_candidates(self, index: tuple[int, ...]) -> None:
        chunk = self._candidates.read(index)
        if chunk is None or self.inspection.fast:
            return
        fields = chunk[:, 0, ~np.isnan(chunk[0, 0])].astype(np.float64)
        places, numbers = fields[:2], Numbers(*fields[2:])
        rows, columns = self._layout.rows(index[1]), self._layout.columns(index[2])
        limits = np.array([[rows.stop - rows.start], [columns.stop - columns.start]])
        if not ((places >= 0) & (places < limits) & (places == np.floor(places))).all():
            self._candidates.add(index, Problem(Kind.NEIGHBOURS, "a candidate lies outside of the tile"))
            return
        at = places.astype(np.int64)
        for problem in self._check_numbers(at[0] + rows.start, at[1] + columns.start, numbers):
            self._candidates.add(index, problem)

    def _check_floors(self, index: tuple[int, ...]) -> None:
        known = self._known.read(index)
        if known is None or self.inspection.fast:
            return
        rows = self._layout.rows(index[1])
        similarity, images = known
        with np.errstate(invalid="ignore"):
            too_high = similarity[:, -1] > self._worst[rows] + ROUNDING
        wrong = too_high | (np.isnan(similarity) | (images < NOBODY)).any(axis=1)
        if wrong.any():
            image = int(np.flatnonzero(wrong)[0])
            floor, reached = float(similarity[image, -1]), float(self._worst[rows][image])
            text = (
                f"the floor of image {rows.start + image} is {floor!r}, but its neighbours reach {reached!r}"
            )
            self._known.add(index, Problem(Kind.FLOORS, text))

    # --- samples ----------------------------------------------------------------------------------------

    def _sound_rows(self) -> NDArray[np.int64]:
        """Return the images whose neighbours and features are sound."""
        rows = np.flatnonzero(self.features[0].known)
        return rows[self._sound[rows // self._layout.tile_size]]

    def _solve_sample(self) -> None:
        """Solve a sample of all neighbours again, drawn uniformly; all if there are no more."""
        ends = np.cumsum(self._solvable)
        total = int(ends[-1])
        rng = self.inspection.rng(self.layer, "neighbours")
        drawn = np.sort(rng.choice(total, min(self.inspection.sample, total), replace=False))
        images = np.searchsorted(ends, drawn, side="right")
        places = drawn - (ends - self._solvable)[images]  # among those of the image that can be solved
        panels, solved = images // self._layout.tile_size, 0
        with self.inspection.reporter.stage(f"verify pairs of {self.layer}", drawn.size, "pairs") as shown:
            for panel in np.unique(panels).tolist():
                chosen = panels == panel
                with self.inspection.reading(self._store.group, self.layer, (panel, 0)):
                    self._solve_pairs(panel, images[chosen], places[chosen])
                    solved += int(chosen.sum())
                shown.advance(int(chosen.sum()))
        has_none = self._sound.all() and self.features[0].known.all()
        self._count_solved(solved, "no image has a neighbour" if has_none else UNSOUND)

    def _solve_pairs(self, panel: int, images: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """Solve pairs of a panel's images again, each given by its place among the image's solvable neighbours."""
        rows = self._layout.rows(panel)
        indices = self._store.read(INDICES, rows)
        stored = np.stack([self._store.read(name, rows) for name in NUMBERS], axis=-1)
        solvable = self._is_solvable(rows, indices)
        read_i, read_j = self._readers
        for i, place in zip(images.tolist(), places.tolist(), strict=True):
            row = i - rows.start
            rank = np.flatnonzero(solvable[row])[place]
            j = int(indices[row, rank])
            for problem in check_match(read_i(i), read_j(j), tuple(stored[row, rank].tolist())):
                text = f"pair {i}, {j}: {problem.message}"
                self._arrays["matched"].add((panel, 0), Problem(problem.kind, text))

    def _search_sample(self) -> None:
        """Look for better neighbours of a few random images among all others, with nothing left out but by a bound."""
        rows, rng = self._sound_rows(), self.inspection.rng(self.layer, "search")
        count = max(1, self.inspection.sample // self._layout.n_columns)
        chosen = np.sort(rng.choice(rows, min(count, rows.size), replace=False))
        read_i = self.features[0].reader()
        with self.inspection.reporter.stage(f"verify search of {self.layer}", chosen.size, "images") as shown:
            for i in chosen.tolist():
                index = (i // self._layout.tile_size, 0)
                with self.inspection.reading(self._store.group, self.layer, index):
                    missed = self._find_missed(i, read_i(i), self._store.read(INDICES, slice(i, i + 1))[0])
                    if missed is not None:
                        text = f"image {i} has a better neighbour: {missed}"
                        self._arrays[INDICES].add(index, Problem(Kind.NEIGHBOURS, text))
                shown.advance(1)
        self.inspection.count("images searched by brute force", chosen.size)

    def _find_missed(self, i: int, z: NDArray[Any], neighbours: NDArray[np.int64]) -> str | None:
        """Return an image that is clearly more similar to image i than its last neighbour, but is no neighbour."""
        features = self.features[1]
        tolerance = self._certificate.tolerance or 0.0
        least = max(float(self._worst[i]), -np.inf if self._threshold is None else self._threshold)
        least += tolerance + ROUNDING
        others = np.flatnonzero(features.known & (features.squared_norms > 0))
        others = others[~np.isin(others, [*neighbours, *([i] if self._layout.symmetric else [])])]
        if self.groups is not None and self.groups[0][i] >= 0:
            others = others[self.groups[1][others] != self.groups[0][i]]
        left, norm = z.astype(np.float64), float(np.linalg.norm(z.astype(np.float64)))
        if not norm:
            return None
        read = features.reader()
        for j in others.tolist():
            affinity = left @ read(j).astype(np.float64).T
            scale = norm * float(np.sqrt(features.squared_norms[j]))
            narrow = affinity if affinity.shape[0] <= affinity.shape[1] else affinity.T
            if narrow.max(axis=1).sum() > least * scale and best_inner_product(affinity) > least * scale:
                return f"{j}, whose best permutation has a similarity of {best_inner_product(affinity) / scale!r}"
        return None

"""Verification of tiles: their numbers, their coordinates, the kernels derived of them, and pairs solved again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.results.matrices import LayerMatrices
from semrsm_dist.results.rbf_width import median_width
from semrsm_dist.results.verification.features import SoundFeatures
from semrsm_dist.results.verification.inspection import ArrayChunks, Inspection
from semrsm_dist.results.verification.numbers import (
    ROUNDING,
    Certificate,
    Numbers,
    Problem,
    check_diagonal,
    check_match,
    check_pairs,
    draw_pairs,
)
from semrsm_dist.results.verification.report import DESCRIPTION, SOLVED, Kind
from semrsm_dist.store.tiles import ARRAY, KINDS, QUANTITIES, TileStore

TILES_HELD = 2
"""Tiles that are kept while pairs of them are solved."""

UNSOUND = "what is stored of them, or their features, is not there or at fault"
UNFINISHED = "none of those drawn lies in a tile that is finished and sound"
"""Why no pairs are solved again."""


def certificate_of(matcher: Matcher | None) -> Certificate:
    """Return what a matcher promises; of an unknown one, nothing."""
    certified = matcher is not None and matcher.certified
    return Certificate(getattr(matcher, "tolerance", 0.0) if certified else None, certified)


@dataclass
class LayerInspection:
    """What the verifications of a layer's tiles and of its neighbours share."""

    inspection: Inspection
    layer: str
    features: tuple[SoundFeatures, SoundFeatures]
    """Of rows and of columns."""
    matcher: Matcher | None
    """None if it is not installed here."""
    finished: bool
    """Whether all results must be there."""

    def __post_init__(self) -> None:
        self._certificate, self._layout = (
            certificate_of(self.matcher),
            self.inspection.record.layout(self.layer),
        )

    def _check_numbers(
        self, rows: NDArray[np.int64], columns: NDArray[np.int64], numbers: Numbers
    ) -> Iterator[Problem]:
        """Yield what is wrong with the numbers of pairs of images, whose indices broadcast to their shape."""
        (norms_i, counts_i), (norms_j, counts_j) = (
            (features.squared_norms[images], features.token_counts[images])
            for features, images in zip(self.features, (rows, columns), strict=True)
        )
        norms = np.sqrt(norms_i) * np.sqrt(norms_j)
        known = ~np.isnan(norms)
        # Of images whose features are at fault, everything is possible.
        comparable = np.where(known, counts_i == counts_j, ~np.isnan(numbers.identity))
        pairs = np.broadcast_arrays(rows, columns)

        def name(*place: int) -> str:
            return ", ".join(str(images[place]) for images in pairs)

        return check_pairs(numbers, np.where(known, norms, np.inf), comparable, self._certificate, name)

    def _count_solved(self, solved: int, why_none: str) -> None:
        """Count the pairs that were solved again, and note the reason if there are none."""
        self.inspection.count(SOLVED, solved)
        if not solved:
            reason = why_none if self.inspection.sample else "the sample is 0"
            self.inspection.notes.append(f"layer {self.layer}: no pairs were solved again: {reason}")


@dataclass
class TileInspection(LayerInspection):
    """The verification of a layer's tiles."""

    def __post_init__(self) -> None:
        super().__post_init__()
        inspection, layer, layout = self.inspection, self.layer, self._layout
        self._store = TileStore(inspection.directory.tiles, layer)
        shape = (len(QUANTITIES), layout.n_rows, layout.n_columns)
        size = (len(QUANTITIES), layout.tile_size, layout.tile_size)
        self._array = ArrayChunks(
            inspection, self._store.group, ARRAY, layer, shape, size, optional=not self.finished
        )
        self._sound = np.zeros((layout.row_panels, layout.column_panels), np.bool_)

    @property
    def is_sound(self) -> bool:
        """Whether all tiles of the layer have been found sound."""
        return bool(self._sound[self._layout.wanted()].all())

    def inspect(self) -> None:
        """Check all tiles that are there, and pairs of a sample."""
        wanted = [(0, row, column) for row, column in self._layout.tiles()]
        there = self._array.find(wanted, needed=self.finished)
        self.inspection.each(f"tiles of {self.layer}", "tiles", there, self._check)
        if not self.inspection.fast:
            self._solve_sample()

    def _check(self, index: tuple[int, ...]) -> None:
        _, row, column = index
        tile = self._array.read(index)
        problems = [] if tile is None or self.inspection.fast else self._find_problems(row, column, tile)
        for problem in problems:
            self._array.add(index, problem)
        self._sound[row, column] = tile is not None and not problems

    def _find_problems(self, row: int, column: int, tile: NDArray[np.floating[Any]]) -> list[Problem]:
        rows, columns = self._layout.rows(row), self._layout.columns(column)
        numbers = Numbers(*tile.astype(np.float64))
        places = np.arange(rows.start, rows.stop)[:, None], np.arange(columns.start, columns.stop)
        problems = list(self._check_numbers(*places, numbers))
        if self._layout.symmetric and row == column and not problems:
            problems = list(check_diagonal(numbers, self.features[0].squared_norms[rows]))
        return problems

    def _solve_sample(self) -> None:
        """Solve random pairs again, those of sound tiles and features."""
        layout, (features_i, features_j) = self._layout, self.features
        rng = self.inspection.rng(self.layer, "pairs")
        drawn = draw_pairs(
            layout.n_rows, layout.n_columns, self.inspection.sample, rng, symmetric=layout.symmetric
        )
        tiles = drawn // layout.tile_size
        usable = features_i.known[drawn[:, 0]] & features_j.known[drawn[:, 1]] & self._sound[tuple(tiles.T)]
        drawn, tiles = drawn[usable], tiles[usable]
        order = np.lexsort((drawn[:, 1], drawn[:, 0], tiles[:, 1], tiles[:, 0]))
        read_i, read_j = features_i.reader(), features_j.reader()
        read_tile = lru_cache(TILES_HELD)(self._store.read)
        with self.inspection.reporter.stage(f"verify pairs of {self.layer}", len(order), "pairs") as shown:
            for (i, j), (row, column) in zip(drawn[order].tolist(), tiles[order].tolist(), strict=True):
                at = i - layout.rows(row).start, j - layout.columns(column).start
                with self.inspection.reading(self._array.path, self.layer, (0, row, column)):
                    matched, identity, gap = (float(n) for n in read_tile((row, column))[:, at[0], at[1]])
                    for problem in check_match(read_i(i), read_j(j), (matched, identity, gap)):
                        text = f"pair {i}, {j}: {problem.message}"
                        self._array.add((0, row, column), Problem(problem.kind, text))
                shown.advance(1)
        self._count_solved(len(order), UNSOUND if self.finished else UNFINISHED)

    def inspect_kernels(self, attributes: Mapping[str, Any]) -> None:
        """Compare the kernels that the layer names, and their widths, with those that its tiles give."""
        norms = self.features[0].squared_norms, self.features[1].squared_norms
        matrices = LayerMatrices(self._store, self._layout, norms, {})
        for kernel in attributes["recipe"]["kernels"]:
            for kind in KINDS:
                name, sigma = f"{kind}_{kernel['name']}", kernel["sigma"]
                if kernel["name"] == "rbf" and sigma is None:
                    sigma, _ = median_width(matrices, kind, reporter=self.inspection.reporter)
                facts = attributes["kernels"].get(name, {})
                found = facts.get("sigma")
                same = found == sigma or (found and sigma and abs(found - sigma) <= ROUNDING * sigma)
                if (facts.get("kind"), facts.get("kernel")) != (kind, kernel["name"]) or not same:
                    text = f"{name} is {facts}, but the tiles give the width {sigma!r}"
                    self.inspection.add(
                        self._store.group, self.layer, DESCRIPTION, Problem(Kind.KERNEL, text)
                    )

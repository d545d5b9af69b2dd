"""What parts of a run cost in time and space, by the trials of its calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.pipeline.forecast.calibration import Calibration
from semrsm_dist.pipeline.forecast.trials import TileTime, Trial
from semrsm_dist.plan.cost import neighbour_bytes
from semrsm_dist.plan.estimate import Line, TileCost, fit_line, fit_parts, interval_factor
from semrsm_dist.plan.tiling import Layout, matrix_shape
from semrsm_dist.store.record import RunRecord

OUTSIDE = ("total", "load", "compile", "matching", "scan", "model", "extraction", "assembly", "evaluation")
"""Times that do not grow with the features; `total` contains all."""


@dataclass(frozen=True)
class Costs:
    """What parts of a run cost, by the trials of a calibration; `layouts` are those of the planned run's layers."""

    calibration: Calibration
    layouts: Mapping[str, Layout]

    @property
    def rounds(self) -> list[Sequence[Trial]]:
        """The trials of features that follow each other: of some images, and of twice as many."""
        trials = self.calibration.trials
        return [trials[first : first + 2] for first in range(0, len(trials), 2)]

    @cached_property
    def tiles(self) -> dict[str, TileCost]:
        """What tiles of each layer take a worker in the planned run."""
        return {layer: self._tile_cost(layer) for layer in self.layouts}

    def _tile_cost(self, layer: str) -> TileCost:
        trials, layout = self.calibration.trials, self.layouts[layer]
        loads = sum(tile.load_seconds for trial in trials for tile in trial.tiles if tile.layer == layer)
        loaded = sum(trial.workers * trial.n_images for trial in trials)
        fixed, *parts = self._parts[layer].tolist()
        load = loads / loaded * self.overlap
        if not self.keeps_neighbours:
            return TileCost(fixed * self.overlap, parts[0] * self.overlap, load)
        image, pair, multiplied, matched = parts
        counts = self._predict_counts(layer)
        pair += (multiplied * counts[0] + matched * counts[1]) / max(layout.total_pairs, 1)
        fixed += image * layout.total_images / layout.n_tiles
        return TileCost(fixed * self.overlap, pair * self.overlap, load)

    @cached_property
    def _parts(self) -> dict[str, NDArray[np.float64]]:
        """The seconds of one of each of the amounts of a tile (`_amounts`), by layer."""
        tiles = [tile for trial in self.calibration.trials for tile in trial.tiles]
        return {layer: _fit_tiles([tile for tile in tiles if tile.layer == layer]) for layer in self.layouts}

    def _predict_counts(self, layer: str) -> tuple[float, float]:
        """Return how many pairs of the planned run are multiplied and matched: those of trials, as a sample grows.

        Only of the larger trials: with few tiles, it is chance which of them two workers search at the same time.
        """
        found, expected = np.zeros(2), np.zeros(2)
        sample = self.calibration.samples[layer]
        for *_, trial in self.rounds:
            searches = [tile.search for tile in trial.tiles if tile.layer == layer and tile.search]
            found += np.sum([(search.multiplied, search.matched) for search in searches], axis=0)
            expected += sample.count(trial.layouts[layer])
        planned = np.array(sample.count(self.layouts[layer]))
        multiplied, matched = np.divide(found, expected, out=np.ones(2), where=expected > 0) * planned
        return float(multiplied), float(matched)

    @cached_property
    def storage(self) -> float:
        """Share of the workers' time on tiles in which they read features and write results."""
        tiles = [tile for trial in self.calibration.trials for tile in trial.tiles]
        inside = sum(tile.load_seconds + tile.write_seconds for tile in tiles)
        return inside / sum(tile.load_seconds + tile.seconds for tile in tiles)

    @cached_property
    def overlap(self) -> float:
        """The workers' time as a share of what their tiles took: a tile is written while the next one is matched.

        Of the larger trials, whose workers spend the least of the matching on starting and ending.
        """
        return min(1.0, median(trial.seconds["matching"] / self._busy(trial) for *_, trial in self.rounds))

    @cached_property
    def matching_start(self) -> float:
        """Seconds of the matching in which workers start and end."""
        trials = self.calibration.trials
        return max(
            0.0, median(trial.seconds["matching"] - self.overlap * self._busy(trial) for trial in trials)
        )

    def _busy(self, trial: Trial) -> float:
        return sum(tile.seconds + tile.load_seconds for tile in trial.tiles) / trial.workers

    @cached_property
    def features(self) -> Line:
        """Seconds by images to identify, copy and check features, and all else that is not a stage of its own."""
        trials = self.calibration.trials[1:] or self.calibration.trials
        return fit_line([trial.n_images for trial in trials], [_other(trial) for trial in trials])

    @cached_property
    def finishing(self) -> Line:
        """Seconds of assembly and evaluation by what `finished` counts."""
        trials = self.calibration.trials
        sizes = [self.finished(trial.layouts) for trial in trials]
        return fit_line(sizes, [_finishing(trial) for trial in trials])

    def finished(self, layouts: Mapping[str, Layout]) -> int:
        """Return the pairs of layers or, if the run keeps neighbours, the tiles, of which all candidates are read."""
        if self.keeps_neighbours:
            return sum(layout.n_tiles for layout in layouts.values())
        return sum(layout.total_pairs for layout in layouts.values())

    @property
    def keeps_neighbours(self) -> bool:
        """Whether the run keeps neighbours, and so its trials."""
        return bool(self.calibration.samples)

    @cached_property
    def start(self) -> float:
        """Seconds to load the model, and libraries beyond those that every run loads at first."""
        trials = [*self.calibration.through_model, *self.calibration.trials]
        first = trials[0]
        libraries = max(0.0, _other(first) - self.features(first.n_images))
        model = max((trial.seconds.get("model", 0.0) for trial in trials), default=0.0)
        return libraries + model + first.seconds["load"]

    @cached_property
    def image(self) -> float:
        """Worker-seconds to scan and extract an image."""
        if not self.calibration.through_model:
            return 0.0
        trial = self.calibration.through_model[-1]
        seconds = trial.seconds["scan"] + max(0.0, trial.seconds["extraction"] - trial.seconds["load"])
        return seconds * trial.workers / trial.n_images

    @cached_property
    def factor(self) -> float:
        """How many times as long as predicted a run may take, or as short."""
        measured = [
            sum(trial.seconds["matching"] + _finishing(trial) + _other(trial) for trial in two)
            for two in self.rounds
        ]
        predicted = [sum(map(self._predict, two)) for two in self.rounds]
        return interval_factor([one / other for one, other in zip(measured, predicted, strict=True)])

    def _predict(self, trial: Trial) -> float:
        """Return the predicted seconds of a trial, without what happens once in a process."""
        cost = sum(
            float(self._parts[tile.layer] @ _amounts(tile)) + tile.load_seconds for tile in trial.tiles
        )
        matching = self.overlap * cost / trial.workers + self.matching_start
        return matching + self.features(trial.n_images) + self.finishing(self.finished(trial.layouts))


def _amounts(tile: TileTime) -> tuple[int, ...]:
    """Return what the time of a tile is made of: a tile and its pairs; in a search, also images and kinds of pairs."""
    if tile.search is None:
        return 1, tile.pairs
    return 1, tile.images, tile.pairs, tile.search.multiplied, tile.search.matched


def _fit_tiles(tiles: Sequence[TileTime]) -> NDArray[np.float64]:
    """Return the seconds of one of each of the amounts of a layer's tiles."""
    searched = [(tile, tile.search) for tile in tiles if tile.search is not None]
    if not searched:
        return fit_parts([_amounts(tile) for tile in tiles], [tile.seconds for tile in tiles])
    beside = [tile.seconds - search.bound_seconds - search.decide_seconds for tile, search in searched]
    fixed, image = fit_parts([(1, tile.images) for tile in tiles], beside)
    bounds, pair = fit_parts(
        [(1, tile.pairs) for tile in tiles], [search.bound_seconds for _, search in searched]
    )
    undecided = [(search.multiplied, search.matched) for _, search in searched]
    decisions = fit_parts(undecided, [search.decide_seconds for _, search in searched])
    return np.array([fixed + bounds, image, pair, *decisions])


def _finishing(trial: Trial) -> float:
    return trial.seconds.get("assembly", 0.0) + trial.seconds.get("evaluation", 0.0)


def _other(trial: Trial) -> float:
    inside = sum(
        seconds
        for stage, seconds in trial.seconds.items()
        if stage in OUTSIDE and stage not in ("total", "load")
    )
    return max(0.0, trial.seconds["total"] - inside)


@dataclass(frozen=True)
class Space:
    """The files and bytes of a run, by those of the largest trial; `k` is how many neighbours it keeps, or 0."""

    calibration: Calibration
    record: RunRecord
    k: int

    def measure(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return files and bytes by kind."""
        trials, picture = self.calibration.trials, self.calibration.picture
        trial = max([*self.calibration.through_model, *trials], key=lambda each: each.n_images)
        counts = self.record.counts
        chunks = sum(-(-count // self.record.chunk_size) for count in counts.values())
        trial_chunks = sum(-(-count // trial.chunk_size) for count in trial.counts.values())
        n_images, entries = sum(counts.values()), math.prod(matrix_shape(counts))
        files, sizes = {"features": 0.0, "matrices": 0.0}, {"features": 0.0, "matrices": 0.0}
        if "features" in trial.written:
            files["features"] = trial.written["features"].files * chunks / trial_chunks
            sizes["features"] = trial.written["features"].n_bytes * n_images / trial.n_images
        if "matrices" in trial.written:
            share = entries / math.prod(matrix_shape(trial.counts))
            files["matrices"] = trial.written["matrices"].files * max(1.0, share)
            sizes["matrices"] = trial.written["matrices"].n_bytes * share
        if self.k:
            files["neighbours"], sizes["neighbours"] = self._measure_neighbours(trial)
        else:
            files["tiles"], sizes["tiles"] = self._measure_tiles(trial)
        images = [each.n_images for each in trials]
        files["other"] = fit_line(images, [each.written["other"].files for each in trials])(n_images)
        sizes["other"] = fit_line(images, [each.written["other"].n_bytes for each in trials])(n_images)
        if picture is not None:
            files["other"] += 1
            sizes["other"] += picture.n_bytes
        return files, sizes

    def _measure_tiles(self, trial: Trial) -> tuple[float, float]:
        """Return files and bytes of solved tiles."""
        files = n_bytes = 0.0
        for layer in self.record.requested:
            layout, small = self.record.layout(layer), trial.layouts[layer]
            files += layout.n_tiles
            n_bytes += trial.written[f"tiles/{layer}"].n_bytes * _entries(layout) / _entries(small)
        return files, n_bytes

    def _measure_neighbours(self, trial: Trial) -> tuple[float, float]:
        """Return files and bytes of neighbours and their candidates: a file a tile and some a panel."""
        found = trial.written["neighbours"]
        n_bytes, tiles, panels = self._count_neighbours(
            [self.record.layout(layer) for layer in self.record.requested]
        )
        bytes_tried, tiles_tried, panels_tried = self._count_neighbours(list(trial.layouts.values()))
        files = tiles + (found.files - tiles_tried) * panels / panels_tried
        return files, found.n_bytes * n_bytes / bytes_tried

    def _count_neighbours(self, layouts: Sequence[Layout]) -> tuple[int, int, int]:
        """Return the bytes of neighbours in layers of these layouts, the tiles, and the panels of rows."""
        return (
            sum(neighbour_bytes(layout.n_rows, layout.row_panels, self.k, 4) for layout in layouts),
            sum(layout.n_tiles for layout in layouts),
            sum(layout.row_panels for layout in layouts),
        )


def _entries(layout: Layout) -> int:
    """Return the entries of all tiles; those on the diagonal are written whole."""
    panels = map(layout.rows, range(layout.row_panels))
    heights = [int(panel.stop - panel.start) for panel in panels]
    if not layout.symmetric:
        return layout.n_rows * layout.n_columns
    return layout.total_pairs + sum(height * (height + 1) // 2 for height in heights)

"""From missing tiles to blocks: nothing lost, nothing twice, within memory and time, shorter at the end."""

import pickle
import tracemalloc
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.matching.matchers import make_matcher
from semrsm_dist.pipeline.stages.matching_worker import MatchingWorker, PanelLimits
from semrsm_dist.plan.blocks import BlockPlanner, LayerWork
from semrsm_dist.plan.tiling import Layout, Tile

PANEL = 100


def work_of(layer, layout, pair_seconds=1.0, missing=None):
    return LayerWork(layer, layout, layout.wanted() if missing is None else missing, pair_seconds, PANEL)


def planned(works, *, workers=1, task_seconds=15, budget=100 * PANEL):
    """Return all blocks, as lists of tiles, and their costs."""
    return list(BlockPlanner(works, workers=workers, task_seconds=task_seconds, budget=budget))


@st.composite
def layer_works(draw):
    works = []
    for layer in draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True)):
        symmetric = draw(st.booleans())
        n_rows, n_columns = draw(st.integers(1, 60)), draw(st.integers(1, 60))
        layout = Layout(n_rows, n_rows if symmetric else n_columns, draw(st.integers(1, 20)), symmetric)
        share = np.random.default_rng(draw(st.integers(0, 99))).random(
            (layout.row_panels, layout.column_panels)
        )
        missing = layout.wanted() & (share <= draw(st.sampled_from([0.0, 0.3, 1.0])))
        works.append(work_of(layer, layout, draw(st.sampled_from([1e-6, 1e-3, 1e-2, 1.0, 1e3])), missing))
    return works


class Loader(MatchingWorker):
    """A worker that notes which panels it reads and how many it holds, without what is in them."""

    def __init__(self, row_side, layouts, room, most=1000):
        sizes = {layer: min(most, layout.tile_size) for layer, layout in layouts.items()}
        super().__init__(
            "run",
            row_side,
            layouts,
            None,
            {layer: PanelLimits(size, PANEL) for layer, size in sizes.items()},
            room,
        )
        object.__setattr__(self, "loads", [])
        object.__setattr__(self, "most", 0)

    def _read(self, key):
        self.loads.append(key)
        object.__setattr__(self, "most", max(self.most, len(self._held.panels) + 1))
        return key

    def load_all(self, tiles):
        """Load what the tiles of a task need, one after the other; return how often each pair was loaded."""
        times = Counter()
        for index, tile in enumerate(tiles):
            layout = self.layouts[tile.layer]
            for number, part in enumerate(self._parts(tile)):
                rows, columns = self._load(part, tiles[index:], number)
                assert layout.rows(tile.row).start <= rows.start < rows.stop <= layout.rows(tile.row).stop
                times.update(
                    (row, column)
                    for row in range(rows.start, rows.stop)
                    for column in range(columns.start, columns.stop)
                )
        return times


@given(
    layer_works(),
    st.integers(1, 9),
    st.floats(0.1, 1e4),
    st.integers(0, 12).map(lambda panels: panels * PANEL),
)
def test_every_missing_tile_is_in_exactly_one_block(works, workers, task_seconds, budget):
    blocks = planned(works, workers=workers, task_seconds=task_seconds, budget=budget)
    by_layer = {work.layer: work for work in works}
    wanted = [Tile(work.layer, *tile) for work in works for tile in np.argwhere(work.missing)]
    assert sorted(tile for tiles, _ in blocks for tile in tiles) == sorted(wanted)
    assert sum(work.n_missing for work in works) == len(wanted)
    for tiles, cost in blocks:
        assert len({tile.layer for tile in tiles}) == 1
        assert cost == pytest.approx(sum(by_layer[tile.layer].seconds(tile) for tile in tiles))
        assert len(tiles) == 1 or cost <= task_seconds * (1 + 1e-9)
    assert sum(cost for _, cost in blocks) == pytest.approx(sum(work.missing_seconds for work in works))


@given(
    layer_works(),
    st.integers(1, 9),
    st.floats(0.1, 1e4),
    st.integers(2, 12).map(lambda panels: panels * PANEL),
    st.integers(1, 30),
)
def test_a_worker_never_holds_more_panels_than_the_memory(works, workers, task_seconds, budget, most):
    for row_side in ("images", "queries"):
        chosen = [work for work in works if work.layout.symmetric == (row_side == "images")]
        worker = Loader(row_side, {work.layer: work.layout for work in chosen}, budget, most)
        for tiles, _ in planned(chosen, workers=workers, task_seconds=task_seconds, budget=budget):
            worker.load_all(tiles)
        assert worker.most * PANEL <= budget


@given(st.integers(1, 24), st.integers(1, 12), st.integers(1, 12), st.booleans(), st.integers(0, 6))
def test_the_parts_of_a_tile_are_its_pairs(n_images, tile_size, most, symmetric, room):
    layout = Layout(n_images, n_images, tile_size, symmetric)
    worker = Loader("images" if symmetric else "queries", {"a": layout}, room * PANEL, most)
    times = worker.load_all([Tile("a", *tile) for tile in layout.tiles()])
    assert set(times.values()) == {1}
    needed = ((i, j) for i in range(n_images) for j in range(i if symmetric else 0, n_images))
    assert set(needed) <= times.keys()


def test_a_tile_larger_than_memory_loads_few_panels():
    worker = Loader("queries", {"a": Layout(64, 64, 64, symmetric=False)}, 5 * PANEL, most=4)
    worker.load_all([Tile("a", 0, 0)])
    assert worker.most == 5
    assert len(worker.loads) == 16 + 4 * 16  # each of the rows once, the columns once for each band of four


def test_panels_are_loaded_for_many_tiles():
    layout = Layout(64, 64, 4, symmetric=False)
    blocks = planned([work_of("a", layout)], task_seconds=256, budget=5 * PANEL)
    largest = max(blocks, key=lambda block: len(block[0]))[0]
    assert len(largest) == 16
    worker = Loader("queries", {"a": layout}, 5 * PANEL)
    worker.load_all(largest)
    assert len(worker.loads) == 8


def test_panels_that_fit_are_loaded_once_for_all_blocks():
    layout = Layout(40, 40, 5, symmetric=True)
    worker = Loader("images", {"a": layout}, 8 * PANEL)
    for tiles, _ in planned([work_of("a", layout)], task_seconds=100, budget=4 * PANEL):
        worker.load_all(tiles)
    assert sorted(worker.loads) == [("images", "a", start, start + 5) for start in range(0, 40, 5)]


def test_the_panel_that_is_wanted_last_makes_room():
    layout = Layout(4, 4, 1, symmetric=False)
    worker = Loader("queries", {"a": layout}, 3 * PANEL)
    worker.load_all([Tile("a", 0, 0), Tile("a", 1, 0), Tile("a", 0, 1), Tile("a", 1, 1)])
    assert [key[::2] for key in worker.loads] == [
        ("queries", 0),
        ("images", 0),
        ("queries", 1),
        ("images", 1),
    ]


def test_two_panels_are_held_whatever_the_memory():
    layout = Layout(4, 4, 1, symmetric=False)
    worker = Loader("queries", {"a": layout}, 0)
    worker.load_all([Tile("a", 0, 0), Tile("a", 1, 1)])
    assert worker.most == 2


def test_a_worker_travels_without_its_panels():
    layouts = {"a": Layout(4, 4, 1, symmetric=True)}
    worker = MatchingWorker("run", "images", layouts, make_matcher("auction"), {"a": PanelLimits(1, 1)}, 9)
    worker._held.panels["images", "a", 0, 1] = object()
    sent = pickle.loads(pickle.dumps(worker))
    assert sent == worker
    assert sent._held.panels == {}


def test_nothing_missing_makes_no_blocks():
    assert planned([]) == []
    assert planned([work_of("a", Layout(10, 10, 5, symmetric=True), missing=np.zeros((2, 2), bool))]) == []


@pytest.mark.parametrize("task_seconds", [2.0, 20.0, 60.0])
def test_blocks_last_as_long_as_is_wanted_and_become_shorter_at_the_end(task_seconds):
    layouts = {"small": Layout(900, 900, 30, symmetric=True), "large": Layout(800, 700, 20, symmetric=False)}
    works = [work_of(name, cut, 1e-3) for name, cut in layouts.items()]
    costs = [cost for _, cost in planned(works, task_seconds=task_seconds)]
    assert all(task_seconds / 3 < cost <= task_seconds for cost in costs[:5])
    assert costs[-1] <= 0.9  # one tile
    assert max(costs[-4:]) <= 4


def test_few_tiles_are_shared_by_all_workers():
    layout = Layout(8, 8, 4, symmetric=True)
    blocks = planned([work_of("a", layout, 0.1)], workers=64)
    assert [tiles for tiles, _ in blocks] == [[Tile("a", 0, 0)], [Tile("a", 0, 1)], [Tile("a", 1, 1)]]


def test_tasks_last_so_long_that_one_driver_feeds_all_workers():
    work = work_of("a", Layout(100_000, 100_000, 256, symmetric=True), 1e-4)
    planner = BlockPlanner([work], workers=10_000, task_seconds=15, budget=100 * PANEL)
    _, cost = planner.take_block()
    assert 40 < cost <= 50


def test_blocks_follow_what_earlier_ones_took():
    work = work_of("a", Layout(10_000, 10_000, 20, symmetric=True), 1e-3)
    planner = BlockPlanner([work], workers=1, task_seconds=15, budget=1000 * PANEL)
    before = len(planner.take_block()[0])
    planner.observe("a", 15_000, 150.0)  # ten times as long as estimated
    assert len(planner.take_block()[0]) == pytest.approx(before / 10, abs=1)


def test_consecutive_blocks_share_the_panels_of_a_band():
    work = work_of("a", Layout(2000, 2000, 20, symmetric=False), 1e-3)
    blocks = planned([work], task_seconds=10, budget=9 * PANEL)
    rows = [{tile.row for tile in tiles} for tiles, _ in blocks]
    bands = 20  # of five row panels: 25 tiles take ten seconds
    assert len(blocks) > 400
    assert sum(before != after for before, after in pairwise(rows)) < 3 * bands
    assert sum(len(held) > 5 for held in rows) < bands  # those that begin in one band and end in the next


def test_a_block_on_the_diagonal_loads_each_panel_once():
    layout = Layout(60, 60, 10, symmetric=True)
    worker = Loader("images", {"a": layout}, 100 * PANEL)
    for tiles, _ in planned([work_of("a", layout)], task_seconds=1e9):
        worker.load_all(tiles)
    assert len(worker.loads) == 6


def test_a_million_images_are_planned_at_once_and_in_little_memory():
    layout = Layout(10**6, 10**6, 1024, symmetric=True)
    tracemalloc.start()
    planner = BlockPlanner([work_of("a", layout, 2e-6)], workers=1000, task_seconds=15, budget=10**9)
    for _ in range(1000):
        planner.take_block()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20

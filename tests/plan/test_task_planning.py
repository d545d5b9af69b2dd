"""From missing tiles to tasks: nothing lost, nothing twice, within memory and time, largest first."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.matching.matchers import make_matcher
from semrsm_dist.pipeline.stages import matching
from semrsm_dist.pipeline.stages.matching import LayerWork, plan_tasks
from semrsm_dist.pipeline.stages.matching_worker import MatchingWorker
from semrsm_dist.plan.tiling import Layout, Tile, plan_blocks

PANEL = 100


@st.composite
def layer_works(draw):
    works = []
    for layer in draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True)):
        symmetric = draw(st.booleans())
        n_rows, n_columns = draw(st.integers(1, 60)), draw(st.integers(1, 60))
        layout = Layout(n_rows, n_rows if symmetric else n_columns, draw(st.integers(1, 20)), symmetric)
        wanted = draw(st.lists(st.sampled_from(list(layout.tiles())), unique=True))
        works.append(
            LayerWork(layer, layout, wanted, draw(st.sampled_from([1e-6, 1e-3, 1e-2, 1.0, 1e3])), PANEL)
        )
    return works


class Loader(MatchingWorker):
    """A worker that notes which panels it reads and how many it holds, without what is in them."""

    def __init__(self, row_side, layouts, room):
        super().__init__("run", row_side, layouts, None, dict.fromkeys(layouts, PANEL), room)
        object.__setattr__(self, "loads", [])
        object.__setattr__(self, "most", 0)

    def _read(self, *key):
        self.loads.append(key)
        object.__setattr__(self, "most", max(self.most, len(self._held.panels) + 1))
        return key

    def load_all(self, tiles):
        """Load what the tiles of a task need, one after the other."""
        for index, tile in enumerate(tiles):
            rows, columns = self._load(tiles[index:])
            assert rows == (self.row_side, tile.layer, tile.row)
            assert columns == ("images", tile.layer, tile.column)


@given(
    layer_works(),
    st.integers(1, 9),
    st.floats(0.1, 1e4),
    st.integers(0, 12).map(lambda panels: panels * PANEL),
)
def test_every_wanted_tile_is_in_exactly_one_task(works, workers, task_seconds, budget):
    tasks = plan_tasks(works, workers=workers, task_seconds=task_seconds, budget=budget)
    wanted = [Tile(work.layer, *tile) for work in works for tile in work.wanted]
    assert sorted(unit for task in tasks for unit in task.units) == sorted(wanted)
    seconds = {work.layer: work.pair_seconds for work in works}
    layouts = {work.layer: work.layout for work in works}
    for task in tasks:
        assert len({unit.layer for unit in task.units}) == 1
        expected = sum(seconds[u.layer] * layouts[u.layer].n_pairs(u.row, u.column) for u in task.units)
        assert task.cost == pytest.approx(expected)
        assert len(task.units) == 1 or task.cost <= task_seconds * (1 + 1e-9)
    whole = [task.cost for task in tasks if len(task.units) > 1]
    assert whole == sorted(whole, reverse=True)


@given(
    layer_works(),
    st.integers(1, 9),
    st.floats(0.1, 1e4),
    st.integers(2, 12).map(lambda panels: panels * PANEL),
)
def test_a_worker_never_holds_more_panels_than_the_memory(works, workers, task_seconds, budget):
    for row_side in ("images", "queries"):
        chosen = [work for work in works if work.layout.symmetric == (row_side == "images")]
        worker = Loader(row_side, {work.layer: work.layout for work in chosen}, budget)
        for task in plan_tasks(chosen, workers=workers, task_seconds=task_seconds, budget=budget):
            worker.load_all(task.units)
        assert worker.most * PANEL <= budget


def test_panels_are_loaded_for_many_tiles():
    layout = Layout(64, 64, 4, symmetric=False)
    work = LayerWork("a", layout, list(layout.tiles()), 1.0, PANEL)
    tasks = plan_tasks([work], workers=1, task_seconds=1e4, budget=5 * PANEL)
    largest = max(tasks, key=lambda task: len(task.units))
    assert len(largest.units) == 16
    worker = Loader("queries", {"a": layout}, 5 * PANEL)
    worker.load_all(largest.units)
    assert len(worker.loads) == 8


def test_panels_that_fit_are_loaded_once_for_all_tasks():
    layout = Layout(40, 40, 5, symmetric=True)
    work = LayerWork("a", layout, list(layout.tiles()), 1.0, PANEL)
    worker = Loader("images", {"a": layout}, 8 * PANEL)
    for task in plan_tasks([work], workers=1, task_seconds=100, budget=4 * PANEL):
        worker.load_all(task.units)
    assert sorted(worker.loads) == [("images", "a", panel) for panel in range(8)]


def test_the_panel_that_is_wanted_last_makes_room():
    layout = Layout(4, 4, 1, symmetric=False)
    worker = Loader("queries", {"a": layout}, 3 * PANEL)
    worker.load_all([Tile("a", 0, 0), Tile("a", 1, 0), Tile("a", 0, 1), Tile("a", 1, 1)])
    assert worker.loads == [("queries", "a", 0), ("images", "a", 0), ("queries", "a", 1), ("images", "a", 1)]


def test_two_panels_are_held_whatever_the_memory():
    layout = Layout(4, 4, 1, symmetric=False)
    worker = Loader("queries", {"a": layout}, 0)
    worker.load_all([Tile("a", 0, 0), Tile("a", 1, 1)])
    assert worker.most == 2


def test_a_worker_travels_without_its_panels():
    worker = MatchingWorker(
        "run", "images", {"a": Layout(4, 4, 1, symmetric=True)}, make_matcher("auction"), {"a": 1}, 9
    )
    worker._held.panels["images", "a", 0] = object()
    sent = pickle.loads(pickle.dumps(worker))
    assert sent == worker
    assert sent._held.panels == {}


def test_work_goes_round_and_ends_in_single_tiles():
    layout = Layout(2000, 2000, 32, symmetric=True)
    work = LayerWork("a", layout, list(layout.tiles()), 1e-3, PANEL)
    tasks = plan_tasks([work], workers=4, task_seconds=60, budget=100 * PANEL)
    assert len(tasks) >= matching.TASKS_PER_WORKER * 4
    assert len(tasks[0].units) > 1
    assert all(len(task.units) == 1 for task in tasks[-4:])


def test_nothing_wanted_makes_no_tasks():
    layout = Layout(10, 10, 5, symmetric=True)
    assert plan_tasks([], workers=3, task_seconds=1, budget=1) == []
    assert plan_tasks([LayerWork("a", layout, [], 1.0, PANEL)], workers=3, task_seconds=1, budget=1) == []


@pytest.mark.parametrize("task_seconds", [2.0, 20.0, 60.0])
def test_tasks_last_as_long_as_is_wanted_and_the_largest_come_first(task_seconds):
    layouts = {"small": Layout(900, 900, 30, symmetric=True), "large": Layout(800, 700, 20, symmetric=False)}
    works = [LayerWork(name, cut, list(cut.tiles()), 1e-3, PANEL) for name, cut in layouts.items()]
    tasks = plan_tasks(works, workers=1, task_seconds=task_seconds, budget=100 * PANEL)
    whole = [task.cost for task in tasks if len(task.units) > 1]
    assert len(whole) > 5
    assert whole == sorted(whole, reverse=True)
    assert task_seconds / 3 < max(whole) <= task_seconds
    assert {unit.layer for task in tasks for unit in task.units} == set(layouts)


def test_fewer_blocks_than_workers_become_single_tiles():
    layout = Layout(8, 8, 4, symmetric=True)
    work = LayerWork("a", layout, list(layout.tiles()), 1e-6, PANEL)
    tasks = plan_tasks([work], workers=64, task_seconds=15, budget=100 * PANEL)
    assert [task.units for task in tasks] == [
        (Tile("a", 0, 0),),
        (Tile("a", 0, 1),),
        (Tile("a", 1, 1),),
    ]


def test_a_block_on_the_diagonal_loads_each_panel_once():
    layout = Layout(60, 60, 10, symmetric=True)
    (block,) = plan_blocks(layout, list(layout.tiles()), block_size=6)
    worker = Loader("images", {"a": layout}, 100 * PANEL)
    worker.load_all([Tile("a", *tile) for tile in block])
    assert len(worker.loads) == 6

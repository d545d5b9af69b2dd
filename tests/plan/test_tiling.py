"""Panels, tiles and blocks: every pair once, every tile once, within memory and time."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.errors import ConfigError
from semrsm_dist.plan.tiling import (
    FEWEST_PANELS,
    LARGEST_TILE,
    SMALLEST_TILE,
    Layout,
    Tile,
    choose_tile_size,
    plan_blocks,
    split_tail,
)

counts = st.integers(1, 40)
sides = st.integers(1, 50)


@st.composite
def layouts(draw):
    symmetric = draw(st.booleans())
    n_rows = draw(counts)
    return Layout(n_rows, n_rows if symmetric else draw(counts), draw(sides), symmetric)


@st.composite
def partial_layouts(draw):
    layout = draw(layouts())
    tiles = list(layout.tiles())
    return layout, draw(st.lists(st.sampled_from(tiles), unique=True))


@given(layouts())
def test_tiles_cover_every_pair_exactly_once(layout):
    """Seen from the matrix: each entry once; of a symmetric one the upper triangle, by mirroring the whole."""
    times = np.zeros((layout.n_rows, layout.n_columns), dtype=int)
    for row, column in layout.tiles():
        times[layout.rows(row), layout.columns(column)] += 1
        if layout.symmetric and row != column:
            times[layout.columns(column), layout.rows(row)] += 1
    assert (times == 1).all()


@given(layouts())
def test_the_pairs_of_the_tiles_are_the_pairs_of_the_matrix(layout):
    pairs = [layout.n_pairs(*tile) for tile in layout.tiles()]
    expected = (
        len([(i, j) for i in range(layout.n_rows) for j in range(layout.n_columns) if i < j])
        if layout.symmetric
        else layout.n_rows * layout.n_columns
    )
    assert sum(pairs) == layout.total_pairs == expected
    assert min(pairs) >= 0


@given(layouts())
def test_panels_are_whole_but_for_the_last(layout):
    for panels, region, length in (
        (layout.row_panels, layout.rows, layout.n_rows),
        (layout.column_panels, layout.columns, layout.n_columns),
    ):
        widths = [region(panel).stop - region(panel).start for panel in range(panels)]
        assert widths[:-1] == [layout.tile_size] * (panels - 1)
        assert 1 <= widths[-1] <= layout.tile_size
        assert region(panels - 1).stop == length


def test_a_layout_smaller_than_its_side_is_one_tile():
    layout = Layout(3, 3, 256, symmetric=True)
    assert list(layout.tiles()) == [(0, 0)]
    assert (layout.rows(0), layout.n_pairs(0, 0)) == (slice(0, 3), 3)
    assert list(Layout(3, 700, 256, symmetric=False).tiles()) == [(0, 0), (0, 1), (0, 2)]
    assert Layout(1, 1, 16, symmetric=True).total_pairs == 0
    assert list(Layout(0, 0, 16, symmetric=True).tiles()) == []


@given(layouts(), st.integers(-2, 45), st.integers(-2, 45))
def test_a_layout_holds_its_tiles_and_no_others(layout, row, column):
    assert layout.holds(row, column) == ((row, column) in set(layout.tiles()))


@given(partial_layouts(), st.integers(1, 20))
def test_blocks_hold_every_wanted_tile_exactly_once(case, block_size):
    layout, wanted = case
    blocks = plan_blocks(layout, wanted, block_size)
    assert sorted(tile for block in blocks for tile in block) == sorted(wanted)
    for block in blocks:
        assert block
        assert block == sorted(block, key=lambda tile: (tile[1], tile[0]))  # each column panel is loaded once
        for panels in ({row for row, _ in block}, {column for _, column in block}):
            assert max(panels) - min(panels) < block_size
            assert len(panels) <= block_size


@given(layouts(), st.integers(1, 20))
def test_a_whole_matrix_makes_few_blocks(layout, block_size):
    blocks = plan_blocks(layout, list(layout.tiles()), block_size)
    rows, columns = -(-layout.row_panels // block_size), -(-layout.column_panels // block_size)
    assert len(blocks) == (rows * (rows + 1) // 2 if layout.symmetric else rows * columns)


@pytest.mark.parametrize("stranger", [(1, 0), (0, 4), (-1, 0), (4, 4)])
def test_strange_tiles_are_refused(stranger):
    with pytest.raises(ValueError, match=re.escape(f"tiles [{stranger}] are not part of the layout")):
        plan_blocks(Layout(100, 100, 25, symmetric=True), [(0, 0), stranger], 2)


def test_a_few_tiles_of_a_huge_matrix_are_planned_at_once():
    layout = Layout(10**8, 10**8, 16, symmetric=True)
    assert plan_blocks(layout, [(5, 10**6), (4, 7)], 4) == [[(4, 7)], [(5, 10**6)]]


@given(st.lists(st.lists(st.integers(), min_size=1), max_size=12), st.integers(0, 20))
def test_the_tail_is_split_and_nothing_lost(blocks, workers):
    split = split_tail(blocks, workers)
    assert [item for block in split for item in block] == [item for block in blocks for item in block]
    whole = max(0, len(blocks) - workers)
    assert split[:whole] == blocks[:whole]
    assert all(len(block) == 1 for block in split[whole:])


@given(
    n_images=st.integers(1, 10**7),
    image_bytes=st.integers(0, 2**30),
    budget=st.integers(0, 2**34),
    pair_seconds=st.floats(0, 1e4),
    task_seconds=st.floats(1e-3, 1e6),
)
def test_sides_fit_memory_and_time_and_leave_enough_tiles(
    n_images, image_bytes, budget, pair_seconds, task_seconds
):
    def choose():
        return choose_tile_size(
            n_images, image_bytes, budget, pair_seconds=pair_seconds, task_seconds=task_seconds
        )

    if 2 * image_bytes > budget:
        with pytest.raises(ConfigError):
            choose()
        return
    side = choose()
    limits = (
        lambda side: side <= LARGEST_TILE,
        lambda side: 2 * side * image_bytes <= budget,
        lambda side: side * side * pair_seconds <= task_seconds,
        lambda side: side <= SMALLEST_TILE or n_images // side >= FEWEST_PANELS,
    )
    assert side in {2**power for power in range(9)}
    assert side == 1 or all(limit(side) for limit in limits)
    assert not all(limit(2 * side) for limit in limits)


@given(st.integers(1, 2**36), st.integers(-(2**30), 2**36))
def test_the_memory_that_is_asked_for_is_enough_and_not_too_much(image_bytes, budget):
    def choose(budget):
        return choose_tile_size(100, image_bytes, budget, pair_seconds=1e-3, task_seconds=15)

    try:
        choose(budget)
    except ConfigError as error:
        more = int(re.search(r"raise matching.worker_memory by at least (\d+) MiB", str(error)).group(1))
        assert choose(budget + more * 2**20) >= 1
        with pytest.raises(ConfigError):
            choose(budget + (more - 1) * 2**20)


def test_too_little_memory_names_numbers_and_remedy():
    with pytest.raises(ConfigError) as caught:
        choose_tile_size(100, 3 * 2**20, -(2**20), pair_seconds=1e-3, task_seconds=15)
    assert str(caught.value) == (
        "matching.worker_memory leaves 0.0 MiB for features, but a pair of images takes 6.0 MiB; no pair can be "
        "matched: raise matching.worker_memory by at least 7 MiB, or choose a layer with fewer tokens or channels"
    )


def test_tiles_have_names_and_an_order():
    tiles = [Tile("b", 0, 0), Tile("a", 2, 3), Tile("a", 0, 10)]
    assert [str(tile) for tile in sorted(tiles)] == ["a/0.10", "a/2.3", "b/0.0"]

"""Panels and tiles: every pair once, in few files."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.plan.tiling import (
    FEWEST_PANELS,
    LARGEST_GPU_TILE,
    LARGEST_TILE,
    MOST_PANELS,
    MOST_TILES,
    SMALLEST_TILE,
    Layout,
    Tile,
    choose_tile_size,
    cut,
    smallest_tile,
)

counts = st.integers(1, 40)
sides = st.integers(1, 50)


@st.composite
def layouts(draw):
    symmetric = draw(st.booleans())
    n_rows = draw(counts)
    return Layout(n_rows, n_rows if symmetric else draw(counts), draw(sides), symmetric)


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


@given(layouts())
def test_maps_of_tiles_and_pairs_are_those_of_each_tile(layout):
    tiles = list(layout.tiles())
    assert [tuple(tile) for tile in np.argwhere(layout.wanted())] == tiles
    assert layout.n_tiles == len(tiles)
    expected = np.zeros((layout.row_panels, layout.column_panels), dtype=int)
    for tile in tiles:
        expected[tile] = layout.n_pairs(*tile)
    np.testing.assert_array_equal(layout.pairs(), expected)


@given(st.integers(0, 10**7), st.integers(1, 10**7), st.booleans())
def test_the_smallest_tile_keeps_files_and_directories_few_and_none_smaller_does(
    n_rows, n_columns, symmetric
):
    n_rows = n_columns if symmetric else n_rows

    def fits(size):
        layout = Layout(n_rows, n_columns, size, symmetric)
        return (
            layout.n_tiles <= max(MOST_TILES, n_rows, n_columns)
            and max(layout.row_panels, layout.column_panels) <= MOST_PANELS
        )

    size = smallest_tile(n_rows, n_columns, symmetric=symmetric)
    assert fits(size)
    assert size == 1 or not fits(size - 1)


def test_a_hundred_thousand_images_make_at_most_so_many_files():
    for requested in (1, 16, 100):
        size = requested * -(-smallest_tile(10**5, 10**5, symmetric=True) // requested)
        assert Layout(10**5, 10**5, size, symmetric=True).n_tiles <= 100_000
    assert Layout(10**6, 10**6, smallest_tile(10**6, 10**6, symmetric=True), symmetric=True).n_tiles <= 10**6


@given(
    n_images=st.integers(1, 10**7),
    smallest=st.integers(1, 1000),
    largest=st.integers(1, 1000),
    pair_seconds=st.floats(0, 1e4),
    tile_seconds=st.floats(1e-3, 1e6),
    limit=st.sampled_from([LARGEST_TILE, LARGEST_GPU_TILE]),
)
def test_tiles_fit_time_and_are_enough_to_share(
    n_images, smallest, largest, pair_seconds, tile_seconds, limit
):
    size = choose_tile_size(
        n_images, smallest, largest, pair_seconds=pair_seconds, tile_seconds=tile_seconds, limit=limit
    )
    limits = (
        lambda size: size <= min(largest, limit),
        lambda size: size * size * pair_seconds <= tile_seconds,
        lambda size: size <= SMALLEST_TILE or n_images // size >= FEWEST_PANELS,
    )
    assert size in {2**power for power in range(11)}
    assert size >= smallest
    assert size < 2 * smallest or size == 1 or all(limit(size) for limit in limits)
    assert not all(limit(2 * size) for limit in limits)


@given(st.integers(0, 100), st.integers(0, 200), st.integers(1, 60))
def test_a_cut_covers_its_part_in_few_panels(start, length, most):
    panels = cut(slice(start, start + length), most)
    assert [i for panel in panels for i in range(panel.start, panel.stop)] == list(
        range(start, start + length)
    )
    assert all(panel.stop - panel.start <= most for panel in panels)
    assert len(panels) == -(-length // most)


def test_tiles_have_names_and_an_order():
    tiles = [Tile("b", 0, 0), Tile("a", 2, 3), Tile("a", 0, 10)]
    assert [str(tile) for tile in sorted(tiles)] == ["a/0.10", "a/2.3", "b/0.0"]

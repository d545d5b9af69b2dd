"""Tiles of maps of any size: means of the reordered matrix, whatever the order in which its parts arrive."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semrsm_dist.report.maps import Values
from semrsm_dist.report.view import pyramid
from semrsm_dist.report.view.pyramid import Shape, Sums, Tile, places_of


@st.composite
def cases(draw):
    """Matrices with holes in an order, cut into parts that come in any order, and a tile size."""
    shape = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spatial, semantic, gap = rng.normal(size=(3, *shape))
    spatial[rng.random(shape) < draw(st.sampled_from([0, 0.3, 0.97]))] = np.nan
    semantic[rng.random(shape) < draw(st.sampled_from([0, 0.3]))] = np.nan
    gap = np.where(np.isnan(semantic), np.nan, np.abs(gap))
    cuts = [np.array_split(rng.permutation(n), draw(st.integers(1, 3))) for n in shape]
    parts = [(rows, columns) for rows in cuts[0] for columns in cuts[1]]
    rng.shuffle(parts)
    return (
        Values(spatial, semantic, gap),
        tuple(map(rng.permutation, shape)),
        parts,
        draw(st.sampled_from([4, 8])),
    )


def add(sums, values, rows, columns, weight=1.0):
    def derive(some, others):
        chosen = np.ix_(rows[some], columns[others])
        return Values(*(matrix[chosen] for matrix in vars(values).values()))

    totals = sums.total(rows, columns, derive, weight)
    if totals is not None:
        sums.add(totals)


def fill(sums, values, parts):
    for rows, columns in parts:
        add(sums, values, rows, columns)
    return sums


def block_means(matrix, shifts, reduce):
    edges = [np.arange(0, length, 1 << shift)[1:] for length, shift in zip(matrix.shape, shifts, strict=True)]
    bands = np.split(matrix, edges[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of cells without any number
        return np.array([[reduce(block) for block in np.split(band, edges[1], axis=1)] for band in bands])


@settings(max_examples=25)
@given(cases())
def test_a_tile_has_the_means_of_the_blocks_of_the_reordered_matrix(case):
    values, order, parts, size = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyramid, "TILE", size)
        shape = Shape(*values.spatial.shape)
        places = tuple(map(places_of, order))
        whole = fill(Sums(shape.whole(0), places), values, parts)
        ordered = {name: matrix[np.ix_(*order)] for name, matrix in vars(values).items()}
        matrices = (
            ordered["spatial"],
            ordered["semantic"],
            ordered["semantic"] - ordered["spatial"],
            ordered["gap"],
        )
        for level in range(shape.top + 1):
            expected = np.stack(
                [
                    block_means(matrix, shape.shifts(level), np.nanmax if at == 3 else np.nanmean)
                    for at, matrix in enumerate(matrices)
                ]
            )
            np.testing.assert_allclose(whole.planes(), expected, rtol=1e-5, atol=1e-6)
            assert np.all(np.nan_to_num(whole.planes()[3]) >= np.nan_to_num(expected[3]))
            for tile in whole.window.tiles():
                window = shape.window(tile)
                own = fill(Sums(window, places), values, parts).planes()
                part = expected[
                    :, window.rows.start : window.rows.stop, window.columns.start : window.columns.stop
                ]
                np.testing.assert_allclose(own, part, rtol=1e-5, atol=1e-6)
            whole = whole.coarser()


@given(st.integers(1, 60), st.sampled_from([1, 2, 3]), st.integers(0, 2**32 - 1))
def test_a_pair_that_is_added_one_way_counts_both_ways(n_images, n_parts, seed):
    rng = np.random.default_rng(seed)
    spatial, semantic, gap = (matrix + matrix.T for matrix in rng.normal(size=(3, n_images, n_images)))
    spatial[np.ix_(*2 * [rng.random(n_images) < 0.2])] = np.nan
    values = Values(spatial, semantic, np.abs(gap))
    places = (rng.permutation(n_images),) * 2
    window = Shape(n_images, n_images).whole(0)
    panels = np.array_split(np.arange(n_images), n_parts)
    pairs = [(rows, columns) for rows in panels for columns in panels]
    plain = fill(Sums(window, places), values, pairs)
    folded = Sums(window, places, folded=True)
    for at, rows in enumerate(panels):
        for columns in panels[at:]:
            add(folded, values, rows, columns, 0.5 if columns is rows else 1.0)
    for _ in range(3):
        np.testing.assert_allclose(folded.planes(), plain.planes(), rtol=1e-5, atol=1e-6)
        plain, folded = plain.coarser(), folded.coarser()


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_the_top_is_one_tile_and_short_edges_keep_their_images(n_rows, n_columns):
    shape = Shape(n_rows, n_columns)
    assert max(shape.cells(shape.top)) <= pyramid.TILE
    assert shape.top == 0 or max(shape.cells(shape.top - 1)) > pyramid.TILE
    assert shape.cells(0) == (n_rows, n_columns)
    assert min(shape.cells(shape.top)) >= min(n_rows, n_columns, pyramid.TILE // 2)


@pytest.mark.parametrize("tile", [(0, 0, 4), (0, 4, 0), (3, 0, 0), (-1, 0, 0), (0, -1, 0), (2, 0, 1)])
def test_there_are_no_other_tiles(tile):
    with pytest.raises(IndexError):
        Shape(1000, 1000).window(Tile(*tile))


def test_what_has_not_arrived_shows_what_is_known_around_it():
    shape = Shape(300, 300)
    sums = Sums(shape.whole(0), (np.arange(300),) * 2)
    empty = sums.planes(filled=True)
    assert np.isnan(empty).all()
    few, values = np.arange(0, 300, 7), np.random.default_rng(0).normal(size=(3, 43, 43))
    whole = np.zeros((3, 300, 300))
    whole[np.ix_(range(3), few, few)] = values
    add(sums, Values(*whole), few, few)
    filled = sums.planes(filled=True)
    assert not np.isnan(filled).any()
    np.testing.assert_allclose(filled[:2][:, few][:, :, few], values[:2], rtol=1e-6)
    assert np.isnan(sums.planes()).sum() == 4 * (300**2 - 43**2)

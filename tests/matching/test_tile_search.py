"""Tiles that are searched one by one, in any order, from any floors, keep the neighbours that the matrix says."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semrsm_dist.matching.kernels import cosine
from semrsm_dist.matching.matchers.auction import Auction
from semrsm_dist.matching.representations import stack_tokens
from semrsm_dist.matching.search.block import SearchPanel
from semrsm_dist.matching.search.pruning_bounds import principal_directions
from semrsm_dist.matching.search.tile import Criterion, Pairs, TileSearch, rank_pairs

NUMBERS = ("matched", "identity", "upper_bound")


def make(rng, n_images, unequal):
    """Return images of a few kinds, with exact and shuffled duplicates and one of zeros."""
    kinds = rng.normal(size=(4, 9, 12)) + 2.0 * rng.normal(size=(4, 1, 12))
    z = np.stack([kinds[t % 4] for t in range(n_images)]) + 0.3 * rng.normal(size=(n_images, 9, 12))
    for copy, original in rng.integers(n_images, size=(n_images // 4, 2)):
        z[copy] = rng.permutation(z[original]) if copy % 2 else z[original]
    z[rng.integers(n_images)] = 0.0
    counts = rng.integers(3, 10, n_images) if unequal else np.full(n_images, 9)
    return stack_tokens([image[:count] for image, count in zip(z.astype(np.float32), counts, strict=True)])


def neighbours_of_matrix(rows, columns, wanted, groups, symmetric):
    """Return the places (N, k) of neighbours in the flattened matrix, its numbers and its similarities."""
    tile = Auction().solve_tile(rows, columns, triangular=symmetric)
    matched = tile.matched.astype(np.float32) if wanted.single else tile.matched
    similarity = cosine(matched, rows.squared_norms, columns.squared_norms)
    barred = (groups[0][:, None] == groups[1]) & (groups[0][:, None] >= 0)
    if symmetric:
        np.fill_diagonal(barred, True)
    similarity[barred | ~(similarity >= wanted.threshold)] = np.nan
    n_columns = similarity.shape[1]
    order = np.argsort(-similarity, axis=1, kind="stable")[:, : wanted.k]
    found = ~np.isnan(np.take_along_axis(similarity, order, axis=1))
    order = np.pad(order, ((0, 0), (0, wanted.k - order.shape[1])))
    found = np.pad(found, ((0, 0), (0, wanted.k - found.shape[1])))
    return np.where(found, order + n_columns * np.arange(len(order))[:, None], -1), tile, similarity


def merge(tiles, wanted, n_rows, symmetric):
    """Return the places (N, k) in a list of all pairs, which it returns, too: each way round if symmetric."""
    pairs = Pairs.join(tiles)
    if symmetric:
        pairs = Pairs.join([pairs, pairs._replace(rows=pairs.columns, columns=pairs.rows)])
    return rank_pairs(pairs.rows, pairs.columns, pairs.similarity, (n_rows, wanted.k)), pairs


@settings(max_examples=40, deadline=None)
@given(
    n_images=st.integers(2, 40),
    size=st.integers(1, 17),
    k=st.integers(1, 45),
    threshold=st.sampled_from((-np.inf, 0.3, 0.9, 1.0)),
    single=st.booleans(),
    unequal=st.booleans(),
    symmetric=st.booleans(),
    grouped=st.booleans(),
    known=st.sampled_from((0.0, 0.3, 1.0)),
    on_device=st.sampled_from((None, Auction(tolerance=1e-3), Auction(tolerance=0.2))),
    seed=st.integers(0, 2**32 - 1),
)
@pytest.mark.slow
def test_tiles_keep_the_neighbours_of_the_full_matrix(
    n_images, size, k, threshold, single, unequal, symmetric, grouped, known, on_device, seed
):
    rng = np.random.default_rng(seed)
    wanted = Criterion(k, threshold, single)
    z, counts = make(rng, n_images, unequal)
    n_rows = n_images if symmetric else rng.integers(1, n_images)
    first = 0 if symmetric else n_rows  # of the columns
    codes = rng.integers(-1, 6, n_images) if grouped else np.full(n_images, -1)
    whole = [Auction().prepare(z[part], counts[part]) for part in (slice(n_rows), slice(first, None))]
    whole = [whole[0], whole[0]] if symmetric else whole
    groups = codes[:n_rows], codes[first:]
    places, matrix, similarity = neighbours_of_matrix(*whole, wanted, groups, symmetric)

    directions = principal_directions(whole[1])
    cut = [
        [slice(start, min(start + size, panel.n_images)) for start in range(0, panel.n_images, size)]
        for panel in whole
    ]
    panels = [
        [
            SearchPanel.of(panel.part(part), directions, double=False, on_device=on_device is not None)
            for part in parts
        ]
        for panel, parts in zip(whole, cut, strict=True)
    ]
    search = TileSearch(Auction(), wanted, symmetric, on_device)  # any certified matcher can be that of a GPU
    ranked = -np.sort(-np.nan_to_num(similarity, nan=-np.inf), axis=1)
    kth = ranked[:, k - 1] if k <= ranked.shape[1] else np.full(n_rows, -np.inf)
    tiles = []
    for i, j in rng.permutation(list(product(range(len(cut[0])), range(len(cut[1]))))):
        if symmetric and i > j:
            continue
        # Anything that is not above the true k-th best may be known.
        least = np.where(rng.random(n_rows) < known, kth, -np.inf)
        floors = least[cut[0][i]], least[cut[1][j]] if symmetric else np.full(panels[1][j].n_images, np.inf)
        rows, columns = panels[0][i], panels[1][j]
        columns = rows if symmetric and i == j else columns
        pairs, decided, _ = search.search(
            rows,
            columns,
            floors,
            (groups[0][cut[0][i]], groups[1][cut[1][j]]),
            triangular=symmetric and i == j,
        )
        assert decided[3] == pairs.rows.size
        kept = search.select(pairs, floors)
        tiles.append(kept._replace(rows=kept.rows + cut[0][i].start, columns=kept.columns + cut[1][j].start))
        assert len(kept.rows) <= k * (rows.n_images + columns.n_images)

    best, pairs = merge(tiles, wanted, n_rows, symmetric)
    np.testing.assert_array_equal(best >= 0, places >= 0)
    found = pairs.some(best[best >= 0])
    expected = places[places >= 0]
    np.testing.assert_array_equal(found.rows * whole[1].n_images + found.columns, expected)
    for name in NUMBERS:
        np.testing.assert_array_equal(getattr(found, name), getattr(matrix, name).ravel()[expected])
    np.testing.assert_array_equal(found.similarity, similarity.ravel()[expected])


def test_floors_spare_most_of_the_work():
    rng = np.random.default_rng(0)
    z, counts = make(rng, 60, unequal=False)
    panel = Auction().prepare(z, counts)
    rows = SearchPanel.of(panel, principal_directions(panel), double=False)
    search = TileSearch(Auction(), Criterion(3, -np.inf, single=True), both=True)
    none, apart = np.full(60, -np.inf), (np.full(60, -1),) * 2
    pairs, before, _ = search.search(rows, rows, (none, none), apart, triangular=True)
    best, both = merge([pairs], search.wanted, 60, symmetric=True)
    known = np.where(best[:, -1] >= 0, both.similarity[best[:, -1]], -np.inf)
    again, after, _ = search.search(rows, rows, (known, known), apart, triangular=True)
    assert after[3] < before[3] / 2
    assert after.sum() == before.sum()
    kept, first = search.select(again, (known, known)), search.select(pairs, (known, known))
    for name in Pairs._fields:
        np.testing.assert_array_equal(getattr(kept, name), getattr(first, name))


def test_most_pairs_are_left_to_the_gpu_where_images_differ():
    panel = Auction().prepare(
        np.random.default_rng(0).normal(size=(30, 9, 6)).astype(np.float32).cumsum(axis=1)
    )
    none, apart = np.full(30, -np.inf), (np.full(30, -1),) * 2
    rows = SearchPanel.of(panel, np.zeros((6, 0)), double=False, on_device=True)
    search = TileSearch(Auction(), Criterion(2, -np.inf, single=True), True, Auction(tolerance=1e-3))
    _, counts, _ = search.search(rows, rows, (none, none), apart, triangular=True)
    assert counts.sum() == 30 * 29 / 2
    assert counts[0] > 0.5 * counts.sum()


def test_a_pair_that_was_found_twice_counts_once():
    owners, others = np.array([0, 0, 0, 1]), np.array([5, 5, 3, 2])
    table = rank_pairs(owners, others, np.array([0.5, 0.5, 0.5, 0.1]), (3, 2))
    assert table.tolist() == [[2, 0], [3, -1], [-1, -1]]


@pytest.mark.parametrize("n", (0, 1))
def test_few_pairs_can_be_ranked(n):
    table = rank_pairs(np.zeros(n, int), np.zeros(n, int), np.zeros(n), (1, 2))
    assert table.tolist() == [[0 if n else -1, -1]]

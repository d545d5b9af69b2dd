"""How many pairs stay undecided, extrapolated from samples, against counts in matrices whose every number is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semrsm_dist.plan.tiling import Layout
from semrsm_dist.plan.undecided import (
    BoundShares,
    Floors,
    MatchedShares,
    count_undecided,
    equivalent_seen,
    rank_growth,
)

BLOCK = 8


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.05, 4))
def test_the_growth_of_shares_is_found_again_from_two_ranks(rank, more, growth):
    rng = np.random.default_rng(rank)
    high = rank + more
    quantiles = rng.gamma([[high], [rank]], size=(2, 400_000)) if more == rank == 1 else None
    if quantiles is not None:  # what the formula says of ranks is what chance does
        simulated = np.mean(quantiles**growth, axis=1)
        assert rank_growth(high, rank, simulated[1] / simulated[0]) == pytest.approx(growth, rel=0.05)
    ratio = np.exp(np.sum(np.log([(n) / (n + growth) for n in range(rank, high)])))
    assert rank_growth(high, rank, ratio) == pytest.approx(growth, rel=1e-6)


def test_shares_that_do_not_change_or_vanish_at_low_ranks_have_a_growth_too():
    assert rank_growth(10, 1, 1.0) == 0.0
    assert rank_growth(10, 1, 1e-300) > 7


@given(st.integers(1, 50), st.integers(1, 50), st.floats(0, 4))
def test_a_rank_stands_for_the_same_rank_among_as_many_and_a_lower_one_for_more(k, rank, growth):
    assert equivalent_seen(100, k, k, growth) == pytest.approx(100)
    assert (equivalent_seen(100, rank, k, growth) > 100 * (1 - 1e-9)) == (rank <= k)
    # What the bound shows exactly, where it is the similarity: r of n, as k of m.
    assert equivalent_seen(100, rank, k, 1.0) == pytest.approx(100 * k / rank)


@given(
    n_rows=st.integers(1, 40), n_columns=st.integers(1, 40), size=st.integers(1, 12), symmetric=st.booleans()
)
def test_of_a_share_that_is_the_same_everywhere_so_many_pairs_are_counted(n_rows, n_columns, size, symmetric):
    layout = Layout(n_rows, n_rows if symmetric else n_columns, size, symmetric)
    count = count_undecided(layout, lambda rows, _: np.full(rows.shape, 0.25), BLOCK)
    assert count == pytest.approx(layout.total_pairs / 4)


@given(
    n_rows=st.integers(1, 40), n_columns=st.integers(1, 40), size=st.integers(1, 12), symmetric=st.booleans()
)
def test_images_have_seen_what_tiles_before_theirs_hold(n_rows, n_columns, size, symmetric):
    layout = Layout(n_rows, n_rows if symmetric else n_columns, size, symmetric)
    asked = []
    count_undecided(
        layout, lambda rows, columns: asked.append((rows, columns)) or np.zeros(rows.shape), BLOCK
    )
    tiles = list(layout.tiles())
    order = [tile for tile in tiles if tile[0] == tile[1]] + [tile for tile in tiles if tile[0] != tile[1]]
    seen, expected = np.zeros(n_rows), []
    for row, column in order:
        rows, columns = layout.rows(row), layout.columns(column)
        seen[rows] += columns.stop - columns.start
        if symmetric and row != column:
            seen[columns] += rows.stop - rows.start
        if not symmetric or row != column:
            expected.append(seen[rows.start])
    found = asked[0][0] if expected else np.zeros(0)
    np.testing.assert_allclose(np.sort(found), np.sort(expected))


def search(similarity, bound, layout, k, threshold=-np.inf):
    """Return how many pairs a search by the same rules, written pair by pair, leaves to products and matches."""
    n_rows, n_columns = similarity.shape
    best_of_rows = np.full((n_rows, k), threshold)
    best_of_columns = best_of_rows if layout.symmetric else np.full((n_columns, k), np.inf)
    undecided = matched = 0
    tiles = list(layout.tiles())
    for row, column in sorted(tiles, key=lambda tile: tile[0] != tile[1]):
        rows, columns = layout.rows(row), layout.columns(column)
        for start in range(rows.start, rows.stop, BLOCK):
            block = range(start, min(start + BLOCK, rows.stop))
            known = best_of_columns[:, -1].copy()
            found = []
            for i in block:
                own = best_of_rows[i].copy()
                others = [j for j in range(columns.start, columns.stop) if not layout.symmetric or j > i]
                for j in sorted(others, key=lambda j, i=i: -bound[i, j]):
                    floor = min(own[-1], known[j])
                    undecided += bound[i, j] >= floor
                    if similarity[i, j] >= floor:
                        matched += 1
                        found.append((i, j))
                        own = np.sort([*own, similarity[i, j]])[:0:-1]
            for i, j in found:
                for best, image in ((best_of_rows, i), (best_of_columns, j))[: 1 + layout.symmetric]:
                    best[image] = np.sort([*best[image], similarity[i, j]])[:0:-1]
    return undecided, matched


def make_similarities(rng, kind, n, m, symmetric):
    """Return similarities (n, m) of images in few or many dimensions, in clusters or with duplicates; and bounds."""
    dimensions = {"plane": 2, "space": 8, "clusters": 6, "duplicates": 8}[kind]
    points = rng.normal(size=(n if symmetric else n + m, dimensions))
    if kind == "clusters":
        points = 0.3 * points + rng.normal(size=(7, dimensions))[rng.integers(7, size=len(points))]
    if kind == "duplicates":
        copies = rng.integers(len(points), size=(len(points) // 3, 2))
        points[copies[:, 0]] = points[copies[:, 1]] + 0.01 * rng.normal(size=(len(copies), dimensions))
    rows, columns = (points, points) if symmetric else (points[:n], points[n:])
    similarity = -np.linalg.norm(rows[:, None] - columns, axis=2)
    loose = np.abs(rng.normal(size=similarity.shape)) * 0.5
    return similarity, similarity + (np.triu(loose) + np.triu(loose, 1).T if symmetric else loose)


def sample(similarity, bound, n, k, symmetric):
    """Return the shares that the first n rows and columns show."""
    similarity, bound = similarity[:n, :n].copy(), bound[:n, :n].copy()
    if symmetric:
        np.fill_diagonal(similarity, -np.inf)
        np.fill_diagonal(bound, -np.inf)

    def floors(seen, rank):
        rows = -np.sort(-similarity[:, : n if seen == n - symmetric else seen], axis=1)[:, rank - 1]
        return Floors(seen, rank, rows, rows if symmetric else np.full(n, np.inf))

    most = n - symmetric
    no_floors = np.full(n, -np.inf)
    ladder = [Floors(k, k, no_floors, no_floors if symmetric else np.full(n, np.inf))]
    ladder += [floors(seen, k) for seen in (3 * k, 9 * k) if seen < most]
    ladder += [floors(most, rank) for rank in sorted({k, max(1, k // 2), 1}, reverse=True)]
    best = np.argsort(-similarity, axis=1)[:, :k]
    is_hit = np.zeros(similarity.shape, bool)
    np.put_along_axis(is_hit, best, values=True, axis=1)
    mutual = float((is_hit & is_hit.T).sum() / is_hit.sum()) if symmetric else None
    return BoundShares.measure(bound, ladder, k), MatchedShares(k, np.full(n, np.inf), mutual)


@pytest.mark.parametrize("symmetric", [True, False], ids=["matrix", "queries"])
@pytest.mark.parametrize("kind", ["plane", "space", "clusters", "duplicates"])
def test_a_sample_foretells_what_a_larger_search_leaves_undecided(kind, symmetric):
    rng = np.random.default_rng(1)
    k, small, large = 4, 120, 480
    similarity, bound = make_similarities(rng, kind, large, large, symmetric)
    shares = sample(similarity, bound, small, k, symmetric)
    found, expected = [], []
    for n, size in ((small, 30), (large, 60)):
        layout = Layout(n, n, size, symmetric)
        found.append(search(similarity[:n, :n], bound[:n, :n], layout, k))
        expected.append([count_undecided(layout, share, BLOCK) for share in shares])
    foretold = np.array(found[0]) * np.array(expected[1]) / np.array(expected[0])
    np.testing.assert_allclose(foretold, found[1], rtol=0.2)
    np.testing.assert_allclose(expected[1], found[1], rtol=0.25)


def test_thresholds_that_few_pairs_reach_leave_as_many_whatever_the_rank():
    reaching = np.array([np.inf, 0.0, 0.02, 0.0])
    shares = MatchedShares(5, reaching, 1.0)
    seen = np.array([5.0, 100.0, 1e6])
    np.testing.assert_allclose(shares(seen, seen), [(1 + 0.02) / 4, (0.05 + 0.02) / 4, 10e-6 / 4])
    few, many = np.array([2.0, 100.0]), np.array([2.0, 1e6])  # 2 are fewer than there are neighbours
    np.testing.assert_allclose(shares(few, many), [(1 + 0.02) / 4, (0.05 + 0.02) / 4])


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 15))
def test_shares_lie_between_none_and_all_and_fall_with_what_is_seen(seed, n, k):
    rng = np.random.default_rng(seed)
    similarity, bound = make_similarities(rng, "plane", n, n, True)
    shares, _ = sample(similarity, bound, n, min(k, n - 1), True)
    seen = np.geomspace(1, 1e7, 50)
    found = shares(seen, seen)
    assert ((found > 0) & (found <= 1)).all()
    assert (np.diff(found) <= 1e-12).all()

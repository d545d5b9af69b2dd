"""Correlations over pairs of images: exact, whatever the blocks, the ties, the offsets and where the numbers lie."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from semrsm_dist.evaluation.bootstrap import draw_counts
from semrsm_dist.evaluation.correlation import pearson, rank_correlations
from semrsm_dist.evaluation.merge_sort import sort_counting
from semrsm_dist.evaluation.pairs import Pairs
from semrsm_dist.evaluation.resampled_correlation import ResampledCorrelation


def symmetric(n, seed, decimals=None):
    values = np.random.default_rng(seed).normal(size=(n, n))
    values = values + values.T
    return values if decimals is None else np.round(values, decimals)


def upper(*matrices):
    return [matrix[np.triu_indices(len(matrix), k=1)] for matrix in matrices]


def tau_a(x, y):
    """By the definition: all choices of two."""
    signs = [np.sign(x[p] - x[q]) * np.sign(y[p] - y[q]) for p, q in itertools.combinations(range(len(x)), 2)]
    return np.mean(signs)


@pytest.mark.parametrize("decimals", [None, 1, 0], ids=["no ties", "ties", "many ties"])
@pytest.mark.parametrize("rows_at_once", [1, 7, 100])
def test_they_agree_with_scipy_and_the_definition(decimals, rows_at_once):
    x, y = symmetric(23, 0, decimals), symmetric(23, 1, decimals)
    y = np.round(x + y, decimals) if decimals is not None else x + y
    pairs = Pairs.of(x, y, rows_at_once)
    ranks = rank_correlations(pairs)
    assert pearson(pairs).value == pytest.approx(stats.pearsonr(*upper(x, y)).statistic, abs=1e-14)
    assert ranks["spearman"].value == pytest.approx(stats.spearmanr(*upper(x, y)).statistic, abs=1e-14)
    assert ranks["kendall"].value == pytest.approx(tau_a(*upper(x, y)), abs=1e-15)
    assert ranks["kendall"].n_pairs == 23 * 22 // 2


def test_without_ties_tau_a_is_scipys_tau():
    x, y = symmetric(60, 0), symmetric(60, 1) + symmetric(60, 0)
    tau = rank_correlations(Pairs.of(x, y))["kendall"].value
    assert tau == pytest.approx(stats.kendalltau(*upper(x, y)).statistic, abs=1e-14)


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=40), st.integers(1, 9)
)
def test_sorting_sorts_and_counts_inversions(numbers, block):
    first, second = np.array(numbers, dtype=float).T.copy()
    inversions = sum(a > b for a, b in itertools.combinations(numbers, 2))
    spare = np.empty_like(first), np.empty_like(second)
    assert sort_counting(first, second, spare, block=block) == inversions
    assert list(zip(first, second, strict=True)) == sorted(numbers)


@settings(max_examples=40)
@given(st.integers(3, 12), st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 20), st.integers(1, 12))
def test_neither_blocks_nor_rows_at_once_matter(n, seed, levels, block, rows_at_once):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, levels + 1, (2, n, n)).astype(float)
    one = rank_correlations(Pairs.of(x, y))
    other = rank_correlations(Pairs.of(x, y, rows_at_once), block=block)
    for name, correlation in one.items():
        assert other[name].value == pytest.approx(correlation.value, abs=1e-12, nan_ok=True)
    linear = [pearson(Pairs.of(x, y, rows)).value for rows in (1000, rows_at_once)]
    assert linear[0] == pytest.approx(linear[1], abs=1e-12, nan_ok=True)


def test_a_large_offset_does_not_cost_digits():
    x, y = symmetric(30, 0), symmetric(30, 1)
    exact = pearson(Pairs.of(x, y)).value
    assert pearson(Pairs.of(x + 1e6, y - 1e6, 4)).value == pytest.approx(exact, abs=1e-8)


def test_only_entries_above_the_diagonal_count():
    x, y = symmetric(12, 0), symmetric(12, 1)
    lower = np.tril(np.full((12, 12), 99.0))
    for measure in (pearson, lambda pairs: rank_correlations(pairs)["spearman"]):
        assert measure(Pairs.of(x, y)) == measure(Pairs.of(np.triu(x, 1) + lower, np.triu(y, 1) - lower))


def test_undefined_pairs_are_left_out_and_counted():
    x, y = symmetric(10, 0), symmetric(10, 1)
    x[3, :] = x[:, 3] = np.nan
    y[5, 6] = np.nan
    kept = ~np.isnan(np.sum(upper(x, y), axis=0))
    pairs = Pairs.of(x, y, 4)
    for found, expected in (
        (pearson(pairs), stats.pearsonr),
        (rank_correlations(pairs)["spearman"], stats.spearmanr),
    ):
        assert found.value == pytest.approx(expected(*(v[kept] for v in upper(x, y))).statistic)
        assert (found.n_pairs, found.n_left_out) == (35, 10)


@pytest.mark.parametrize(
    "x", [np.full((6, 6), 0.3), np.full((6, 6), np.nan)], ids=["constant", "nothing defined"]
)
def test_a_matrix_that_orders_nothing_has_no_correlation(x):
    pairs = Pairs.of(x, symmetric(6, 0))
    assert np.isnan([pearson(pairs).value, *(item.value for item in rank_correlations(pairs).values())]).all()
    resampled = ResampledCorrelation(x, symmetric(6, 0))
    weights = resampled.weights(np.ones(6, dtype=np.int64))
    assert np.isnan(
        [resampled.pearson(weights), resampled.spearman(weights), resampled.kendall(weights)]
    ).all()


def test_a_constant_is_known_by_more_than_its_last_bit():
    x = np.full((20, 20), 0.1) + 1e-17 * symmetric(20, 0)
    x[0, 1] = np.nextafter(0.1, 1)
    assert np.isnan(pearson(Pairs.of(x, symmetric(20, 1))).value)


def test_ranks_of_a_constant_are_no_ranks_of_its_last_bits():
    x = 1.0 + np.where(symmetric(20, 0) > 0, 2e-16, 0.0)
    assert np.ptp(x) > 0
    for pairs in (Pairs.of(x, symmetric(20, 1)), Pairs.of(symmetric(20, 1), x)):
        assert np.isnan([item.value for item in rank_correlations(pairs).values()]).all()


@pytest.mark.parametrize("offset", [0.0, 0.3, 1e6])
def test_a_resample_without_the_only_image_that_differs_has_no_correlation(offset):
    x = np.full((12, 12), 0.1 + offset)
    x[4] = x[:, 4] = 0.7 + offset
    resampled = ResampledCorrelation(x, symmetric(12, 1)), ResampledCorrelation(symmetric(12, 1), x)
    for counts in draw_counts(12, resamples=40, seed=0):
        for each in resampled:
            weights = each.weights(counts)
            found = [each.pearson(weights), each.spearman(weights), each.kendall(weights)]
            assert np.isnan(found).all() if counts[4] == 0 else np.isfinite(found).all()


@pytest.mark.parametrize("decimals", [None, 0])
def test_a_resample_is_the_correlation_of_repeated_pairs(decimals):
    x, y = symmetric(9, 0, decimals), symmetric(9, 1, decimals)
    x[2, 4] = x[4, 2] = np.nan
    resampled = ResampledCorrelation(x, y)
    for counts in draw_counts(9, resamples=5, seed=3):
        weights = resampled.weights(counts)
        i, j = np.triu_indices(9, k=1)
        times = np.where(np.isnan(x[i, j]), 0, counts[i] * counts[j])
        a, b = (np.repeat(values[i, j], times) for values in (x, y))
        assert resampled.pearson(weights) == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-13)
        assert resampled.spearman(weights) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-13)
        assert resampled.kendall(weights) == pytest.approx(tau_a(a, b), abs=1e-14)


def test_each_image_once_is_the_correlation_itself():
    x, y = symmetric(20, 0, 1), symmetric(20, 1, 1)
    resampled, pairs = ResampledCorrelation(x, y), Pairs.of(x, y)
    weights = resampled.weights(np.ones(20, dtype=np.int64))
    ranks = rank_correlations(pairs)
    assert resampled.pearson(weights) == pytest.approx(pearson(pairs).value)
    assert resampled.spearman(weights) == pytest.approx(ranks["spearman"].value)
    assert resampled.kendall(weights) == pytest.approx(ranks["kendall"].value)


def test_a_subset_is_that_of_both_matrices():
    x, y = symmetric(17, 0), symmetric(17, 1)
    images = np.array([0, 3, 4, 11, 16])
    sub_x, sub_y = Pairs.of(x, y, 5).subset(images)
    assert (sub_x == x[np.ix_(images, images)]).all() and (sub_y == y[np.ix_(images, images)]).all()


def test_memory_is_that_of_blocks_when_the_numbers_lie_in_files(tmp_path):
    """2 000 images, two million pairs: 16 MB for each of four arrays, none of them in memory."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(2, 2000, 3))
    files = itertools.count()

    def allocate(length):
        return np.memmap(tmp_path / str(next(files)), np.float64, "w+", shape=(length,))

    pairs = Pairs(
        lambda rows: vectors[0, rows] @ vectors[0].T, lambda rows: vectors[1, rows] @ vectors[1].T, 2000, 50
    )
    rank_correlations(Pairs.of(*np.ones((2, 3, 3))))  # compiles
    tracemalloc.start()
    try:
        linear, ranks = pearson(pairs), rank_correlations(pairs, allocate=allocate, block=1 << 17)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12e6
    assert abs(linear.value) < 0.05 and abs(ranks["kendall"].value) < 0.05
    assert ranks["kendall"].n_pairs == 2000 * 1999 // 2

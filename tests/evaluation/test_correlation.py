"""Correlations over entries are those of scipy and the definitions, whatever the blocks, ties and counts."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from semrsm_dist.evaluation.bootstrap import draw_counts, percentile_interval
from semrsm_dist.evaluation.correlation import ResampledRanks, pearson, pearson_interval, rank_correlations
from semrsm_dist.evaluation.entries import Entries


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
    pairs = Entries.of(x, y, rows_at_once)
    rho, tau = rank_correlations(pairs)
    assert pearson(pairs).value == pytest.approx(stats.pearsonr(*upper(x, y)).statistic, abs=1e-14)
    assert rho.value == pytest.approx(stats.spearmanr(*upper(x, y)).statistic, abs=1e-14)
    assert tau.value == pytest.approx(tau_a(*upper(x, y)), abs=1e-14)
    assert tau.n_pairs == 23 * 22 // 2


@settings(max_examples=40)
@given(st.integers(3, 12), st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 12), st.integers(5, 80))
def test_rows_at_once_do_not_matter(n, seed, levels, rows_at_once, most):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, levels + 1, (2, n, n)).astype(float)
    one, other = Entries.of(x, y), Entries.of(x, y, rows_at_once)
    for a, b in zip(rank_correlations(one, most=most), rank_correlations(other, most=most), strict=True):
        assert (a.n_pairs, a.value) == (b.n_pairs, pytest.approx(b.value, abs=1e-12, nan_ok=True))
    assert pearson(one).value == pytest.approx(pearson(other).value, abs=1e-12, nan_ok=True)


def test_of_many_pairs_a_sample_says_the_same_within_its_standard_error():
    """Independent seeds: the mean of the deviations is nought, and their spread what is promised."""
    x = symmetric(300, 0)
    pairs = Entries.of(x, x + symmetric(300, 1))
    whole = [found.value for found in rank_correlations(pairs)]
    most, deviations = 4000, []
    for seed in range(60):
        found = rank_correlations(pairs, most=most, seed=seed)
        assert abs(found[0].n_pairs - most) < 5 * np.sqrt(most) and found[0].n_left_out == 0
        deviations.append([one.value - value for one, value in zip(found, whole, strict=True)])
    errors = np.sqrt([3 / most, 2 / most])
    assert (np.std(deviations, axis=0) < errors).all()
    assert (np.abs(np.mean(deviations, axis=0)) < 4 * errors / np.sqrt(60)).all()
    again = rank_correlations(pairs, most=most)
    assert [one.value for one in again] == [one.value for one in rank_correlations(pairs, most=most)]


def test_only_entries_above_the_diagonal_count():
    x, y = symmetric(12, 0), symmetric(12, 1)
    lower = np.tril(np.full((12, 12), 99.0))
    for measure in (pearson, lambda pairs: rank_correlations(pairs)[0]):
        changed = measure(Entries.of(np.triu(x, 1) + lower, np.triu(y, 1) - lower))
        assert measure(Entries.of(x, y)).value == changed.value


def test_undefined_pairs_are_left_out_and_counted():
    x, y = symmetric(10, 0), symmetric(10, 1)
    x[3, :] = x[:, 3] = np.nan
    y[5, 6] = np.nan
    kept = ~np.isnan(np.sum(upper(x, y), axis=0))
    pairs = Entries.of(x, y, 4)
    for found, expected in ((pearson(pairs), stats.pearsonr), (rank_correlations(pairs)[0], stats.spearmanr)):
        assert found.value == pytest.approx(expected(*(v[kept] for v in upper(x, y))).statistic)
        assert (found.n_pairs, found.n_left_out) == (35, 10)


def test_the_sample_is_drawn_from_the_defined_pairs():
    x, y = symmetric(60, 0), symmetric(60, 1)
    x[20:] = x[:, 20:] = np.nan
    pairs = Entries.of(x, y)
    (whole, _), (sample, _) = (rank_correlations(pairs, most=most) for most in (190, 95))
    assert (whole.n_pairs, whole.n_left_out) == (190, 60 * 59 // 2 - 190)
    assert whole.value == pytest.approx(rank_correlations(Entries.of(x[:20, :20], y[:20, :20]))[0].value)
    assert 60 < sample.n_pairs < 130


def resample(x, y, counts):
    """Return the three correlations of each resample."""
    ranks, counts = ResampledRanks(x, y), np.atleast_2d(counts)
    linear = pearson(Entries.of(x, y), (counts, counts))
    return np.stack([linear.values, ranks.spearman(counts), ranks.kendall(counts)])


@pytest.mark.parametrize(
    "x", [np.full((6, 6), 0.3), np.full((6, 6), np.nan)], ids=["constant", "nothing defined"]
)
def test_a_matrix_that_orders_nothing_has_no_correlation(x):
    pairs = Entries.of(x, symmetric(6, 0))
    assert np.isnan([pearson(pairs).value, *(item.value for item in rank_correlations(pairs))]).all()
    assert np.isnan(resample(x, symmetric(6, 0), np.ones(6, dtype=np.int64))).all()


def test_a_constant_is_known_by_more_than_its_last_bit():
    x = 1.0 + np.where(symmetric(20, 0) > 0, 2e-16, 0.0)
    assert np.ptp(x) > 0
    for pairs in (Entries.of(x, symmetric(20, 1)), Entries.of(symmetric(20, 1), x)):
        assert np.isnan([pearson(pairs).value, *(item.value for item in rank_correlations(pairs))]).all()


@pytest.mark.parametrize("offset", [0.0, 0.3, 1e6])
def test_a_resample_without_the_only_image_that_differs_has_no_correlation(offset):
    x = np.full((12, 12), 0.1 + offset)
    x[4] = x[:, 4] = 0.7 + offset
    counts = draw_counts(12, resamples=40, seed=0)
    for both in ((x, symmetric(12, 1)), (symmetric(12, 1), x)):
        found = resample(*both, counts)
        assert (np.isfinite(found) == (counts[:, 4] > 0)).all()


@pytest.mark.parametrize("decimals", [None, 0])
def test_a_resample_is_the_correlation_of_repeated_pairs(decimals):
    x, y = symmetric(9, 0, decimals), symmetric(9, 1, decimals)
    x[2, 4] = x[4, 2] = np.nan
    counts = draw_counts(9, resamples=5, seed=3)
    i, j = np.triu_indices(9, k=1)
    for row, found in zip(counts, resample(x, y, counts).T, strict=True):
        times = np.where(np.isnan(x[i, j]), 0, row[i] * row[j])
        a, b = (np.repeat(values[i, j], times) for values in (x, y))
        expected = stats.pearsonr(a, b).statistic, stats.spearmanr(a, b).statistic, tau_a(a, b)
        assert found == pytest.approx(expected, abs=1e-13)


def test_each_image_once_is_the_correlation_itself():
    x, y = symmetric(20, 0, 1), symmetric(20, 1, 1)
    pairs = Entries.of(x, y)
    expected = [pearson(pairs).value, *(found.value for found in rank_correlations(pairs))]
    assert resample(x, y, np.ones(20, dtype=np.int64))[:, 0] == pytest.approx(expected)


def test_a_subset_is_that_of_both_matrices():
    x, y = symmetric(17, 0), symmetric(17, 1)
    images = np.array([0, 3, 4, 11, 16])
    sub_x, sub_y = Entries.of(x, y, 5).subset(images)
    assert (sub_x == x[np.ix_(images, images)]).all() and (sub_y == y[np.ix_(images, images)]).all()


def test_memory_is_that_of_blocks_and_of_the_sample():
    """Of 2 000 images there are two million pairs: 32 MB of two matrices, of which 1.6 MB are ranked."""
    vectors = np.random.default_rng(0).normal(size=(2, 2000, 3))
    pairs = Entries(*(lambda rows, v=v: v[rows] @ v.T for v in vectors), 2000, rows_at_once=50)
    tracemalloc.start()
    try:
        linear, (rho, tau) = pearson(pairs), rank_correlations(pairs, most=100_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16e6
    assert linear.n_pairs == 2000 * 1999 // 2 and abs(rho.n_pairs - 100_000) < 2000
    assert max(abs(found.value) for found in (linear, rho, tau)) < 0.05


# --- Pearson, where queries may differ from the database ---------------------------------------------------


def entries(x, y, symmetric, rows_at_once=3):
    n_columns = None if symmetric else x.shape[1]
    return Entries(lambda rows: x[rows], lambda rows: y[rows], len(x), n_columns, rows_at_once)


def draw_matrices(seed, n, m, symmetric):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, m)) + 1e3
    y = 0.5 * x + rng.normal(size=(n, m))
    return (x + x.T, y + y.T) if symmetric else (x, y)


def replicate(x, y, rows, columns, symmetric):
    """Return the correlation over the pairs of drawn images, without pairs of one image with its own copy."""
    drawn_i = np.repeat(np.arange(len(x)), rows)
    drawn_j = np.repeat(np.arange(x.shape[1]), columns)
    pairs = [
        (i, j)
        for a, i in enumerate(drawn_i)
        for b, j in enumerate(drawn_j)
        if not symmetric or (a < b and i != j)
    ]
    i, j = np.array(pairs).T
    kept = ~(np.isnan(x[i, j]) | np.isnan(y[i, j]))
    return np.corrcoef(x[i, j][kept], y[i, j][kept])[0, 1]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rows_at_once", [1, 4, 50])
def test_estimate_and_interval_are_those_of_drawing_images(symmetric, rows_at_once):
    n, m = 12, 12 if symmetric else 9
    x, y = draw_matrices(0, n, m, symmetric)
    x[2, 5] = np.nan
    x[5, 2] = np.nan
    interval, found = pearson_interval(entries(x, y, symmetric, rows_at_once), resamples=25, seed=4)
    rows = draw_counts(n, resamples=25, seed=4)
    columns = rows if symmetric else draw_counts(m, resamples=25, seed=5)
    once = np.ones(n, dtype=int), np.ones(m, dtype=int)
    replicates = [replicate(x, y, *counts, symmetric) for counts in zip(rows, columns, strict=True)]
    expected = percentile_interval(replicate(x, y, *once, symmetric), replicates)
    for name in ("estimate", "low", "high"):
        assert getattr(interval, name) == pytest.approx(getattr(expected, name), abs=1e-9)
    n_all = n * (n - 1) // 2 if symmetric else n * m
    assert (found.n_pairs, found.n_left_out) == ((n_all - 1, 1) if symmetric else (n_all - 2, 2))


@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-1e4, 1e4))
def test_it_does_not_know_scale_and_offset(seed, scale, offset):
    x, y = draw_matrices(seed, 8, 8, symmetric=True)
    plain, _ = pearson_interval(entries(x, y, True), resamples=3)
    moved, _ = pearson_interval(entries(x * scale + offset, y, True), resamples=3)
    assert moved.estimate == pytest.approx(plain.estimate, abs=1e-6)
    assert pearson(entries(-x, y, True)).value == pytest.approx(-plain.estimate)


def test_what_does_not_vary_correlates_with_nothing():
    x, y = draw_matrices(0, 5, 5, symmetric=True)
    interval, found = pearson_interval(entries(x, np.full((5, 5), 0.1) + np.eye(5), True), resamples=5)
    assert np.isnan([interval.estimate, interval.low, interval.high]).all()
    assert found.n_pairs == 10
    nothing = pearson(entries(np.full((5, 5), np.nan), y, True))
    assert np.isnan(nothing.value)
    assert (nothing.n_pairs, nothing.n_left_out) == (0, 10)


@pytest.mark.parametrize("offset", [0.0, 0.3, 1e6])
def test_resamples_without_the_only_image_that_differs_are_left_out(offset):
    x, y = np.full((12, 12), 0.1 + offset), draw_matrices(0, 12, 12, symmetric=True)[1]
    x[4] = x[:, 4] = 0.7 + offset
    counts = draw_counts(12, resamples=60, seed=4)
    with_it = counts[counts[:, 4] > 0]
    assert len(with_it) < 60
    replicates = [replicate(x, y, each, each, True) for each in with_it]
    expected = percentile_interval(replicate(x, y, *np.ones((2, 12), dtype=int), True), replicates)
    for both in ((x, y), (y, x)):
        found, _ = pearson_interval(entries(*both, True), resamples=60, seed=4)
        for name in ("estimate", "low", "high"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-8)

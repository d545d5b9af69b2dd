"""Pearson correlation in row blocks against numpy, and its resamples against drawing images one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.evaluation.bootstrap import draw_counts, percentile_interval
from semrsm_dist.evaluation.pearson import Entries, pearson_interval


def entries(x, y, symmetric, rows_at_once=3):
    return Entries(lambda rows: x[rows], lambda rows: y[rows], *x.shape, symmetric, rows_at_once)


def draw(seed, n, m, symmetric):
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
    x, y = draw(0, n, m, symmetric)
    x[2, 5] = np.nan
    x[5, 2] = np.nan
    found = pearson_interval(entries(x, y, symmetric, rows_at_once), resamples=25, seed=4)
    rows = draw_counts(n, resamples=25, seed=4)
    columns = rows if symmetric else draw_counts(m, resamples=25, seed=5)
    once = np.ones(n, dtype=int), np.ones(m, dtype=int)
    replicates = [replicate(x, y, *counts, symmetric) for counts in zip(rows, columns, strict=True)]
    expected = percentile_interval(replicate(x, y, *once, symmetric), replicates)
    for name in ("estimate", "low", "high"):
        assert getattr(found.interval, name) == pytest.approx(getattr(expected, name), abs=1e-9)
    n_all = n * (n - 1) // 2 if symmetric else n * m
    assert (found.n_pairs, found.n_left_out) == ((n_all - 1, 1) if symmetric else (n_all - 2, 2))


@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-1e4, 1e4))
def test_it_does_not_know_scale_and_offset(seed, scale, offset):
    x, y = draw(seed, 8, 8, symmetric=True)
    plain = pearson_interval(entries(x, y, True), resamples=3).interval
    moved = pearson_interval(entries(x * scale + offset, y, True), resamples=3).interval
    assert moved.estimate == pytest.approx(plain.estimate, abs=1e-6)
    assert pearson_interval(entries(-x, y, True), resamples=3).interval.estimate == pytest.approx(
        -plain.estimate
    )


def test_what_does_not_vary_correlates_with_nothing():
    x, y = draw(0, 5, 5, symmetric=True)
    found = pearson_interval(entries(x, np.full((5, 5), 0.1) + np.eye(5), True), resamples=5)
    assert np.isnan([found.interval.estimate, found.interval.low, found.interval.high]).all()
    assert found.n_pairs == 10
    nothing = pearson_interval(entries(np.full((5, 5), np.nan), y, True), resamples=5)
    assert np.isnan(nothing.interval.estimate)
    assert (nothing.n_pairs, nothing.n_left_out) == (0, 10)


@pytest.mark.parametrize("offset", [0.0, 0.3, 1e6])
def test_resamples_without_the_only_image_that_differs_are_left_out(offset):
    x, y = np.full((12, 12), 0.1 + offset), draw(0, 12, 12, symmetric=True)[1]
    x[4] = x[:, 4] = 0.7 + offset
    counts = draw_counts(12, resamples=60, seed=4)
    with_it = counts[counts[:, 4] > 0]
    assert len(with_it) < 60
    replicates = [replicate(x, y, each, each, True) for each in with_it]
    expected = percentile_interval(replicate(x, y, *np.ones((2, 12), dtype=int), True), replicates)
    for both in ((x, y), (y, x)):
        found = pearson_interval(entries(*both, True), resamples=60, seed=4).interval
        for name in ("estimate", "low", "high"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-8)

"""Regression with a bootstrap against least squares in a loop, and what Holm's method promises."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.evaluation.bootstrap import draw_counts
from semrsm_dist.evaluation.regression import bootstrap_p_values, fit_slopes, holm


def least_squares(x, y):
    """Return slopes per standard deviation, by numpy's solver on the original scale."""
    design = np.column_stack([np.ones(len(x)), x])
    return np.linalg.lstsq(design, y, rcond=None)[0][1:]


def test_slopes_and_replicates_are_those_of_least_squares_on_each_resample():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)) * [1, 10, 0.1] + 5, rng.normal(size=40)
    found = fit_slopes(x, y, resamples=20, seed=4)
    spread = x.std(axis=0)
    np.testing.assert_allclose(found.values, least_squares(x, y) * spread)
    for counts, replicate in zip(draw_counts(40, resamples=20, seed=4), found.replicates, strict=True):
        rows = np.repeat(np.arange(40), counts)
        np.testing.assert_allclose(replicate, least_squares(x[rows], y[rows]) * spread, rtol=1e-6)


def test_a_known_dependence_is_found_and_others_are_not():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 3))
    y = 0.5 * x[:, 1] + rng.normal(size=400)
    found = fit_slopes(x, y, resamples=999)
    assert found.interval(1).low > 0.3
    p_values = found.p_values()
    assert p_values[1] == pytest.approx(0.002) and min(p_values[0], p_values[2]) > 0.01


def test_copies_of_an_image_count_as_one_when_they_are_resampled_together():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(30, 2)), rng.normal(size=30)
    copies = np.repeat(np.arange(30), 8)
    alone = fit_slopes(x, y, resamples=400)
    together = fit_slopes(x[copies], y[copies], clusters=copies, resamples=400)
    apart = fit_slopes(x[copies], y[copies], resamples=400)
    np.testing.assert_allclose(together.replicates, alone.replicates)
    assert np.ptp(apart.replicates, axis=0).max() < 0.6 * np.ptp(alone.replicates, axis=0).min()


def test_images_without_a_value_are_left_out_and_what_is_undetermined_is_nan():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(20, 2)), rng.normal(size=20)
    x[3, 0], y[5] = np.nan, np.nan
    kept = np.delete(np.arange(20), [3, 5])
    found = fit_slopes(x, y, resamples=5)
    assert found.n == 18
    np.testing.assert_allclose(found.values, fit_slopes(x[kept], y[kept], resamples=5).values)
    x[:, 1] = 7.0
    constant, alone = fit_slopes(x, y, resamples=5), fit_slopes(x[:, :1], y, resamples=5)
    for found, expected in ((constant.values, alone.values), (constant.replicates, alone.replicates)):
        np.testing.assert_allclose(found[..., 0], expected[..., 0])
        assert np.isnan(found[..., 1]).all()
    assert np.isnan(fit_slopes(x[:3], y[:3], resamples=5).p_values()).all()


def test_of_predictors_that_follow_from_each_other_none_has_a_slope_and_the_others_keep_theirs():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(30, 2)), rng.normal(size=30)
    doubled = np.column_stack([x, 3 - 2 * x[:, 1]])
    found, expected = fit_slopes(doubled, y, resamples=5), fit_slopes(x, y, resamples=5)
    np.testing.assert_allclose(found.values, [expected.values[0], np.nan, np.nan])
    np.testing.assert_allclose(found.replicates[:, 0], expected.replicates[:, 0])
    assert np.isnan(found.p_values()[1:]).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_as_its_steps_do(p_values):
    adjusted = holm(p_values)
    for level in (0.01, 0.05, 0.2):
        rejected = np.zeros(len(p_values), dtype=bool)
        for place, index in enumerate(np.argsort(p_values, kind="stable")):
            if p_values[index] * (len(p_values) - place) > level:
                break
            rejected[index] = True
        np.testing.assert_array_equal(adjusted <= level, rejected)


def test_holm_counts_only_what_was_tested():
    np.testing.assert_allclose(holm([0.01, np.nan, 0.04]), [0.02, np.nan, 0.04])


def test_a_p_value_is_no_smaller_than_the_resamples_can_show():
    replicates = np.column_stack([np.ones(99), np.full(99, np.nan), np.linspace(-1, 1, 99)])
    np.testing.assert_allclose(bootstrap_p_values(replicates, 50), [0.02, np.nan, 1.0])


def test_a_p_value_is_no_smaller_than_the_chance_that_all_signs_are_alike():
    replicates = np.ones((3999, 1))
    for n in (2, 3, 5):
        signs = np.array(list(itertools.product([-1, 1], repeat=n)))
        alike = np.mean(np.abs(signs.sum(axis=1)) == n)
        np.testing.assert_allclose(bootstrap_p_values(replicates, n), alike)
    assert bootstrap_p_values(replicates, 20) == pytest.approx(2 / 4000)

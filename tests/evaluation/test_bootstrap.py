"""Bootstrap intervals cover as often as they say, and say so when there is nothing to cover."""

import numpy as np
import pytest

from semrsm_dist.errors import ConfigError
from semrsm_dist.evaluation.agreement import agreement
from semrsm_dist.evaluation.bootstrap import draw_counts, mean_interval, percentile_interval
from semrsm_dist.evaluation.entries import Entries


def test_intervals_of_the_mean_cover_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        interval = mean_interval(generator.exponential(size=60), resamples=300, seed=seed, confidence=0.9)
        covered += interval.low <= 1.0 <= interval.high
    assert 0.82 <= covered / 200 <= 0.96  # a skewed population: a little below 0.9


def test_counts_draw_as_many_images_as_there_are():
    counts = draw_counts(7, resamples=50, seed=1)
    assert counts.shape == (50, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert counts.std() > 0


def test_the_same_seed_gives_the_same_interval():
    values = np.arange(20.0)
    assert mean_interval(values, seed=4) == mean_interval(values, seed=4)
    assert mean_interval(values, seed=4) != mean_interval(values, seed=5)


def test_values_that_are_not_there_are_left_out():
    values = np.array([1.0, np.nan, 3.0])
    assert mean_interval(values, seed=0) == mean_interval([1.0, 3.0], seed=0)
    assert np.isnan(mean_interval([np.nan], seed=0).estimate)


def test_one_image_or_one_group_of_images_has_no_interval():
    one, group = mean_interval([np.nan, 3.0]), mean_interval([1.0, 5.0], clusters=np.array([4, 4]))
    assert one.estimate == group.estimate == 3.0
    assert np.isnan([one.low, one.high, group.low, group.high]).all()


def test_the_mean_of_groups_is_resampled_group_by_group():
    values, clusters = np.array([1.0, 2.0, np.nan, 6.0, 7.0, 3.0]), np.array([5, 5, 5, 2, 9, 9])
    found = mean_interval(values, clusters=clusters, resamples=100, seed=3)
    groups, generator = [[6.0], [1.0, 2.0], [7.0, 3.0]], np.random.default_rng(3)
    means = [np.mean(np.concatenate([groups[i] for i in generator.integers(3, size=3)])) for _ in range(100)]
    assert found.estimate == pytest.approx(3.8)
    np.testing.assert_allclose([found.low, found.high], np.quantile(means, [0.025, 0.975]))
    singles = mean_interval(values, clusters=np.arange(6), resamples=100, seed=3)
    assert singles == mean_interval(values, resamples=100, seed=3)


def test_resamples_that_are_mostly_undefined_make_no_interval():
    assert np.isnan(percentile_interval(0.5, [0.5, 0.5, np.nan, np.nan, np.nan]).low)
    assert percentile_interval(0.5, [0.5, 0.5, np.nan, np.nan]).low == 0.5
    three = np.random.default_rng(0).normal(size=(2, 3, 3))
    x, y = three + three.transpose(0, 2, 1)
    found = agreement(Entries.of(x, y), ["pearson"], resamples=200)["pearson"]
    expected = np.corrcoef(x[np.triu_indices(3, 1)], y[np.triu_indices(3, 1)])[0, 1]
    assert found.value == pytest.approx(expected)  # all resamples with three different images give it again
    assert np.isnan([found.interval().low, found.interval().high]).all()


def test_an_interval_holds_the_middle_of_the_replicates():
    interval = percentile_interval(50.0, np.append(np.arange(101.0), np.nan), confidence=0.8)
    assert (interval.low, interval.high) == pytest.approx((10.0, 90.0))


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1.0])
def test_impossible_confidence_is_refused(confidence):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        percentile_interval(0.0, [1.0], confidence)


def test_a_bootstrap_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="at least one image"):
        draw_counts(0)

"""Bootstrap intervals cover as often as they say, and say so when there is nothing to cover."""

import numpy as np
import pytest

from semrsm_dist.errors import ConfigError
from semrsm_dist.evaluation.bootstrap import draw_counts, mean_interval, percentile_interval


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

"""Fits of costs, and the interval of a prediction."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from semrsm_dist.plan.estimate import LEAST_SPREAD, TileCost, fit_line, fit_parts, interval_factor

costs = st.floats(0, 100)


@given(costs, costs, st.lists(st.floats(1, 1e6), min_size=2, max_size=8, unique=True))
@example(0.0, 1.0, [2.0, 1.5, 818869.25])
def test_a_line_is_found_again(fixed, slope, sizes):
    line = fit_line(sizes, [fixed + slope * size for size in sizes])
    largest = max(sizes)
    assert line(largest) == pytest.approx(fixed + slope * largest, rel=1e-6, abs=1e-6)


def test_a_cost_never_falls_and_never_begins_below_zero():
    falling, below = fit_line([1, 2, 3], [3, 2, 1]), fit_line([1, 2, 3], [0, 2, 4])
    assert (falling.slope, falling.fixed) == (0, pytest.approx(2))
    assert (below.fixed, below.slope > 0) == (0, True)


def test_a_line_of_one_size_goes_through_the_mean_and_zero():
    assert fit_line([5, 5], [10, 20])(10) == 30
    assert fit_line([0], [3])(10) == 0


def test_tile_and_pair_costs_are_told_apart_whatever_their_size():
    pairs = np.array([[1, 100], [1, 4950], [1, 10_000], [1, 65_536]])
    found = fit_parts(pairs, pairs @ [3e-3, 2e-6])
    np.testing.assert_allclose(found, [3e-3, 2e-6], rtol=1e-6)
    assert TileCost(3e-3, 2e-6, 1e-5).seconds(2, 1000, 10) == pytest.approx(8.1e-3)


def test_an_amount_that_never_occurred_costs_nothing():
    assert fit_parts([(1, 0), (1, 0)], [2.0, 2.0]).tolist() == [pytest.approx(2.0), 0.0]


def test_the_interval_holds_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(2000):
        *trials, real = np.exp(0.2 * rng.standard_normal(5))
        centre, factor = np.exp(np.mean(np.log(trials))), interval_factor(trials, 0.9)
        hits += centre / factor < real < centre * factor
    assert 0.87 < hits / 2000 < 0.93


def test_trials_that_agree_by_chance_do_not_make_a_run_certain():
    assert interval_factor([1.0, 1.0, 1.0]) > 1 + 2 * LEAST_SPREAD

"""What a matching keeps, against loops over the definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.evaluation.bootstrap import draw_counts
from semrsm_dist.evaluation.match_quality import judge_matches, mean_over_pairs, pareto_front


def test_no_matching_keeps_nothing_and_the_best_keeps_all():
    identity, optimum, norms = np.array([[1.0, -3.0]]), np.array([[2.0, -1.0]]), np.full((1, 2), 4.0)
    nothing, everything = (judge_matches(value, identity, optimum, norms) for value in (identity, optimum))
    np.testing.assert_array_equal(nothing.share, [[0.0, 0.0]])
    np.testing.assert_array_equal(everything.share, [[1.0, 1.0]])
    np.testing.assert_array_equal(nothing.loss, [[0.25, 0.5]])
    np.testing.assert_array_equal(nothing.ratio, [[0.5, np.nan]])  # a ratio to a negative optimum misleads


def test_shares_are_negative_below_no_matching():
    assert judge_matches([[0.0]], [[1.0]], [[2.0]], [[4.0]]).share == [[-1.0]]


@pytest.mark.parametrize(
    ("identity", "optimum", "norms", "accuracy"),
    [(2.0, 2.0, 4.0, 0.0), (0.0, 0.0, 0.0, 0.0), (2.0, 2.0 + 1e-12, 4.0, 0.0), (2.0, 2.001, 4.0, 1e-3)],
)
def test_a_gain_within_the_accuracy_is_undefined(identity, optimum, norms, accuracy):
    assert np.isnan(judge_matches([[identity]], [[identity]], [[optimum]], [[norms]], accuracy).share)


def test_without_a_norm_nothing_is_defined():
    quality = judge_matches([[0.0]], [[0.0]], [[0.0]], [[0.0]])
    assert np.isnan([quality.ratio, quality.share, quality.loss]).all()


def test_pairs_are_weighted_by_both_of_their_images():
    values = np.array([[1.0, 2.0, np.nan], [4.0, np.nan, 6.0]])
    found = mean_over_pairs(values, resamples=300, seed=5)
    rows, columns = draw_counts(2, resamples=300, seed=5), draw_counts(3, resamples=300, seed=6)
    means = []
    for r, c in zip(rows, columns, strict=True):
        drawn = [
            values[i, j]
            for i in np.repeat([0, 1], r)
            for j in np.repeat([0, 1, 2], c)
            if not np.isnan(values[i, j])
        ]
        means.append(np.mean(drawn) if drawn else np.nan)
    assert found.estimate == pytest.approx(3.25)
    assert (found.low, found.high) == pytest.approx(tuple(np.nanquantile(means, [0.025, 0.975])))


def test_the_mean_of_nothing_is_undefined():
    found = mean_over_pairs(np.full((2, 2), np.nan))
    assert np.isnan([found.estimate, found.low, found.high]).all()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_front_holds_what_nothing_beats(candidates):
    cost, quality = np.array(candidates, float).T
    front = pareto_front(cost, quality)
    for index, (own_cost, own_quality) in enumerate(candidates):
        beaten = any(
            c <= own_cost and q >= own_quality and (c, q) != (own_cost, own_quality) for c, q in candidates
        )
        assert front[index] == (not beaten)


def test_undefined_candidates_are_not_on_the_front_and_beat_nothing():
    front = pareto_front([1.0, 0.5, np.nan], [0.5, np.nan, 0.9])
    assert front.tolist() == [True, False, False]

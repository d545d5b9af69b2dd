"""Pairs that belong together against others: agreement with scikit-learn and NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from semrsm_dist.errors import InputError
from semrsm_dist.evaluation.bootstrap import draw_counts
from semrsm_dist.evaluation.contrast import contrast_pairs

VALUES = st.sampled_from([np.nan, -1.0, 0.0, 0.25, 0.5, 1.0]) | st.floats(-2, 2)


def split(matrix):
    same, different = np.diagonal(matrix), matrix[~np.eye(len(matrix), dtype=bool)]
    return same[~np.isnan(same)], different[~np.isnan(different)]


@settings(max_examples=150, deadline=None)
@given(matrix=st.integers(2, 6).flatmap(lambda n: arrays(float, (n, n), elements=VALUES)))
def test_estimates_are_those_of_numpy_and_scikit_learn(matrix):
    found = contrast_pairs(matrix, draw_counts(len(matrix), resamples=3))
    same, different = split(matrix)
    for spread, values in ((found.same, same), (found.different, different)):
        assert spread.n_pairs == values.size
        expected = np.quantile(values, [0.25, 0.5, 0.75]) if values.size else [np.nan] * 3
        got = [spread.lower_quartile, spread.median.estimate, spread.upper_quartile]
        np.testing.assert_allclose(got, expected, atol=1e-12)
    if same.size and different.size:
        truth = np.repeat([1, 0], [same.size, different.size])
        assert found.auc.estimate == pytest.approx(roc_auc_score(truth, np.concatenate([same, different])))
    else:
        assert np.isnan(found.auc.estimate)


@settings(max_examples=50, deadline=None)
@given(
    matrix=st.integers(2, 5).flatmap(lambda n: arrays(float, (n, n), elements=VALUES)),
    seed=st.integers(0, 2**32),
)
def test_a_resample_is_the_matrix_of_the_images_drawn(matrix, seed):
    """With one resample both ends of an interval are its value: that of copies written out one by one."""
    n = len(matrix)
    counts = draw_counts(n, resamples=1, seed=seed)
    found = contrast_pairs(matrix, counts)
    images = np.repeat(np.arange(n), counts[0])
    written_out = matrix[np.ix_(images, images)]
    same = written_out.diagonal()
    different = written_out[images[:, None] != images]
    for interval, values in ((found.same.median, same), (found.different.median, different)):
        defined = values[~np.isnan(values)]
        expected = np.median(defined) if defined.size else np.nan
        np.testing.assert_allclose([interval.low, interval.high], expected, atol=1e-12)
    wins = [np.sign(a - b) / 2 + 0.5 for a in same for b in different if not np.isnan(a + b)]
    expected = np.mean(wins) if wins else np.nan
    np.testing.assert_allclose([found.auc.low, found.auc.high], expected, atol=1e-12)


def test_the_auc_does_not_depend_on_the_scale_of_similarity():
    matrix = np.random.default_rng(0).normal(size=(20, 20)) + np.eye(20)
    counts = draw_counts(20, resamples=50)
    assert contrast_pairs(matrix, counts).auc == contrast_pairs(np.exp(3 * matrix), counts).auc


def test_intervals_narrow_with_more_images():
    rng = np.random.default_rng(1)
    widths = []
    for n in (10, 160):
        auc = contrast_pairs(rng.normal(size=(n, n)) + np.eye(n), draw_counts(n, resamples=200)).auc
        assert auc.low < auc.estimate < auc.high
        widths.append(auc.high - auc.low)
    assert widths[1] < 0.5 * widths[0]


def test_a_matrix_of_other_images_is_refused():
    with pytest.raises(InputError, match="each of 3 images"):
        contrast_pairs(np.zeros((3, 4)), draw_counts(3, resamples=1))

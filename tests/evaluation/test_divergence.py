"""The Jensen-Shannon divergence agrees with SciPy, stays within its bounds, and does not depend on blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon

from semrsm_dist.errors import InputError
from semrsm_dist.evaluation import divergence
from semrsm_dist.evaluation.divergence import (
    LARGEST,
    outputs_from_probabilities,
    outputs_of_classes,
    outputs_of_labels,
)


def softmax_rows(n, k, scale=3.0, seed=0):
    z = np.exp(scale * np.random.default_rng(seed).normal(size=(n, k)))
    return z / z.sum(axis=1, keepdims=True)


def divergences(p):
    return outputs_from_probabilities(p).divergence_rows()(slice(0, len(p)))


def test_it_is_the_square_of_scipys_distance():
    p = softmax_rows(7, 5)
    expected = [[jensenshannon(a, b) ** 2 for b in p] for a in p]
    np.testing.assert_allclose(divergences(p), expected, rtol=1e-9, atol=1e-15)


def test_equal_rows_diverge_by_zero_and_disjoint_rows_by_ln_2():
    p = softmax_rows(20, 1000, scale=8.0)
    assert (np.diagonal(divergences(p)) == 0).all()
    assert divergences(np.eye(3))[0, 1] == LARGEST == np.log(2)


@given(arrays(np.float64, (6, 4), elements=st.floats(0, 1)).filter(lambda p: (p.sum(axis=1) > 0.1).all()))
def test_it_is_symmetric_and_bounded_and_its_root_is_a_metric(weights):
    p = weights / weights.sum(axis=1, keepdims=True)
    d = divergences(p)
    np.testing.assert_allclose(d, d.T, atol=1e-15)
    assert (d >= 0).all() and (d <= LARGEST).all()
    distance = np.sqrt(d)  # the root of rounding, 1e-16, is 1e-8
    assert (distance[:, :, None] <= distance[:, None, :] + distance[None, :, :].swapaxes(1, 2) + 1e-7).all()


def test_blocks_do_not_change_a_bit(monkeypatch):
    p = softmax_rows(30, 6)
    whole = divergences(p)
    monkeypatch.setattr(divergence, "TERMS_AT_ONCE", 40)
    assert (divergences(p) == whole).all()
    rows = outputs_from_probabilities(p).divergence_rows()
    np.testing.assert_allclose(np.concatenate([rows(slice(0, 11)), rows(slice(11, 30))]), whole, atol=1e-15)


def test_labels_diverge_by_the_mean_over_labels_of_yes_and_no():
    logits = np.random.default_rng(0).normal(scale=4, size=(5, 3))
    yes = 1 / (1 + np.exp(-logits))
    expected = np.mean(
        [
            [[jensenshannon([a, 1 - a], [b, 1 - b]) ** 2 for b in yes[:, label]] for a in yes[:, label]]
            for label in range(3)
        ],
        axis=0,
    )
    np.testing.assert_allclose(outputs_of_labels(logits).divergence_rows()(slice(None)), expected, atol=1e-12)


def test_one_label_is_a_classifier_of_two():
    logits = np.random.default_rng(0).normal(size=(6, 1))
    as_classes = outputs_of_classes(np.hstack([logits, np.zeros_like(logits)]))
    np.testing.assert_allclose(
        outputs_of_labels(logits).divergence_rows()(slice(None)),
        as_classes.divergence_rows()(slice(None)),
        atol=1e-14,
    )


def test_huge_logits_neither_overflow_nor_leave_the_bounds():
    logits = np.array([[800.0, 0.0], [-800.0, 0.0]], dtype=np.float32)
    for outputs in (outputs_of_classes(logits), outputs_of_labels(logits[:, :1])):
        d = outputs.divergence_rows()(slice(None))
        np.testing.assert_allclose(d, [[0, LARGEST], [LARGEST, 0]])


def test_probabilities_of_half_precision_are_divided_by_their_sum():
    p = softmax_rows(4, 300).astype(np.float16)
    np.testing.assert_allclose(outputs_from_probabilities(p).probabilities.sum(axis=1), 1)


@pytest.mark.parametrize(
    "bad",
    [np.ones(3), np.ones((2, 2)), [[1.5, -0.5]], [[np.nan, 1.0]], np.eye(2, dtype=int), np.empty((0, 3))],
)
def test_what_are_no_probabilities_is_refused(bad):
    with pytest.raises(InputError, match="probabilities"):
        outputs_from_probabilities(bad)

"""Partial matching against SciPy on augmented problems, in which dummies take what is left unmatched."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from semrsm_dist.matching.assignment.partial import match_partially, pack_unit_images

SHARES = np.array([0.3, 0.5, 1.0])
THRESHOLDS = np.array([0.0, 0.3, 2.0])
FORBIDDEN = -1e6


def most(affinity):
    return affinity[linear_sum_assignment(affinity, maximize=True)].sum()


def best_pairs(affinity, k):
    """Return the most that k pairs of tokens are worth: dummies take all other tokens."""
    n_i, n_j = affinity.shape
    augmented = np.zeros((n_i + n_j - k, n_j + n_i - k))
    augmented[:n_i, :n_j] = affinity
    augmented[n_i:, n_j:] = FORBIDDEN
    return most(augmented)


def best_above(affinity, lengths, threshold):
    """Return the most that pairs have above a threshold: every token has a dummy of its own."""
    n_i, n_j = affinity.shape
    augmented = np.zeros((n_i + n_j, n_i + n_j))
    augmented[:n_i, :n_j] = affinity - threshold * np.outer(*lengths)
    return most(augmented)


def kept_of_best(affinity, share):
    """Return the largest matches of the best permutation, a share of them."""
    matched = np.sort(affinity[linear_sum_assignment(affinity, maximize=True)])
    return matched[matched.size - math.ceil(share * matched.size) :].sum()


def draw_images(seed, counts, n_tokens, n_channels=5, scale=1.0):
    rng = np.random.default_rng(seed)
    z = (scale * rng.normal(size=(len(counts), n_tokens, n_channels))).astype(np.float32)
    z[np.arange(n_tokens) >= np.array(counts)[:, None]] = 0
    return z, np.array(counts)


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 20), min_size=2, max_size=4),
    st.sampled_from([1e-5, 1e-3, 0.05]),
    st.sampled_from([1.0, 1e-20, 1e15]),
)
def test_scores_are_within_their_gaps_of_the_augmented_problems(seed, counts, tolerance, scale):
    z, counts = draw_images(seed, counts, 20, scale=scale)
    half = len(counts) // 2
    left, right = pack_unit_images(z[:half], counts[:half]), pack_unit_images(z[half:], counts[half:])
    found = match_partially(left, right, SHARES, THRESHOLDS, tolerance)
    unit = [
        image[:n].astype(float) / np.linalg.norm(image.astype(float))
        for image, n in zip(z, counts, strict=True)
    ]
    for r, one in enumerate(unit[:half]):
        for c, other in enumerate(unit[half:]):
            affinity = one @ other.T
            lengths = np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)
            for k, share in enumerate(SHARES):
                best = best_pairs(affinity, math.ceil(share * min(affinity.shape)))
                score, gap = found.scores[k, r, c], found.gaps[k, r, c]
                assert score - 1e-5 <= best <= score + gap
                if share == 1:
                    assert gap <= tolerance + 3e-5
                if tolerance == 1e-5:
                    assert score == pytest.approx(kept_of_best(affinity, share), abs=1e-3)
            for k, threshold in enumerate(THRESHOLDS, len(SHARES)):
                best = best_above(affinity, lengths, threshold)
                score, gap = found.scores[k, r, c], found.gaps[k, r, c]
                assert score - 1e-5 <= best <= score + gap
                assert gap <= tolerance + 3e-5


def test_matches_of_an_image_with_itself_and_of_a_set_with_itself():
    z, counts = draw_images(0, [9] * 5, 9)
    images = pack_unit_images(z, counts)
    once = match_partially(images, images, SHARES, THRESHOLDS, 1e-4)
    again = match_partially(images, pack_unit_images(z, counts), SHARES, THRESHOLDS, 1e-4)
    np.testing.assert_allclose(once.scores, again.scores, atol=2e-4)
    np.testing.assert_array_equal(once.scores, once.scores.transpose(0, 2, 1))
    np.testing.assert_allclose(np.diagonal(once.scores[2]), 1.0, atol=1e-6)  # all tokens
    np.testing.assert_allclose(np.diagonal(once.scores[4]), 0.7, atol=1e-6)  # each above a threshold of .3
    assert not once.scores[5].any()  # no cosine is above 2


def test_equal_tokens_and_prices_that_do_not_settle_are_finished_exactly():
    z = np.zeros((3, 40, 4), np.float32)
    z[0], z[1, :, 1], z[2, ::2, 0] = (
        1,
        np.arange(40) % 2 * 2 - 1,
        1,
    )  # all equal, two kinds, half of them zero
    images = pack_unit_images(z, np.full(3, 40))
    found = match_partially(images, images, SHARES, THRESHOLDS, 1e-5)
    unit = z.astype(float) / np.linalg.norm(z.astype(float), axis=(1, 2), keepdims=True)
    for r in range(3):
        for c in range(3):
            affinity = unit[r] @ unit[c].T
            lengths = np.linalg.norm(unit[r], axis=1), np.linalg.norm(unit[c], axis=1)
            for k, share in enumerate(SHARES):
                assert found.scores[k, r, c] == pytest.approx(kept_of_best(affinity, share), abs=1e-4)
            for k, threshold in enumerate(THRESHOLDS, len(SHARES)):
                assert found.scores[k, r, c] == pytest.approx(
                    best_above(affinity, lengths, threshold), abs=1e-4
                )


def test_an_image_of_zeros_has_no_score():
    z, counts = draw_images(0, [4, 4], 4)
    z[1] = 0
    images = pack_unit_images(z, counts)
    found = match_partially(images, images, SHARES, THRESHOLDS, 1e-3)
    for values in found:
        assert np.isnan(values).all(axis=0).tolist() == [[False, True], [True, True]]

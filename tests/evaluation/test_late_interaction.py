"""MaxSim and Chamfer against a loop over tokens, and what holds for any tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment

from semrsm_dist.evaluation.late_interaction import chamfer, max_similarities
from semrsm_dist.evaluation.tokens import centred_tokens, unit_tokens

numbers = st.floats(-4, 4, width=32)


def token_sets(n_images, n_tokens, n_channels=3):
    return hnp.arrays(np.float32, (n_images, n_tokens, n_channels), elements=numbers)


def max_similarity(query, image):
    """Return MaxSim of one pair, written from the definition."""
    return np.mean([max(float(q @ d) for d in image) for q in query])


@given(token_sets(3, 4), token_sets(2, 5), st.sampled_from([1, 200, 10**6]))
def test_it_is_the_loop_over_tokens_whatever_is_held_at_once(queries, database, product_bytes):
    forward, backward = max_similarities(queries, database, product_bytes=product_bytes)
    for i, query in enumerate(queries.astype(np.float64)):
        for j, image in enumerate(database.astype(np.float64)):
            assert forward[i, j] == pytest.approx(max_similarity(query, image), abs=1e-5)
            assert backward[i, j] == pytest.approx(max_similarity(image, query), abs=1e-5)
    np.testing.assert_allclose(chamfer(forward, backward), (forward + backward) / 2)


@given(token_sets(2, 5), token_sets(2, 5))
def test_it_is_at_least_every_matching_and_so_at_least_position_by_position(queries, database):
    directions = max_similarities(queries, database)
    for i, query in enumerate(queries):
        for j, image in enumerate(database):
            affinities = (query @ image.T).astype(np.float64)
            rows, columns = linear_sum_assignment(affinities, maximize=True)
            matched = affinities[rows, columns].mean()
            for values in directions:
                assert values[i, j] >= matched - 1e-4
                assert values[i, j] >= np.trace(affinities) / 5 - 1e-4


@given(token_sets(2, 6), st.permutations(range(6)), st.permutations(range(6)))
def test_the_order_of_tokens_does_not_matter(z, order, other):
    plain = max_similarities(z, z)
    for values, shuffled in zip(plain, max_similarities(z[:, order], z[:, other]), strict=True):
        np.testing.assert_allclose(shuffled, values, atol=1e-5)


@given(token_sets(2, 4), st.integers(-60, 60))
def test_unit_tokens_do_not_know_the_scale_of_an_image(z, exponent):
    unit = unit_tokens(z)
    norms = np.linalg.norm(unit.astype(np.float64), axis=-1)
    is_zero = ~z.any(axis=-1)
    assert (norms[is_zero] == 0).all()
    np.testing.assert_allclose(norms[~is_zero], 1, rtol=1e-6)
    np.testing.assert_allclose(unit_tokens(np.ldexp(z.astype(np.float64), exponent)), unit, rtol=1e-6)


def test_unit_tokens_of_a_float16_store_are_what_float64_says_and_leave_it_as_it_is():
    z = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float16)
    before = z.copy()
    expected = z.astype(np.float64) / np.linalg.norm(z.astype(np.float64), axis=-1, keepdims=True)
    np.testing.assert_allclose(unit_tokens(z), expected, rtol=1e-6)
    np.testing.assert_array_equal(z, before)
    wide = z.astype(np.float64)
    unit_tokens(wide)
    np.testing.assert_array_equal(wide, before)


def test_an_image_finds_itself():
    z = unit_tokens(np.random.default_rng(0).normal(size=(6, 9, 5)))
    forward, backward = max_similarities(z, z)
    np.testing.assert_allclose(np.diag(forward), 1, rtol=1e-6)
    assert (forward.argmax(axis=1) == np.arange(6)).all()
    np.testing.assert_allclose(forward, backward.T, rtol=1e-6)


def test_centred_tokens_have_no_mean_left():
    z = np.random.default_rng(0).normal(size=(4, 6, 3)).astype(np.float32) + 5
    np.testing.assert_allclose(centred_tokens(z, z.mean(axis=(0, 1))).mean(axis=(0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(centred_tokens(z, z.mean(axis=1, keepdims=True)).mean(axis=1), 0, atol=1e-5)


def test_what_is_beyond_an_images_tokens_takes_no_part():
    rng = np.random.default_rng(1)
    left, right = rng.normal(size=(4, 5, 3)), rng.normal(size=(3, 6, 3))
    counts = np.array([5, 1, 3, 4]), np.array([6, 2, 5])
    found = max_similarities(left, right, token_counts=counts, product_bytes=300)
    for i, a in enumerate(counts[0]):
        for j, b in enumerate(counts[1]):
            expected = max_similarities(left[i : i + 1, :a], right[j : j + 1, :b])
            np.testing.assert_allclose([f[i, j] for f in found], [f[0, 0] for f in expected], rtol=1e-5)

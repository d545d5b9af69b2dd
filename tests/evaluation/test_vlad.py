"""VLAD against a loop over tokens, and what holds for any tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.errors import ConfigError
from semrsm_dist.evaluation.pooling import fit_centroids, vlad
from semrsm_dist.evaluation.tokens import unit_tokens


def expected_vlad(image, centroids):
    """Return VLAD of one image, token by token, from its definition."""
    sums = np.zeros_like(centroids)
    for token in image.astype(np.float64):
        nearest = min(range(len(centroids)), key=lambda k: np.sum((token - centroids[k]) ** 2))
        sums[nearest] += token - centroids[nearest]
    for k, total in enumerate(sums):
        if np.linalg.norm(total) > 1e-9:
            sums[k] = total / np.linalg.norm(total)
        else:
            sums[k] = 0
    norm = np.linalg.norm(sums)
    return (sums / norm if norm else sums).ravel()


def draw(seed, n_images=3, n_tokens=7, n_channels=4, n_centroids=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_images, n_tokens, n_channels)), rng.normal(size=(n_centroids, n_channels))


@given(st.integers(0, 2**31))
def test_it_is_the_loop_over_tokens(seed):
    z, centroids = draw(seed)
    vectors = vlad(z, centroids)
    assert vectors.shape == (3, 12)
    for vector, image in zip(vectors, z, strict=True):
        np.testing.assert_allclose(vector, expected_vlad(image, centroids), atol=1e-6)
        assert np.linalg.norm(vector) == pytest.approx(1, rel=1e-6)


@given(st.integers(0, 2**31), st.permutations(range(7)))
def test_the_order_of_tokens_does_not_matter(seed, order):
    z, centroids = draw(seed)
    np.testing.assert_allclose(vlad(z[:, order], centroids), vlad(z, centroids), atol=1e-5)


@given(st.integers(0, 2**31), st.floats(1e-3, 1e3))
def test_of_unit_tokens_it_does_not_know_the_scale_of_an_image(seed, scale):
    z, centroids = draw(seed)
    np.testing.assert_allclose(
        vlad(unit_tokens(z * scale), centroids), vlad(unit_tokens(z), centroids), atol=1e-4
    )


def test_tokens_on_their_centroids_leave_nothing():
    _, centroids = draw(0)
    assert not vlad(centroids[None, [0, 1, 1, 2]], centroids).any()
    beside = np.nextafter(centroids, 9)[None]  # rounding alone would pass for a direction
    assert not vlad(beside, centroids).any()


def test_centroids_are_the_centres_of_clusters_and_those_of_their_seed():
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10]])
    tokens = np.concatenate([centre + 0.1 * rng.normal(size=(50, 2)) for centre in centres])
    found = fit_centroids(tokens, 3, seed=1)
    means = tokens.reshape(3, 50, 2).mean(axis=1)
    order = np.argmin(np.linalg.norm(found[:, None] - means, axis=2), axis=0)
    np.testing.assert_allclose(found[order], means, atol=1e-9)
    np.testing.assert_array_equal(fit_centroids(tokens, 7, seed=1), fit_centroids(tokens, 7, seed=1))
    assert not np.array_equal(fit_centroids(tokens, 7, seed=1), fit_centroids(tokens, 7, seed=2))


@pytest.mark.filterwarnings("error")
def test_there_are_no_more_centroids_than_different_tokens():
    assert len(fit_centroids(np.repeat(np.eye(3), 5, axis=0), 16, seed=0)) == 3


def test_no_centroid_is_refused():
    with pytest.raises(ConfigError, match="at least one centroid"):
        fit_centroids(np.eye(3), 0, seed=0)


def test_what_is_beyond_an_images_tokens_takes_no_part():
    z, counts = np.random.default_rng(1).normal(size=(4, 5, 3)), np.array([5, 1, 3, 4])
    centroids = np.random.default_rng(2).normal(size=(2, 3))
    expected = [vlad(image[None, :count], centroids)[0] for image, count in zip(z, counts, strict=True)]
    np.testing.assert_array_equal(vlad(z, centroids, counts), expected)

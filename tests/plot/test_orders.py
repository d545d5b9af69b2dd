"""Orders of the images: permutations that bring like to like, of few images and of many."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.plot import orders
from semrsm_dist.plot.orders import order_by_label, order_by_similarity


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=2).map(tuple), max_size=20))
def test_images_are_sorted_by_their_labels(labels):
    order = order_by_label(labels)
    assert sorted(order) == list(range(len(labels)))
    keys = [(len(labels[image]), labels[image], image) for image in order]
    assert keys == sorted(keys)


def clustered(n_images):
    """Return the similarities of images of four clusters, in which they come by turns."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 16))
    z = centres[np.arange(n_images) % 4] + 0.3 * rng.normal(size=(n_images, 16))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return z @ z.T


@pytest.mark.parametrize("most", [200, 20], ids=["optimal leaf order", "cluster means"])
def test_images_of_a_cluster_are_together(monkeypatch, most):
    monkeypatch.setattr(orders, "MOST_LEAVES", most)
    monkeypatch.setattr(orders, "SAMPLE", 40)
    monkeypatch.setattr(orders, "BLOCK", 16)
    similarity = clustered(120)
    order = order_by_similarity(lambda a, b: similarity[np.ix_(a, b)], 120)
    assert sorted(order) == list(range(120))
    changes = np.count_nonzero(np.diff(order % 4))
    assert changes == 3


def test_the_leaves_are_in_the_optimal_order():
    places = np.random.default_rng(1).permutation(30)
    similarity = -np.abs(places[:, None] - places).astype(float)
    order = order_by_similarity(lambda a, b: similarity[np.ix_(a, b)], 30)
    assert abs(np.diff(places[order])).sum() == 29  # along the line that they lie on


@pytest.mark.parametrize("n_images", [1, 2, 3])
def test_undefined_similarities_and_few_images_have_an_order(n_images):
    order = order_by_similarity(lambda a, b: np.full((a.size, b.size), np.nan), n_images)
    assert sorted(order) == list(range(n_images))

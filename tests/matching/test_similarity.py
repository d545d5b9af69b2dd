"""The functions for arrays in memory."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.matching.similarity import match, similarity_matrix


def images(n_images, seed=0):
    return np.cumsum(np.random.default_rng(seed).normal(size=(n_images, 20, 6)), axis=1)


def reference(z, y, kernel, sigma=None, semantic=True):
    """Follow the definitions of the paper, pair by pair."""
    aligned = np.empty((len(z), len(y), *z.shape[1:]))
    for i, z_i in enumerate(z):
        for j, z_j in enumerate(y):
            order = linear_sum_assignment(z_i @ z_j.T, maximize=True)[1] if semantic else np.arange(len(z_j))
            aligned[i, j] = z_j[order]
    if kernel == "linear":
        return np.einsum("isc,ijsc->ij", z, aligned)
    if kernel == "cosine":
        norms = np.outer(np.linalg.norm(z, axis=(1, 2)), np.linalg.norm(y, axis=(1, 2)))
        return np.einsum("isc,ijsc->ij", z, aligned) / norms
    distances = np.sum((z[:, None] - aligned) ** 2, axis=(2, 3))
    sigma = sigma or np.sqrt(np.median(distances[distances > 1e-9]))
    return np.exp(-distances / (2 * sigma**2))


@pytest.mark.parametrize("kernel", ("linear", "cosine", "rbf"))
@pytest.mark.parametrize("semantic", (True, False))
def test_similarities_follow_the_definitions(kernel, semantic):
    z, y = images(6), images(4, seed=1)
    kind = "semantic" if semantic else "spatio-semantic"
    options = {"kernel": kernel, "kind": kind, "tolerance": 0.0}
    for other in (None, y):
        expected = reference(z, z if other is None else other, kernel, semantic=semantic)
        found = similarity_matrix(z, other, **options)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_a_given_sigma_is_used():
    z = images(4)
    found = similarity_matrix(z, kernel="rbf", sigma=3.0, matcher="hungarian")
    np.testing.assert_allclose(found, reference(z, z, "rbf", 3.0), rtol=1e-9)


def test_workers_change_no_bit():
    z = images(23).astype(np.float32)
    one = similarity_matrix(z, workers=1)
    np.testing.assert_array_equal(one, similarity_matrix(z, workers=3))
    np.testing.assert_array_equal(one, one.T)
    np.testing.assert_allclose(np.diag(one), 1.0, rtol=1e-15)


def test_one_image_and_one_token_are_enough():
    np.testing.assert_allclose(similarity_matrix(np.ones((1, 1, 1))), [[1.0]])


def test_a_zero_representation_has_no_cosine():
    z = images(3)
    z[1] = 0.0
    found = similarity_matrix(z)
    assert np.isnan(found[1]).all()
    assert np.isnan(found[:, 1]).all()
    assert np.isfinite(found[np.ix_([0, 2], [0, 2])]).all()


def test_match_is_the_matcher_of_that_name():
    z = images(2)
    found = match(*z, matcher="batch-optimal", window=4)
    assert found.matcher == "batch-optimal"
    assert found.value <= match(*z, tolerance=0.0).value


def test_what_cannot_be_is_refused():
    z = images(3)
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        similarity_matrix(z, kernel="cosin")
    with pytest.raises(ConfigError, match="unknown kind"):
        similarity_matrix(z, kind="semantics")
    with pytest.raises(ConfigError, match="width of the kernel 'rbf'"):
        similarity_matrix(z, sigma=1.0)
    with pytest.raises(ConfigError, match="workers must be"):
        similarity_matrix(z, workers=0)
    with pytest.raises(InputError, match="channels cannot be matched"):
        similarity_matrix(z, z[:, :, :2])
    z[2, 0, 0] = np.nan
    with pytest.raises(InputError, match="y: image 2"):
        similarity_matrix(images(2), z)


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8"])
def test_foreign_byte_orders_are_the_same_numbers(dtype):
    z = images(4).astype(dtype)
    native = z.astype(z.dtype.newbyteorder("="))
    assert np.array_equal(similarity_matrix(z), similarity_matrix(native))
    assert match(z[0], z[1]).value == match(native[0], native[1]).value

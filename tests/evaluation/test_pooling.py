"""Pooled vectors: cosine by blocks, and whitening as its definition says."""

import math

import numpy as np
import pytest

from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.evaluation import pooling
from semrsm_dist.evaluation.pooling import Whitening, cosine_rows, pool_tokens


def test_pooled_vectors_are_compared_by_their_angle():
    rng = np.random.default_rng(0)
    queries, database = rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=(5, 6)).astype(np.float32)
    database[2] = 0
    read = cosine_rows(queries * 1e-20, database * 1e15)
    found = np.concatenate([read(slice(0, 3)), read(slice(3, 4))])
    for i, query in enumerate(queries.astype(np.float64)):
        for j, vector in enumerate(database.astype(np.float64)):
            expected = query @ vector / np.linalg.norm(query) / np.linalg.norm(vector) if j != 2 else math.nan
            assert found[i, j] == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert not np.isnan(found[:, [0, 1, 3, 4]]).any()


def test_blocks_of_the_database_make_no_difference(monkeypatch, tmp_path):
    rng = np.random.default_rng(1)
    queries, database = rng.normal(size=(5, 3)), rng.normal(size=(11, 3)).astype(np.float32)
    whole = cosine_rows(queries, database)(slice(0, 5))
    np.save(tmp_path / "vectors.npy", database)
    monkeypatch.setattr(pooling, "COLUMNS_AT_ONCE", 4)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    np.testing.assert_allclose(cosine_rows(queries, mapped)(slice(1, 3)), whole[1:3], rtol=1e-12)


def test_whitened_vectors_of_the_fit_have_variance_one_and_no_correlation():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + 3
    whiten = Whitening(vectors, variance=1.0)
    assert whiten.n_components == 6
    whitened = whiten(vectors)
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(6), atol=1e-8)


def test_whitened_distances_are_those_of_mahalanobis():
    rng = np.random.default_rng(2)
    vectors, others = rng.normal(size=(60, 4)) + 1, rng.normal(size=(5, 4)) + 1
    unit, unit_others = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (vectors, others))
    inverse = np.linalg.inv(np.cov(unit.T))
    difference = unit_others[0] - unit_others[1]
    whitened = Whitening(vectors, variance=1.0)(others)
    assert np.linalg.norm(whitened[0] - whitened[1]) == pytest.approx(
        math.sqrt(difference @ inverse @ difference)
    )


def test_components_are_as_many_as_explain_the_variance():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(500, 8)) * [1, 1, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3] + np.eye(8)[7]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    variances = np.linalg.eigvalsh(np.cov(unit.T))[::-1]
    for share in (0.3, 0.9, 0.999999):
        needed = int(np.argmax(np.cumsum(variances) / variances.sum() >= share)) + 1
        assert Whitening(vectors, variance=share).n_components == needed


def test_whitening_does_not_know_the_scale_of_a_vector_and_leaves_zeros_undefined():
    vectors = np.random.default_rng(0).normal(size=(30, 5))
    whiten = Whitening(np.vstack([vectors, np.zeros(5)]))
    np.testing.assert_allclose(whiten(vectors * 7), Whitening(vectors)(vectors), rtol=1e-9)
    assert np.isnan(whiten(np.zeros((1, 5)))).all()


@pytest.mark.parametrize("vectors", [np.ones((5, 3)), np.zeros((4, 3)), np.eye(3)[:1]])
def test_whitening_of_nothing_that_differs_is_refused(vectors):
    with pytest.raises(InputError, match="two different vectors"):
        Whitening(vectors)


@pytest.mark.parametrize("variance", [0.0, 1.1, math.nan])
def test_an_impossible_share_of_variance_is_refused(variance):
    with pytest.raises(ConfigError, match="share of variance"):
        Whitening(np.eye(3), variance=variance)


def test_generalised_means_go_from_the_mean_to_the_maximum():
    z = np.abs(np.random.default_rng(0).normal(size=(3, 5, 4))).astype(np.float32)
    np.testing.assert_allclose(pool_tokens(z, power=1), z.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(
        pool_tokens(z, power=3), np.mean(z.astype(float) ** 3, axis=1) ** (1 / 3), rtol=1e-5
    )
    np.testing.assert_allclose(pool_tokens(z, power=200), z.max(axis=1), rtol=0.02)
    np.testing.assert_array_equal(pool_tokens(z, power=math.inf), z.max(axis=1))
    np.testing.assert_allclose(pool_tokens(z * 1e30, power=3), 1e30 * pool_tokens(z, power=3), rtol=1e-5)


def test_padding_is_not_pooled_and_signs_are_kept():
    z = np.full((2, 3, 1), -2.0, np.float32)
    z[1, 2] = 99.0
    counts = np.array([3, 2])
    for power in (1, 3, math.inf):
        np.testing.assert_allclose(pool_tokens(z, counts, power=power), -2.0, rtol=1e-6)


@pytest.mark.parametrize("power", [0.5, math.nan])
def test_a_power_below_one_is_refused(power):
    with pytest.raises(ConfigError, match="at least 1"):
        pool_tokens(np.ones((1, 2, 3), np.float32), power=power)

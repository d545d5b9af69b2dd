"""Kernels against their formulas on aligned representations."""

from __future__ import annotations

import numpy as np
import pytest

from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.matching.kernels import KERNELS, derive, kernel_gap, median_width, squared_distances

rng = np.random.default_rng(0)
Z = rng.normal(size=(6, 10))
Y = rng.normal(size=(4, 10))
N_Z, N_Y = np.sum(Z**2, axis=1), np.sum(Y**2, axis=1)
MATCHED = Z @ Y.T


def distances(a, b):
    return np.sum((a[:, None] - b[None]) ** 2, axis=2)


def test_kernels_follow_their_formulas():
    np.testing.assert_array_equal(derive("linear", MATCHED, N_Z, N_Y), MATCHED)
    lengths = np.outer(np.linalg.norm(Z, axis=1), np.linalg.norm(Y, axis=1))
    np.testing.assert_allclose(derive("cosine", MATCHED, N_Z, N_Y), MATCHED / lengths, rtol=1e-13)
    expected = np.exp(-distances(Z, Y) / (2 * 1.7**2))
    np.testing.assert_allclose(derive("rbf", MATCHED, N_Z, N_Y, sigma=1.7), expected, rtol=1e-12)


def test_the_median_counts_all_entries_of_a_rectangle():
    sigma = median_width(MATCHED, N_Z, N_Y)
    assert sigma == pytest.approx(np.sqrt(np.median(distances(Z, Y))))
    np.testing.assert_allclose(
        derive("rbf", MATCHED, N_Z, N_Y), derive("rbf", MATCHED, N_Z, N_Y, sigma), rtol=1e-15
    )


def test_the_median_of_a_symmetric_matrix_leaves_out_the_diagonal():
    gram = Z @ Z.T
    gram[np.diag_indices(6)] *= 1 - 1e-6  # as from coarser arithmetic: no distance to anything
    apart = distances(Z, Z)[~np.eye(6, dtype=bool)]
    assert median_width(gram, N_Z, N_Z) == pytest.approx(np.sqrt(np.median(apart)))


def test_the_median_leaves_out_equal_images_and_unsolved_pairs():
    twice = np.concatenate([Z[:1], Z])
    matched = twice @ Y.T
    matched[2, 1] = np.nan
    norms = np.sum(twice**2, axis=1)
    expected = np.sqrt(np.nanmedian(np.where(np.isnan(matched), np.nan, distances(twice, Y))))
    assert median_width(matched, norms, N_Y) == pytest.approx(expected)
    same = np.full((3, 3), 5.0)
    assert median_width(same, [5.0] * 3, [5.0] * 3) == 1.0
    np.testing.assert_array_equal(derive("rbf", same, [5.0] * 3, [5.0] * 3), 1.0)


def test_what_cancellation_leaves_of_a_zero_distance_is_zero():
    n = np.array([1.0e6])
    assert squared_distances([[1.0e6 * (1 - 1e-14)]], n, n)[0, 0] == 0.0
    assert squared_distances([[1.0e6 * (1 + 1e-14)]], n, n)[0, 0] == 0.0
    assert squared_distances([[1.0e6 * (1 - 1e-9)]], n, n)[0, 0] == pytest.approx(2e-3)


def test_a_zero_norm_has_no_cosine_and_nan_stays_nan():
    found = derive("cosine", [[0.0, 2.0], [0.0, np.nan]], [0.0, 4.0], [1.0, 4.0])
    np.testing.assert_array_equal(np.isnan(found), [[True, True], [False, True]])
    for kernel in KERNELS:
        assert np.isnan(derive(kernel, [[np.nan, 1.0]], [1.0], [1.0, 2.0], sigma=1.0)[0, 0])


def test_cosine_stays_within_one():
    assert derive("cosine", [[3.0 + 1e-15]], [3.0], [3.0])[0, 0] <= 1.0


@pytest.mark.parametrize("scale", (1e-300, 1e-60, 1.0, 1e60, 1e300))
def test_an_image_is_exactly_as_similar_to_itself_as_one(scale):
    norms = np.append(np.random.default_rng(1).random(2000) * scale, [0.0])
    found = np.array([derive("cosine", [[n]], [n], [n])[0, 0] for n in norms])
    np.testing.assert_array_equal(found[:-1], 1.0)
    assert np.isnan(found[-1])


@pytest.mark.parametrize("scale", (1e-60, 1.0, 1e60))
@pytest.mark.parametrize("kernel", ("cosine", "rbf"))
def test_scale_changes_neither_cosine_nor_rbf(kernel, scale):
    plain = derive(kernel, MATCHED, N_Z, N_Y)
    np.testing.assert_allclose(derive(kernel, MATCHED * scale, N_Z * scale, N_Y * scale), plain, rtol=1e-9)


@pytest.mark.parametrize("kernel", tuple(KERNELS))
def test_the_gap_is_that_of_the_bound(kernel):
    bound = MATCHED + rng.random(MATCHED.shape)
    gap = kernel_gap(kernel, MATCHED, bound, N_Z, N_Y)
    sigma = median_width(MATCHED, N_Z, N_Y)
    expected = derive(kernel, bound, N_Z, N_Y, sigma) - derive(kernel, MATCHED, N_Z, N_Y, sigma)
    np.testing.assert_allclose(gap, expected)
    assert (gap >= 0).all()


@pytest.mark.parametrize("kernel", tuple(KERNELS))
def test_blocks_make_the_whole(kernel):
    whole = derive(kernel, MATCHED, N_Z, N_Y, sigma=2.0)
    block = derive(kernel, MATCHED[2:5, 1:3], N_Z[2:5], N_Y[1:3], sigma=2.0)
    np.testing.assert_array_equal(block, whole[2:5, 1:3])


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'rbf'"):
        derive("rbff", MATCHED, N_Z, N_Y)
    for sigma in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ConfigError, match=r"sigma: .*(greater than 0|finite)"):
            derive("rbf", MATCHED, N_Z, N_Y, sigma)
    with pytest.raises(InputError, match=r"found \(6, 4\), \(4,\) and \(6,\)"):
        derive("linear", MATCHED, N_Y, N_Z)

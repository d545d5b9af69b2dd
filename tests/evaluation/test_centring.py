"""Similarities of centred tokens derived from those as they are, against centring the tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from semrsm_dist.errors import InputError
from semrsm_dist.evaluation.centring import Centring


def draw(seed, n, n_tokens=5, n_channels=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, n_tokens, n_channels)) + rng.normal(size=n_channels) * 2


def match(z, y):
    """Return inner products and permutations of the best matching of all pairs."""
    inner, permutations = np.empty((len(z), len(y))), {}
    for i, left in enumerate(z):
        for j, right in enumerate(y):
            affinities = left @ right.T
            rows, columns = linear_sum_assignment(affinities, maximize=True)
            inner[i, j], permutations[i, j] = affinities[rows, columns].sum(), tuple(columns)
    return inner, permutations


@given(st.integers(0, 10**6), st.sampled_from(["one vector", "each image's mean", "anything"]))
def test_centring_changes_no_matching_and_is_derived_from_it(seed, what):
    z, y = draw(seed, 3), draw(seed + 1, 4)
    pooled_z, pooled_y = z.mean(axis=1), y.mean(axis=1)
    if what == "one vector":
        left = right = pooled_y.mean(axis=0)
    elif what == "each image's mean":
        left, right = pooled_z, pooled_y
    else:
        rng = np.random.default_rng(seed)
        left, right = rng.normal(size=(3, 3)), rng.normal(size=(4, 3))
    centred_z = z - np.broadcast_to(left, pooled_z.shape)[:, None]
    centred_y = y - np.broadcast_to(right, pooled_y.shape)[:, None]
    inner, permutations = match(z, y)
    expected, same = match(centred_z, centred_y)
    assert permutations == same
    rows, columns = Centring(pooled_z, left, 5), Centring(pooled_y, right, 5)
    for part in (slice(0, 2), slice(2, 3)):
        np.testing.assert_allclose(rows.inner(inner[part], columns, part), expected[part], atol=1e-9)
    traces = np.einsum("isc,jsc->ij", z, y)
    np.testing.assert_allclose(
        rows.inner(traces, columns, slice(0, 3)), np.einsum("isc,jsc->ij", centred_z, centred_y), atol=1e-9
    )
    for centring, before, after in ((rows, z, centred_z), (columns, y, centred_y)):
        norms = centring.squared_norms(np.sum(before**2, axis=(1, 2)))
        np.testing.assert_allclose(norms, np.sum(after**2, axis=(1, 2)), rtol=1e-6, atol=1e-9)


def test_one_vector_for_all_leaves_distances_as_they_are():
    z, y = draw(0, 3), draw(1, 4)
    mean = y.mean(axis=(0, 1))
    rows, columns = Centring(z.mean(axis=1), mean, 5), Centring(y.mean(axis=1), mean, 5)
    inner = match(z, y)[0]
    n_i, n_j = (np.sum(x**2, axis=(1, 2)) for x in (z, y))
    before = n_i[:, None] + n_j - 2 * inner
    after = rows.squared_norms(n_i)[:, None] + columns.squared_norms(n_j)
    after -= 2 * rows.inner(inner, columns, slice(0, 3))
    np.testing.assert_allclose(after, before, rtol=1e-9)


def test_an_image_of_equal_tokens_has_nothing_left():
    z = np.repeat(np.random.default_rng(0).normal(size=(2, 1, 3)), 5, axis=1)
    pooled = z.mean(axis=1).astype(np.float32)
    assert (Centring(pooled, pooled, 5).squared_norms(np.sum(z**2, axis=(1, 2))) == 0).all()


def test_offsets_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"offsets \(C,\) or \(N, C\)"):
        Centring(np.ones((4, 3)), np.ones(4), 5)

"""The product and the sums under everything else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semrsm_dist.matching.bounds import inner_product
from semrsm_dist.matching.compiled.product import multiply_packed, pack, padded, rounding_of_product
from semrsm_dist.matching.panel import empty_aligned, prepare_packed_panel

dtypes = st.sampled_from((np.float32, np.float64))


def affinity(z_i, z_j, dtype):
    n_channels = z_i.shape[1]
    packed = []
    for z in (z_i, z_j):
        out = empty_aligned((padded(len(z)) * n_channels,), dtype)
        pack(z, np.zeros(n_channels), 1.0, out)
        packed.append(out)
    height, width = padded(len(z_i)), padded(len(z_j))
    product = np.full((height + 8, width), np.nan, dtype)
    multiply_packed(*packed, n_channels, len(z_i), len(z_j), product[:height].ravel())
    assert np.isnan(product[height:]).all(), "written beyond the padded rows"
    return product[:height]


@settings(max_examples=60, deadline=None)
@given(
    dtype=dtypes,
    n_rows=st.integers(1, 70),
    n_columns=st.integers(1, 70),
    n_channels=st.sampled_from((1, 2, 31, 127, 128, 129, 300)),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_stay_within_the_rounding_bound(dtype, n_rows, n_columns, n_channels, seed):
    rng = np.random.default_rng(seed)
    z_i, z_j = (rng.normal(size=(n_tokens, n_channels)).astype(dtype) for n_tokens in (n_rows, n_columns))
    found = affinity(z_i, z_j, dtype)
    exact = z_i.astype(np.longdouble) @ z_j.astype(np.longdouble).T
    lengths = np.outer(np.linalg.norm(z_i, axis=1), np.linalg.norm(z_j, axis=1))
    unit = 1.0 if dtype is np.float32 else 2.0**-29
    error = np.abs(found[:n_rows, :n_columns] - exact)
    assert (error <= rounding_of_product(n_channels) * unit * lengths).all()
    assert (found[:n_rows, n_columns:] == 0.0).all()


@settings(max_examples=30, deadline=None)
@given(dtype=dtypes, n_tokens=st.integers(2, 50), seed=st.integers(0, 2**32 - 1))
def test_an_affinity_does_not_depend_on_its_place(dtype, n_tokens, seed):
    rng = np.random.default_rng(seed)
    z_i, z_j = rng.normal(size=(2, n_tokens, 37)).astype(dtype)
    order_i, order_j = rng.permutation(n_tokens), rng.permutation(n_tokens)
    plain = affinity(z_i, z_j, dtype)[:n_tokens, :n_tokens]
    moved = affinity(z_i[order_i], z_j[order_j], dtype)[:n_tokens, :n_tokens]
    np.testing.assert_array_equal(moved, plain[np.ix_(order_i, order_j)])
    np.testing.assert_array_equal(affinity(z_j, z_i, dtype)[:n_tokens, :n_tokens], plain.T)


@pytest.mark.parametrize("size", (1, 15, 16, 17, 100, 1000))
@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_inner_products_are_sums_in_float64(size, dtype):
    a, b = np.random.default_rng(size).normal(size=(2, size)).astype(dtype)
    exact = float(np.sum(a.astype(np.longdouble) * b.astype(np.longdouble)))
    bound = 2.0**-52 * size * np.linalg.norm(a) * np.linalg.norm(b)
    assert abs(inner_product(a, b) - exact) <= bound


@settings(max_examples=40)
@given(
    n_tokens=st.integers(1, 40),
    n_channels=st.integers(1, 20),
    dtype=st.sampled_from((np.float16, np.float32, np.float64)),
    exponent=st.integers(-3, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_panels_hold_centred_tokens_and_what_rounding_them_took_away(
    n_tokens, n_channels, dtype, exponent, seed
):
    rng = np.random.default_rng(seed)
    z = (
        rng.normal(size=(3, n_tokens, n_channels)) * 10.0 ** (exponent + rng.integers(-2, 2, (3, 1, 1)))
    ).astype(dtype)
    counts = rng.integers(1, n_tokens + 1, 3)
    panel = prepare_packed_panel(z, counts)
    groups = (
        panel.packed.reshape(3, -1, n_channels, 16)
        .swapaxes(2, 3)
        .reshape(3, -1, n_channels)
        .astype(np.float64)
    )
    for t, count in enumerate(counts):
        tokens = np.where(np.arange(n_tokens)[:, None] < count, z[t].astype(np.float64), 0)
        exact = (tokens - panel.means[t]) / panel.scales[t]
        assert 0.5 <= np.abs(exact).max() < 1 or not exact.any()
        np.testing.assert_array_equal(groups[t, :n_tokens], exact.astype(np.float32))
        assert not groups[t, n_tokens:].any()
        lost = exact - groups[t, :n_tokens]
        norms = np.linalg.norm(groups[t, :count]), np.linalg.norm(lost[:count])
        np.testing.assert_allclose((panel.centred_norms[t], panel.rounding_norms[t]), norms, rtol=1e-12)
        filling = [np.linalg.norm(part[count : count + 1]) for part in (groups[t, :n_tokens], lost)]
        found = panel.filling_norms[t], panel.filling_rounding_norms[t]
        np.testing.assert_allclose(found, filling, rtol=1e-12)
        np.testing.assert_allclose(panel.lengths[t], np.linalg.norm(exact, axis=1), rtol=1e-12)

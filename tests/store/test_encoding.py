"""What is stored of a pair: rounded inner products, and a gap that certifies the rounded value."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from semrsm_dist.errors import InputError
from semrsm_dist.matching.kernels import cosine
from semrsm_dist.matching.matchers import make_matcher
from semrsm_dist.store.tiles import GAP_BITS, choose_dtype, encode

FLOAT32 = np.dtype(np.float32)
numbers = st.floats(-(2.0**119), 2.0**119)
gaps = st.one_of(st.just(0.0), st.floats(0, 2.0**119), st.floats(0, 1e-6))


@given(numbers, numbers, gaps)
def test_the_stored_value_and_gap_reach_the_upper_bound(a, b, gap):
    identity, matched = min(a, b), max(a, b)
    upper = matched + gap
    stored = encode(*(np.array([[x]]) for x in (matched, identity, upper)), FLOAT32)[:, 0, 0].astype(float)
    assert stored[0] == np.float32(matched)
    assert stored[1] == np.float32(identity)
    assert stored[0] >= stored[1]
    assert stored[2] >= 0
    assert math.fsum((stored[0], stored[2])) >= upper
    assert stored[0] + stored[2] >= upper
    needed = max(0.0, math.fsum((upper, -stored[0])))
    assert stored[2] <= needed * (1 + 2.0**-GAP_BITS) * (1 + 2.0**-20) + 2.0**-125


def test_gaps_have_few_bits_and_nan_stays():
    gap = np.abs(np.random.default_rng(0).normal(size=(50, 50)))
    matched = np.ones_like(gap)
    matched[3, 4] = np.nan
    stored = encode(matched, matched, matched + gap, FLOAT32)
    assert np.isnan(stored[:, 3, 4]).all()
    assert np.isnan(stored).sum() == 3
    bits = np.nan_to_num(stored[2]).view(np.uint32)
    assert not (bits & np.uint32((1 << (23 - GAP_BITS)) - 1)).any()


def test_what_does_not_fit_is_refused_and_never_infinite():
    large = np.full((2, 2), 1e39)
    with pytest.raises(InputError, match="too large for float32"):
        encode(large, large, large, FLOAT32)
    assert np.isfinite(encode(large, large, large, np.dtype(np.float64))).all()


@pytest.mark.parametrize(
    ("exact", "norms_i", "norms_j", "expected"),
    [
        (False, [1.0, 4.0], [2.0], "float32"),
        (True, [1.0], [1.0], "float64"),
        (False, [1.0, 0.0], [1.0], "float32"),
        (False, [1e300, 1.0], [1.0], "float64"),
        (False, [1e-300], [1e-300], "float64"),
        (False, [1e-200], [1e200], "float32"),
        (False, [0.0], [1.0], "float64"),
    ],
)
def test_the_type_depends_on_the_products_of_norms(exact, norms_i, norms_j, expected):
    assert choose_dtype(exact, np.array(norms_i), np.array(norms_j)) == expected


@pytest.mark.parametrize(
    ("matcher", "parameters", "exact"),
    [
        ("auction", {}, False),
        ("auction", {"tolerance": 1e-6}, False),
        ("auction", {"tolerance": 1e-7}, True),
        ("auction", {"tolerance": 0}, True),
        ("hungarian", {}, True),
        ("median-split", {}, False),
        ("identity", {}, False),
    ],
)
def test_only_what_is_certified_beyond_float32_needs_float64(matcher, parameters, exact):
    assert make_matcher(matcher, **parameters).is_exact == exact


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.sampled_from([1e-13, 1e-6, 1.0, 1e6, 1e15]))
def test_stored_tiles_certify_the_true_optimum(seed, n_tokens, scale):
    rng = np.random.default_rng(seed)
    z = (scale * rng.normal(size=(4, n_tokens, 3))).astype(np.float32)
    z[3] = z[0][rng.permutation(n_tokens)]
    matcher = make_matcher("auction")
    panel = matcher.prepare(z)
    norms = panel.squared_norms
    assert choose_dtype(matcher.is_exact, norms, norms) == "float32"
    result = matcher.solve_tile(panel, panel, triangular=True)
    stored = encode(result.matched, result.identity, result.upper_bound, FLOAT32).astype(float)
    for i in range(4):
        for j in range(4):
            products = z[i].astype(float) @ z[j].astype(float).T
            best = products[linear_sum_assignment(-products)].sum()
            assert stored[0, i, j] + stored[2, i, j] >= best * (1 - 1e-14 * np.sign(best))
    assert (stored[0] >= stored[1]).all()
    np.testing.assert_array_equal(stored, stored.transpose(0, 2, 1))
    assert np.nanmax(cosine(stored[0], norms, norms)) <= 1
    exact = encode(result.matched, result.identity, result.upper_bound, np.dtype(np.float64))
    error = np.abs(stored - exact)[:2] / np.sqrt(np.outer(norms, norms))
    assert error.max() <= 2.0**-24

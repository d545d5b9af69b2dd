"""What `auction` and `hungarian` promise, against scipy, brute force and the inputs nobody expects."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from semrsm_dist.matching.assignment import bidding
from semrsm_dist.matching.assignment.auction_pair import (
    EXACT,
    finish_exactly,
    images_of,
    make_workspace,
)
from semrsm_dist.matching.bounds import Assignment, Factors, distance_from_optimum
from semrsm_dist.matching.compiled import lane_bids
from semrsm_dist.matching.compiled.product import multiply_packed, rounding_of_product
from semrsm_dist.matching.matchers import make_matcher
from semrsm_dist.matching.matchers.auction import Auction
from semrsm_dist.matching.result import Match, TileResult

ROUNDING = 1e-12  # float64 sums of a few thousand terms, relative to the norms

TOLERANCES = (3e-2, 1e-3, 1e-4, 1e-6, 1e-9, 0.0)


def norms_of(z_i, z_j):
    return np.linalg.norm(z_i.astype(np.float64)) * np.linalg.norm(z_j.astype(np.float64))


def optimum(z_i, z_j):
    affinity = z_i.astype(np.float64) @ z_j.astype(np.float64).T
    rows, columns = linear_sum_assignment(affinity, maximize=True)
    return affinity[rows, columns].sum()


def assert_promises(found, z_i, z_j, tolerance):
    """Check every promise of a certified match."""
    scale = norms_of(z_i, z_j)
    n_tokens = len(z_i)
    best = optimum(z_i, z_j)
    assert sorted(found.permutation.tolist()) == list(range(n_tokens))
    value = np.einsum("sc,sc->", z_i.astype(np.float64), z_j.astype(np.float64)[found.permutation])
    assert abs(found.value - value) <= ROUNDING * scale
    assert found.value <= best + ROUNDING * scale
    assert found.upper_bound >= best - ROUNDING * scale
    assert 0.0 <= found.gap <= max(tolerance or EXACT, ROUNDING) * scale


def make(kind, n_tokens, n_channels, rng):
    """Return a pair of representations of a difficult kind."""
    z = rng.normal(size=(2, n_tokens, n_channels))
    if kind == "offset":  # all affinities large and positive
        z += 5.0
    elif kind == "negative":  # every permutation has a negative value
        z += np.array([4.0, -4.0])[:, None, None]
    elif kind == "integers":  # many exact ties
        z = np.round(z)
    elif kind == "constant":
        z[:] = z[:, :1]
    elif kind == "one constant":
        z[0] = z[0, 0]
    elif kind == "duplicates":
        z = z[:, np.arange(n_tokens) // 3]
    elif kind == "same":
        z[1] = rng.permutation(z[0])
    elif kind == "low rank":
        z = z[:, :, :1] * z[:, :1, :]
    elif kind == "smooth":
        z = np.cumsum(z, axis=1)
    elif kind == "one large":
        z[:, 0] *= 1e6
    elif kind == "sparse":
        z = np.where(rng.random(z.shape) < 0.95, 0.0, z)
    return z


KINDS = (
    "plain",
    "offset",
    "negative",
    "integers",
    "constant",
    "one constant",
    "duplicates",
    "same",
    "low rank",
    "smooth",
    "one large",
    "sparse",
)


@settings(max_examples=250, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    n_tokens=st.sampled_from((1, 2, 3, 9, 15, 16, 17, 31, 32, 33, 49, 65)),
    n_channels=st.sampled_from((1, 3, 16, 64, 130)),
    dtype=st.sampled_from((np.float16, np.float32, np.float64)),
    tolerance=st.sampled_from(TOLERANCES),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_promise_holds(kind, n_tokens, n_channels, dtype, tolerance, seed):
    z = make(kind, n_tokens, n_channels, np.random.default_rng(seed))
    if dtype is np.float16:
        z = np.clip(z, -6e4, 6e4)
    z_i, z_j = z.astype(dtype)
    assert_promises(Auction(tolerance=tolerance).match(z_i, z_j), z_i, z_j, tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tolerance", (1e-3, 0.0))
def test_every_promise_holds_for_many_tokens(kind, tolerance):
    z_i, z_j = make(kind, 400, 24, np.random.default_rng(7)).astype(np.float32)
    assert_promises(Auction(tolerance=tolerance).match(z_i, z_j), z_i, z_j, tolerance)


@settings(max_examples=60, deadline=None)
@given(
    exponents=st.tuples(st.integers(-30, 30), st.integers(-30, 30)),
    tolerance=st.sampled_from(TOLERANCES),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_promise_holds_at_any_scale(exponents, tolerance, seed):
    z = make("plain", 20, 5, np.random.default_rng(seed))
    z_i, z_j = (z * 10.0 ** np.array(exponents)[:, None, None]).astype(np.float32)
    assert_promises(Auction(tolerance=tolerance).match(z_i, z_j), z_i, z_j, tolerance)


def test_scaling_by_powers_of_two_changes_only_the_scale():
    z_i, z_j = make("plain", 40, 8, np.random.default_rng(1)).astype(np.float32)
    plain = Auction().match(z_i, z_j)
    scaled = Auction().match(z_i * np.float32(2.0**90), z_j * np.float32(2.0**-60))
    np.testing.assert_array_equal(scaled.permutation, plain.permutation)
    assert scaled.value == plain.value * 2.0**30
    assert scaled.upper_bound == plain.upper_bound * 2.0**30


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    n_tokens=st.integers(1, 6),
    name=st.sampled_from(("auction", "hungarian")),
    seed=st.integers(0, 2**32 - 1),
)
def test_exact_matchers_agree_with_trying_all_permutations(kind, n_tokens, name, seed):
    z_i, z_j = make(kind, n_tokens, 4, np.random.default_rng(seed))
    best = max(np.sum(z_i * z_j[list(p)]) for p in itertools.permutations(range(n_tokens)))
    accuracy = {"auction": EXACT, "hungarian": ROUNDING}[name]
    parameters = {"tolerance": 0.0} if name == "auction" else {}
    found = make_matcher(name, **parameters).match(z_i, z_j)
    assert abs(found.value - best) <= accuracy * norms_of(z_i, z_j)
    assert found.upper_bound >= best - ROUNDING * norms_of(z_i, z_j)


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32 - 1))
def test_the_order_of_tokens_and_images_moves_values_only_within_the_certificate(kind, seed):
    rng = np.random.default_rng(seed)
    z_i, z_j = make(kind, 33, 10, rng).astype(np.float32)
    matcher = Auction(tolerance=1e-3)
    found = [
        matcher.match(z_i, z_j),
        matcher.match(z_j, z_i),
        matcher.match(rng.permutation(z_i), z_j),
        matcher.match(z_i, rng.permutation(z_j)),
    ]
    allowed = (1e-3 + ROUNDING) * norms_of(z_i, z_j)
    for a, b in itertools.combinations(found, 2):
        assert abs(a.value - b.value) <= allowed
        assert a.value <= b.upper_bound + ROUNDING * norms_of(z_i, z_j)


def test_the_exact_finish_keeps_every_promise_from_any_prices():
    z_i, z_j = make("smooth", 60, 12, np.random.default_rng(3)).astype(np.float32)

    rows, columns = Auction().prepare(z_i[None]), Auction().prepare(z_j[None])
    work, results = make_workspace(60), TileResult(*np.empty((3, 1, 1)))
    work.market.prices[:60] = np.random.default_rng(0).normal(size=60) * 1e3  # as after a price war
    left, right = images_of(rows, columns)
    finish_exactly(left, 0, right, 0, work, results)
    found = Match(results.matched[0, 0], results.upper_bound[0, 0], work.permutation, "auction")
    assert_promises(found, z_i, z_j, 1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_bids_are_bounded(kind):
    """Even a gap that float32 cannot reach ends the auction after the bids allowed."""
    z = make(kind, 50, 6, np.random.default_rng(5)).astype(np.float32)
    panel = Auction().prepare(z)
    work = make_workspace(50)
    multiply_packed(panel.packed[0], panel.packed[1], 6, 50, 50, work.affinity)
    budget = 50 * bidding.BIDS_PER_TOKEN
    market = work.market
    market.rounded[:] = np.random.default_rng(6).integers(lane_bids.CLIPPED, 1, market.rounded.size)
    market.rises[:] = lane_bids.LARGEST
    market.rises[:50] = 0
    market.owners[:] = bidding.FREE
    market.waiting[:50] = np.arange(50)
    n_waiting, left = bidding.run_bids(market, 50, 50, 1, budget)
    assert left < budget
    assert n_waiting == 0 or left == 0 or market.rises[:50].max() > lane_bids.LARGEST // 4
    finished, bound = bidding.run_auction(work.affinity, 50, 1.0, 1e-30, market)
    assert np.isfinite(market.prices[:50]).all()
    assert finished or bound == np.inf


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    n_tokens=st.integers(2, 40),
    n_channels=st.sampled_from((1, 17, 300)),
    dtype=st.sampled_from((np.float32, np.float64)),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_distance_from_the_optimum_is_one_for_any_assignment_and_prices(
    kind, n_tokens, n_channels, dtype, seed
):
    rng = np.random.default_rng(seed)
    z_i, z_j = make(kind, n_tokens, n_channels, rng).astype(dtype)
    rows, columns = Auction().prepare(z_i[None]), Auction().prepare(z_j[None])
    work = make_workspace(n_tokens)
    multiply_packed(rows.packed[0], columns.packed[0], n_channels, n_tokens, n_tokens, work.affinity)
    work.market.prices[:] = np.inf
    work.market.prices[:n_tokens] = rng.normal(size=n_tokens)
    work.market.columns[:n_tokens] = rng.permutation(n_tokens)
    scale = rows.scales[0] * columns.scales[0]
    assignment = Assignment(work.affinity, work.market.prices, work.market.columns)
    left, right = images_of(rows, columns)
    longest = columns.token_norms[0, 0] / columns.scales[0]
    factors = Factors(left.raw[0], right.raw[0], left.double, left.means[0], left.lengths[0], longest)
    rounding = rounding_of_product(n_channels) + 2.0**-22
    distance = distance_from_optimum(assignment, factors, scale, rounding)
    value = np.sum(z_i.astype(float) * z_j.astype(float)[work.market.columns[:n_tokens]])
    best = optimum(z_i, z_j)
    assert value + distance * scale >= best - ROUNDING * norms_of(z_i, z_j)
    centred_i, centred_j = (z.astype(float) - z.astype(float).mean(axis=0) for z in (z_i, z_j))
    affinity = centred_i @ centred_j.T / scale - work.market.prices[:n_tokens]
    slack = affinity.max(axis=1) - affinity[np.arange(n_tokens), work.market.columns[:n_tokens]]
    assert distance <= slack.sum() + 1e-3 * n_tokens * np.abs(affinity).max()


@pytest.mark.parametrize("tolerance", [1e-3, 1e-15])
def test_images_in_float32_meet_images_in_float64(tolerance):
    rng = np.random.default_rng(4)
    single, double = rng.normal(size=(5, 21, 7)).astype(np.float32), rng.normal(size=(4, 21, 7))
    matcher = Auction(tolerance=tolerance)
    mixed = matcher.solve_tile(matcher.prepare(single), matcher.prepare(double))
    wide = matcher.solve_tile(matcher.prepare(single.astype(np.float64)), matcher.prepare(double))
    for name in ("matched", "upper_bound", "identity"):
        np.testing.assert_array_equal(getattr(mixed, name), getattr(wide, name))
    exact = np.einsum("isc,jsc->ij", single.astype(np.float64), double)
    np.testing.assert_allclose(mixed.identity, exact, rtol=1e-12, atol=1e-12)


def test_semantic_is_never_below_spatio_semantic():
    z = np.cumsum(np.random.default_rng(2).normal(size=(8, 30, 5)), axis=0).astype(np.float32)
    matcher = Auction(tolerance=0.3)
    tile = matcher.solve_tile(matcher.prepare(z), matcher.prepare(z))
    assert (tile.matched >= tile.identity).all()
    assert (tile.upper_bound >= tile.matched).all()


@pytest.mark.parametrize("tolerance", TOLERANCES)
def test_zero_representations_have_value_and_bound_zero(tolerance):
    z = np.zeros((20, 4), np.float32)
    other = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    for z_i, z_j in ((z, other), (other, z), (z, z)):
        found = Auction(tolerance=tolerance).match(z_i, z_j)
        assert found.value == found.upper_bound == 0.0
        assert sorted(found.permutation.tolist()) == list(range(20))

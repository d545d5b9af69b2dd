"""The parts of an auction, each against the few lines of numpy that define it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.matching.assignment import bidding
from semrsm_dist.matching.assignment.auction_pair import images_of
from semrsm_dist.matching.compiled import lane_bids
from semrsm_dist.matching.compiled.jit import compiled
from semrsm_dist.matching.compiled.lanes import LANES
from semrsm_dist.matching.compiled.product import multiply_packed, padded
from semrsm_dist.matching.matchers.auction import Auction


@compiled
def best_two(rounded, offset, rises):
    return lane_bids.best_two(rounded, offset, rises, rises.size // LANES)


@compiled
def row_max(affinity, offset, prices):
    return lane_bids.row_max(affinity, offset, prices, prices.size // LANES)


@compiled
def raise_maxima(affinity, offset, shift, maxima):
    lane_bids.raise_maxima(affinity, offset, shift, maxima, maxima.size // LANES)


@compiled
def round_residuals(affinity, prices, best, factor, rounded):
    lane_bids.round_residuals(affinity, 0, prices, best, factor, rounded, prices.size // LANES)


def sixteen_bits(values):
    return np.clip(values, lane_bids.SMALLEST, lane_bids.LARGEST)


@given(
    n_blocks=st.integers(1, 5),
    row=st.integers(0, 2),
    spread=st.sampled_from((1, 3, 100, 2**15 - 1)),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_best_two_of_a_row_are_found(n_blocks, row, spread, seed):
    rng = np.random.default_rng(seed)
    rounded, rises = (
        rng.integers(-spread, spread + 1, n * LANES * n_blocks).astype(np.int16) for n in (3, 1)
    )
    worth = sixteen_bits(rounded.reshape(3, -1)[row].astype(int) - rises)
    best, second, column = best_two(rounded, row * rises.size, rises)
    assert best == worth.max() == worth[column]
    assert second == np.delete(worth, column).max()


@given(n_blocks=st.integers(1, 4), real=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_maxima_of_rows_and_columns_are_those_of_numpy(n_blocks, real, seed):
    rng = np.random.default_rng(seed)
    size = LANES * n_blocks
    if real:
        affinity, prices, maxima = (rng.normal(size=n).astype(np.float32) for n in (2 * size, size, size))
        prices[-3:] = np.inf
        expected = (affinity[size:] - prices).max(), np.maximum(maxima, affinity[size:] - np.float32(0.3))
        shift = np.float32(0.3)
    else:
        affinity, prices, maxima = (
            rng.integers(lane_bids.SMALLEST, lane_bids.LARGEST + 1, n).astype(np.int16)
            for n in (2 * size, size, size)
        )
        worth = sixteen_bits(affinity[size:].astype(int) - prices)
        expected = worth.max(), np.maximum(maxima, sixteen_bits(affinity[size:].astype(int) - 1000))
        shift = np.int16(1000)
    assert row_max(affinity, size, prices) == expected[0]
    raise_maxima(affinity, size, shift, maxima)
    np.testing.assert_array_equal(maxima, expected[1])


@given(
    scale=st.sampled_from((1e-30, 1.0, 1e30)),
    unit=st.sampled_from((1e-5, 1e-3, 1.0)),
    seed=st.integers(0, 999),
)
def test_residuals_are_rounded_to_the_nearest_and_clipped(scale, unit, seed):
    rng = np.random.default_rng(seed)
    affinity, prices = (scale * rng.normal(size=(2, 32))).astype(np.float32)
    prices[-5:] = np.inf
    best = (affinity - prices).max()
    factor, rounded = np.float32(1.0 / (unit * scale)), np.empty(32, np.int16)
    round_residuals(affinity, prices, best, factor, rounded)
    residuals = np.maximum((affinity - prices - best) * factor, np.float32(lane_bids.CLIPPED))
    np.testing.assert_array_equal(rounded, np.rint(residuals))
    assert rounded.max() == 0


@given(
    n_tokens=st.sampled_from((2, 15, 16, 40)),
    steps=st.integers(1, 40),
    spread=st.sampled_from((1, 50, 5000)),
    seed=st.integers(0, 2**32 - 1),
)
def test_bids_leave_every_row_with_a_column_that_is_best_but_for_eps(n_tokens, steps, spread, seed):
    rng = np.random.default_rng(seed)
    width = padded(n_tokens)
    market = bidding.make_market(width)
    affinity = -rng.integers(0, spread + 1, (width, width))
    market.rounded[:] = affinity.ravel()
    market.rises[:] = lane_bids.LARGEST
    market.rises[:n_tokens] = 0
    market.columns[:] = market.owners[:] = bidding.FREE
    market.waiting[:n_tokens] = np.arange(n_tokens)
    n_waiting, left = bidding.run_bids(market, n_tokens, n_tokens, steps, 100_000)
    assert n_waiting == 0 or market.rises[:n_tokens].max() > lane_bids.LARGEST // 4 or left == 0
    columns = market.columns[:n_tokens]
    held = columns != bidding.FREE
    worth = affinity[:n_tokens, :n_tokens] - market.rises[:n_tokens].astype(int)
    owned = [i for i in np.flatnonzero(held) if market.owners[columns[i]] == i]
    assert len(owned) == n_tokens - n_waiting
    for i in owned:
        assert worth[i, columns[i]] >= worth[i].max() - steps


def affinity_of(z):
    panel = Auction().prepare(z)
    images = images_of(panel, panel)[0]
    affinity = np.empty(padded(z.shape[1]) ** 2, np.float32)
    multiply_packed(images.packed[0], images.packed[1], z.shape[2], z.shape[1], z.shape[1], affinity)
    return affinity, float(np.prod(images.centred_norms[:2]))


@pytest.mark.parametrize("tolerance", (1e-2, 1e-4, 1e-6))
def test_asking_for_bounds_on_the_way_changes_no_assignment(tolerance):
    z = np.random.default_rng(0).normal(size=(2, 70, 9)).astype(np.float32)
    affinity, size = affinity_of(z)
    found = []
    for floor in (-np.inf, -1e300):
        market = bidding.make_market(padded(70))
        finished, bound = bidding.run_auction(affinity, 70, size, tolerance * size, market, floor)
        assert finished
        found.append((bound, market.columns[:70].tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("factor", (1e2, 1e4, 1e6))
def test_tokens_much_larger_than_all_others_do_not_end_an_auction(factor):
    """Their affinities are out of the range of 16 bits, and their prices coarse in float32."""
    z = np.random.default_rng(1).normal(size=(2, 64, 16)).astype(np.float32)
    z[:, :2] *= np.float32(factor)
    affinity, size = affinity_of(z)
    market = bidding.make_market(padded(64))
    finished, bound = bidding.run_auction(affinity, 64, size, 1e-6 * size, market)
    value = affinity.reshape(64, 64)[np.arange(64), market.columns[:64]].astype(np.float64).sum()
    assert finished
    assert value <= bound <= value + 1e-6 * size

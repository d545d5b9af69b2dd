"""What every matcher owes: tiles, panels, errors, and each approximation its own definition."""

from __future__ import annotations

import math
import platform
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import fields
from importlib import metadata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.matching.assignment.auction_pair import EXACT
from semrsm_dist.matching.matchers import MATCHERS, auction, make_matcher
from semrsm_dist.matching.matchers.auction import Auction

EVERY = (
    ("auction", {}),
    ("auction", {"tolerance": 0.0}),
    ("hungarian", {}),
    ("batch-optimal", {"window": 7}),
    ("median-split", {"window": 6}),
    ("topk-greedy", {"k": 5}),
    ("subsample", {"sample": 8, "seed": 1}),
    ("projection", {"channels": 2, "seed": 1}),
    ("greedy", {}),
    ("identity", {}),
)
every_matcher = pytest.mark.parametrize(("name", "parameters"), EVERY)


def images(n_images, n_tokens, n_channels, seed=0):
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.normal(size=(n_images, n_tokens, n_channels)), axis=1).astype(np.float32)


def arrays_of(panel):
    """Return all arrays of a panel, also of panels within it."""
    arrays = []
    for field in fields(panel):
        value = getattr(panel, field.name)
        if isinstance(value, np.ndarray):
            arrays.append(value)
        else:
            arrays += [
                a for inner in (value if isinstance(value, tuple) else [value]) for a in arrays_of(inner)
            ]
    return arrays


def affinity_of(z_i, z_j):
    return z_i.astype(np.float64) @ z_j.astype(np.float64).T


def value_of(z_i, z_j, permutation):
    return float(np.sum(z_i.astype(np.float64) * z_j.astype(np.float64)[permutation]))


def assert_same_bits(a, b):
    for values in ("matched", "upper_bound", "identity"):
        np.testing.assert_array_equal(getattr(a, values), getattr(b, values), strict=True)


@every_matcher
def test_a_tile_holds_what_match_returns(name, parameters):
    z, y = images(3, 21, 5), images(4, 21, 5, seed=1)
    matcher = make_matcher(name, **parameters)
    tile = matcher.solve_tile(matcher.prepare(z), matcher.prepare(y))
    assert tile.matched.shape == tile.upper_bound.shape == tile.identity.shape == (3, 4)
    for r in range(3):
        for c in range(4):
            found = matcher.match(z[r], y[c])
            assert found.matcher == name
            assert (found.value, found.upper_bound) == (tile.matched[r, c], tile.upper_bound[r, c])
            assert sorted(found.permutation.tolist()) == list(range(21))
            assert found.value == pytest.approx(value_of(z[r], y[c], found.permutation), rel=1e-12)
            assert tile.identity[r, c] == pytest.approx(
                value_of(z[r], y[c], np.arange(21)), rel=1e-9, abs=1e-9
            )


@every_matcher
@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_tiles_panels_and_threads_do_not_change_a_bit(name, parameters, dtype):
    z = images(7, 35, 6).astype(dtype)
    matcher = make_matcher(name, **parameters)
    panel = matcher.prepare(z)
    whole = matcher.solve_tile(panel, panel, triangular=True)
    for cut in (1, 3):
        left, right = matcher.prepare(z[:cut]), matcher.prepare(z[cut:])
        part = matcher.solve_tile(left, right)
        assert_same_bits(part, matcher.solve_tile(panel.part(slice(cut)), panel.part(slice(cut, None))))
        np.testing.assert_array_equal(part.matched, whole.matched[:cut, cut:])
        np.testing.assert_array_equal(part.upper_bound, whole.upper_bound[:cut, cut:])
        np.testing.assert_array_equal(part.identity, whole.identity[:cut, cut:])
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(matcher.solve_tile, panel, panel, triangular=True) for _ in range(8)]
        for job in jobs:
            assert_same_bits(job.result(), whole)


@every_matcher
def test_a_triangular_tile_is_symmetric_with_squared_norms_on_the_diagonal(name, parameters):
    z = images(5, 18, 4)
    matcher = make_matcher(name, **parameters)
    panel = matcher.prepare(z)
    tile = matcher.solve_tile(panel, panel, triangular=True)
    full = matcher.solve_tile(panel, panel)
    squares = np.sum(z.astype(np.float64) ** 2, axis=(1, 2))
    for mirrored, solved in (
        (tile.matched, full.matched),
        (tile.upper_bound, full.upper_bound),
        (tile.identity, full.identity),
    ):
        np.testing.assert_array_equal(mirrored, mirrored.T)
        np.testing.assert_allclose(np.diag(mirrored), squares, rtol=1e-12)
        np.testing.assert_array_equal(np.triu(mirrored, 1), np.triu(solved, 1))


@every_matcher
@settings(max_examples=25, deadline=None)
@given(
    n_tokens=st.integers(1, 40),
    n_channels=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
    ties=st.booleans(),
)
def test_bounds_hold_for_every_matcher(name, parameters, n_tokens, n_channels, seed, ties):
    rng = np.random.default_rng(seed)
    z_i, z_j = rng.normal(size=(2, n_tokens, n_channels)) + rng.normal(size=(2, 1, n_channels))
    if ties:
        z_i, z_j = np.round(z_i), np.round(z_j)
    found = make_matcher(name, **parameters).match(z_i, z_j)
    affinity = affinity_of(z_i, z_j)
    rows, columns = linear_sum_assignment(affinity, maximize=True)
    best = affinity[rows, columns].sum()
    rounding = 1e-12 * np.linalg.norm(z_i) * np.linalg.norm(z_j)
    assert found.value <= best + rounding
    assert found.upper_bound >= max(best - rounding, found.value)
    assert found.gap >= 0.0


@every_matcher
def test_half_precision_counts_as_its_exact_value(name, parameters):
    z = images(2, 12, 3).astype(np.float16)
    matcher = make_matcher(name, **parameters)
    assert matcher.match(*z).value == matcher.match(*z.astype(np.float32)).value


@settings(max_examples=60, deadline=None)
@given(n_tokens=st.integers(1, 30), seed=st.integers(0, 2**32 - 1), ties=st.booleans())
def test_greedy_takes_affinities_in_descending_order(n_tokens, seed, ties):
    rng = np.random.default_rng(seed)
    z_i, z_j = rng.normal(size=(2, n_tokens, 3))
    if ties:
        z_i, z_j = np.round(z_i), np.round(z_j)
    affinity = affinity_of(z_i, z_j)
    expected = np.full(n_tokens, -1)
    taken = set()
    for place in np.argsort(-affinity.ravel(), kind="stable"):
        i, j = divmod(int(place), n_tokens)
        if expected[i] < 0 and j not in taken:
            expected[i] = j
            taken.add(j)
    np.testing.assert_array_equal(make_matcher("greedy").match(z_i, z_j).permutation, expected)


@settings(max_examples=40, deadline=None)
@given(n_tokens=st.integers(1, 25), k=st.integers(1, 30), seed=st.integers(0, 2**32 - 1))
def test_topk_greedy_matches_the_largest_exactly_and_the_rest_greedily(n_tokens, k, seed):
    z_i, z_j = np.random.default_rng(seed).normal(size=(2, n_tokens, 4))
    affinity = affinity_of(z_i, z_j)
    largest_i, largest_j = (np.argsort(-np.linalg.norm(z, axis=1), kind="stable")[:k] for z in (z_i, z_j))
    rows, columns = linear_sum_assignment(affinity[np.ix_(largest_i, largest_j)], maximize=True)
    expected = np.full(n_tokens, -1)
    expected[largest_i[rows]] = largest_j[columns]
    rest = affinity.copy()
    rest[largest_i] = rest[:, largest_j] = -np.inf
    while (expected < 0).any():
        i, j = np.unravel_index(rest.argmax(), rest.shape)
        expected[i] = j
        rest[i] = rest[:, j] = -np.inf
    np.testing.assert_array_equal(make_matcher("topk-greedy", k=k).match(z_i, z_j).permutation, expected)


@settings(max_examples=40, deadline=None)
@given(n_tokens=st.integers(1, 40), window=st.integers(1, 50), seed=st.integers(0, 2**32 - 1))
def test_batch_optimal_is_exact_inside_windows_of_ascending_norm(n_tokens, window, seed):
    z_i, z_j = np.random.default_rng(seed).normal(size=(2, n_tokens, 4))
    order_i = np.argsort(np.linalg.norm(z_i, axis=1), kind="stable")
    order_j = np.argsort(np.linalg.norm(z_j, axis=1), kind="stable")
    expected = 0.0
    for start in range(0, n_tokens, window):
        part = affinity_of(z_i[order_i[start : start + window]], z_j[order_j[start : start + window]])
        rows, columns = linear_sum_assignment(part, maximize=True)
        expected += part[rows, columns].sum()
    found = make_matcher("batch-optimal", window=window).match(z_i, z_j)
    accuracy = EXACT * np.linalg.norm(z_i) * np.linalg.norm(z_j)
    assert found.value == pytest.approx(expected, rel=0.0, abs=accuracy)
    if window >= n_tokens:
        exact = make_matcher("hungarian").match(z_i, z_j).value
        assert found.value == pytest.approx(exact, rel=0.0, abs=accuracy)


def test_identity_leaves_every_token_in_its_place():
    z_i, z_j = images(2, 9, 3)
    np.testing.assert_array_equal(make_matcher("identity").match(z_i, z_j).permutation, np.arange(9))


@every_matcher
@pytest.mark.parametrize("bad", (np.nan, np.inf, -np.inf))
def test_values_that_are_not_finite_are_refused_with_the_image(name, parameters, bad):
    z = images(4, 5, 3)
    z[2, 1, 1] = bad
    with pytest.raises(InputError, match=r"image 2 .*1 NaN or infinite"):
        make_matcher(name, **parameters).prepare(z)


def test_squares_beyond_float64_are_refused():
    with pytest.raises(InputError, match=r"image 0 .*overflow"):
        make_matcher("auction").prepare(np.full((1, 2, 2), 1e200))


@every_matcher
def test_shapes_that_do_not_fit_are_refused(name, parameters):
    matcher = make_matcher(name, **parameters)
    z = images(2, 6, 3)
    with pytest.raises(InputError, match="of 3 channels cannot be matched with those of 2"):
        matcher.solve_tile(matcher.prepare(z), matcher.prepare(z[:, :, :2]))
    with pytest.raises(InputError, match="of 3 channels cannot be matched with those of 2"):
        matcher.match(z[0], z[0, :, :2])
    with pytest.raises(InputError, match=r"equal numbers of tokens|room for 6 and 5 tokens"):
        matcher.solve_tile(matcher.prepare(z), matcher.prepare(z[:, :5]))
    with pytest.raises(InputError, match="z_j of shape"):
        matcher.match(z[0], z)
    with pytest.raises(InputError, match=r"reshape\(N, C, H \* W\)"):
        matcher.prepare(np.zeros((2, 3, 4, 4), np.float32))
    with pytest.raises(InputError, match="none of them 0"):
        matcher.prepare(np.zeros((2, 0, 4), np.float32))
    with pytest.raises(InputError, match="float32 or float64, found int64"):
        matcher.prepare(np.zeros((2, 3, 4), np.int64))
    with pytest.raises(InputError, match="same panel twice"):
        matcher.solve_tile(matcher.prepare(z), matcher.prepare(z[:1]), triangular=True)


@every_matcher
def test_a_cancelled_tile_stops_within_a_few_rows(name, parameters):
    matcher = make_matcher(name, **parameters)
    panel = matcher.prepare(images(3 * matcher.rows_at_once(70), 70, 2))
    columns = panel.part(slice(0, 1))
    looks = []
    stop = threading.Event()

    def cancelled():
        looks.append(None)
        if len(looks) == 3:
            stop.set()
        return stop.is_set()

    with pytest.raises(CancelledError):
        matcher.solve_tile(panel, columns, cancelled=cancelled)
    assert len(looks) == 3


@every_matcher
def test_panels_are_read_only_and_no_larger_than_announced(name, parameters):
    matcher = make_matcher(name, **parameters)
    z = images(6, 50, 32)
    panel = matcher.prepare(z)
    arrays = arrays_of(panel)
    assert not any(a.flags.writeable for a in arrays)
    announced = matcher.panel_bytes(6, 50, 32)
    assert 0.95 * announced <= sum(a.nbytes for a in arrays) <= announced * 1.05
    assert matcher.workspace_bytes(50, 32) > 0


@pytest.mark.parametrize("tolerance", (1e-3, 0.0))
def test_the_auction_tells_how_long_products_and_matching_took(tolerance):
    matcher = make_matcher("auction", tolerance=tolerance)
    matcher.compile()
    panel = matcher.prepare(images(12, 100, 16))
    start = time.perf_counter()
    tile = matcher.solve_tile(panel, panel)
    passed = time.perf_counter() - start
    assert tile.products >= 0.0
    assert tile.solving >= 0.0
    assert tile.products + tile.solving <= passed
    if platform.machine() == "x86_64":
        assert min(tile.products, tile.solving) > 0.0


def test_every_matcher_declares_what_others_need_to_know():
    shipped = {name for name, _ in EVERY}
    others = {point.name for point in metadata.entry_points(group="semrsm_dist.matchers")}
    assert set(MATCHERS.names()) - others == shipped
    for name in shipped:
        matcher = make_matcher(name)
        assert matcher.name == name
        assert matcher.version >= 1
        assert matcher.cpus > 0
        assert make_matcher(name, **matcher.parameters) == matcher
        for field in type(matcher).model_fields.values():
            assert field.description
            assert not field.is_required()


tokens, channels = st.integers(1, 5000), st.integers(1, 4000)


@pytest.mark.parametrize("name", MATCHERS.names())
@given(tokens, tokens, channels, channels)
def test_more_tokens_and_channels_take_longer(name, s, more_s, c, more_c):
    (s, more_s), (c, more_c) = sorted((s, more_s)), sorted((c, more_c))
    matcher = make_matcher(name)
    assert 0 < matcher.pair_seconds(s, c) <= matcher.pair_seconds(more_s, more_c) < math.inf


def test_guesses_are_of_the_right_order():
    """Against measurements on photographs' features, one core: product and matching."""
    for s, c, by_auction, by_hungarian in (
        (49, 512, 0.1e-3, 0.2e-3),
        (196, 256, 0.4e-3, 6e-3),
        (784, 128, 3e-3, 211e-3),
    ):
        for name, measured in (("auction", by_auction), ("hungarian", by_hungarian)):
            assert measured / 5 < make_matcher(name).pair_seconds(s, c) < measured * 5


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    (
        ("auctoin", {}, "did you mean 'auction'"),
        ("auction", {"tolerence": 1e-3}, "takes tolerance, device; did you mean 'tolerance'"),
        ("greedy", {"k": 3}, "takes no parameters"),
        ("auction", {"tolerance": -1e-3}, "'auction': tolerance: -0.001: must be greater than or equal to 0"),
        ("auction", {"tolerance": float("nan")}, "tolerance: nan: expected a finite number"),
        ("auction", {"tolerance": "fine"}, "tolerance: 'fine': expected a number"),
        ("batch-optimal", {"window": 0}, "window: 0: must be greater than or equal to 1"),
        ("batch-optimal", {"window": 2.5}, "window: 2.5: expected a whole number"),
        ("topk-greedy", {"k": True}, "k: True: expected a number"),
        ("median-split", {"window": 0}, "window: 0: must be"),
        ("median-split", {"tolerance": -1.0}, "'median-split': tolerance: -1.0: must be"),
        ("batch-optimal", {"tolerance": float("inf")}, "'batch-optimal': tolerance: inf: expected a finite"),
        ("subsample", {"sample": 0, "seed": -1}, "sample: 0: .*\n.*seed: -1: must be"),
        ("projection", {"channels": 0}, "channels: 0: must be"),
        ("projection", {"seed": 0.5}, "seed: 0.5: expected a whole number"),
    ),
)
def test_what_no_matcher_can_be_is_refused(name, parameters, message):
    with pytest.raises(ConfigError, match=message):
        make_matcher(name, **parameters)


@pytest.mark.parametrize("cache", [1, 2**11, 2**30])
@pytest.mark.parametrize("triangular", [True, False])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-15])
def test_every_pair_is_matched_once_however_a_tile_is_cut(monkeypatch, cache, triangular, tolerance):
    z = np.random.default_rng(0).normal(size=(9, 6, 5)).astype(np.float32)
    matcher = Auction(tolerance=tolerance)
    panel = matcher.prepare(z)
    whole = matcher.solve_tile(panel, panel, triangular=triangular)
    monkeypatch.setattr(auction, "CACHE_BYTES", cache)
    monkeypatch.setattr(Auction, "rows_at_once", lambda self, n_tokens: 4)
    assert_same_bits(matcher.solve_tile(panel, panel, triangular=triangular), whole)
    assert np.isfinite(whole.matched).all()

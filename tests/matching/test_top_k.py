"""The progressive search finds what the full matrix says, to the last bit, and its bounds are bounds."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

import semrsm_dist as srs
from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.matching import kernels
from semrsm_dist.matching.assignment import auction_pair
from semrsm_dist.matching.assignment.auction_pair import images_of
from semrsm_dist.matching.compiled.jit import compiled
from semrsm_dist.matching.compiled.product import multiply_packed, padded, rounding_of_product
from semrsm_dist.matching.matchers.auction import Auction
from semrsm_dist.matching.representations import stack_tokens
from semrsm_dist.matching.search import longest_first, progressive, pruning_bounds
from semrsm_dist.matching.search.search import Search

KINDS = (
    "plain",
    "clustered",
    "duplicates",
    "integers",
    "negative",
    "low rank",
    "constant",
    "sparse",
    "offset",
)


def make(kind, n_images, n_tokens, n_channels, rng):
    """Return representations (N, S, C) of a difficult kind, some images of them zero."""
    z = rng.normal(size=(n_images, n_tokens, n_channels))
    if kind == "clustered":  # images of few kinds, the tokens of each in another order
        kinds = rng.normal(size=(3, n_tokens, n_channels)) + 2.0 * rng.normal(size=(3, 1, n_channels))
        z = np.stack([rng.permutation(kinds[t % 3]) for t in range(n_images)]) + 0.1 * z
    elif kind == "duplicates":  # ties, many of them with a similarity of 1
        z = np.stack([rng.permutation(z[t % 4]) for t in range(n_images)])
    elif kind == "integers":
        z = np.round(z)
    elif kind == "negative":
        z += np.where(np.arange(n_images) % 2, 4.0, -4.0)[:, None, None]
    elif kind == "low rank":
        z = z[:, :, :1] * z[:, :1, :] + 1e-3 * z
    elif kind == "constant":
        z[:] = z[:, :1]
    elif kind == "sparse":
        z = np.where(rng.random(z.shape) < 0.8, 0.0, z)
    elif kind == "offset":
        z += 30.0
    if n_images > 4:
        z[rng.integers(n_images)] = 0.0
    return z


def hits_of_matrix(z, y, k, tolerance, groups=None, database_groups=None):
    """Return indices and similarities (N, k) of the k best hits by a stable sort of the full matrix."""
    matrix = srs.similarity_matrix(z, y, tolerance=tolerance)
    if y is None:
        np.fill_diagonal(matrix, np.nan)
    if groups is not None:
        others = groups if y is None else database_groups
        matrix[[[a is not None and a == b for b in others] for a in groups]] = np.nan
    matrix = np.pad(matrix, ((0, 0), (0, max(0, k - matrix.shape[1]))), constant_values=np.nan)
    indices = np.argsort(-matrix, axis=1, kind="stable")[:, :k]
    similarities = np.take_along_axis(matrix, indices, axis=1)
    return np.where(np.isnan(similarities), -1, indices), similarities


def assert_hits_of_the_matrix(z, y, k, tolerance, **groups):
    """Compare a search with the full matrix, bit by bit, and return it."""
    found = srs.top_k(z, y, k, tolerance=tolerance, **groups)
    indices, similarities = hits_of_matrix(z, y, k, tolerance, **groups)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.similarities, similarities)
    return found


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    sizes=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    n_tokens=st.sampled_from((1, 2, 9, 16, 17, 33)),
    n_channels=st.sampled_from((1, 3, 16, 40)),
    k=st.integers(1, 16),
    tolerance=st.sampled_from((0.1, 1e-3, 0.0, 1e-9)),
    dtype=st.sampled_from((np.float16, np.float32, np.float64)),
    symmetric=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_hits_and_similarities_are_those_of_the_full_matrix(
    kind, sizes, n_tokens, n_channels, k, tolerance, dtype, symmetric, seed
):
    rng = np.random.default_rng(seed)
    both = make(kind, sum(sizes), n_tokens, n_channels, rng).astype(dtype)
    z, y = both[: sizes[0]], None if symmetric else both[sizes[0] :]
    found = assert_hits_of_the_matrix(z, y, k, tolerance)
    live = [np.count_nonzero(np.any(side != 0, axis=(1, 2))) for side in (z, z if y is None else y)]
    assert found.pairs == (live[0] * (live[0] - 1) // 2 if symmetric else live[0] * live[1])


@pytest.mark.parametrize("symmetric", (True, False))
@pytest.mark.parametrize("kind", KINDS)
def test_the_full_matrix_is_met_where_blocks_and_sketches_take_part(kind, symmetric, monkeypatch):
    monkeypatch.setattr(pruning_bounds, "MOST_LEFT_OUT", np.inf)  # sketches, however bad
    monkeypatch.setattr(pruning_bounds, "SUMMED_AT_ONCE", 100)
    z = make(kind, 90, 20, 24, np.random.default_rng(3)).astype(np.float32)
    found = assert_hits_of_the_matrix(z, None if symmetric else z[40:], 3, 1e-3)
    if kind == "clustered":
        assert found.sketched + found.without_product > 0.2 * found.pairs


@pytest.mark.parametrize("n_channels", (12, 600), ids=["rows by length", "the product at once"])
def test_products_of_many_rows_decide_what_the_full_matrix_says(n_channels):
    z = make("sparse", 24, 110, n_channels, np.random.default_rng(5)).astype(np.float32)
    found = assert_hits_of_the_matrix(z, None, 2, 1e-3)
    assert found.with_product > 0.3 * found.pairs


@pytest.mark.parametrize("scale", (1e-30, 1e-130, 1e30))
def test_scales_do_not_matter(scale):
    z = make("clustered", 12, 17, 16, np.random.default_rng(0)) * scale
    assert_hits_of_the_matrix(z, None, 4, 1e-3)
    assert_hits_of_the_matrix(z, z[:5] / scale, 4, 1e-3)


def test_images_of_unequal_numbers_of_tokens_are_found():
    rng = np.random.default_rng(1)
    images = [rng.normal(size=(n, 24)) + rng.normal(size=24) for n in rng.integers(1, 40, size=30)]
    found = assert_hits_of_the_matrix(images, None, 4, 1e-3)
    assert found.solved < 0.5 * found.pairs
    assert_hits_of_the_matrix(images[:5], images[5:], 4, 1e-3)


def test_images_of_the_same_group_are_no_hits():
    rng = np.random.default_rng(2)
    z = make("clustered", 20, 9, 4, rng)
    names = np.array(["a", "b", "c", None], dtype=object)
    groups, others = list(names[rng.integers(4, size=20)]), list(names[rng.integers(4, size=8)])
    assert_hits_of_the_matrix(z, None, 20, 1e-3, groups=groups)
    assert_hits_of_the_matrix(z, z[:8] + 0.5, 5, 1e-3, groups=groups, database_groups=others)


def test_threads_change_no_hit():
    z = make("clustered", 150, 16, 6, np.random.default_rng(4))
    one, many = (srs.top_k(z, k=5, workers=workers) for workers in (1, 4))
    np.testing.assert_array_equal(one.indices, many.indices)
    np.testing.assert_array_equal(one.similarities, many.similarities)
    assert one.pairs == many.pairs == 149 * 148 // 2


@pytest.mark.parametrize("n_channels", (8, 128))
def test_most_pairs_of_images_in_clusters_are_never_solved(n_channels):
    rng = np.random.default_rng(5)
    tokens = rng.normal(size=(40, 3)) * (3.0, 2.0, 1.0)
    turned = np.array([tokens @ np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(20)])
    centres = turned @ rng.normal(size=(3, n_channels))
    z = np.stack([rng.permutation(centre) for centre in centres for _ in range(6)])
    z += 0.1 * rng.normal(size=z.shape)
    found = assert_hits_of_the_matrix(z, None, 6, 1e-3)
    decided = np.array([found.without_product, found.sketched, found.with_product, found.solved])
    assert decided.sum() == found.pairs == 120 * 119 // 2
    assert found.solved < 0.2 * found.pairs
    assert found.without_product > 0.2 * found.pairs
    assert (found.sketched > 0) == (n_channels == 128)


def optimum(z_i, z_j):
    affinity = z_i.astype(np.float64) @ z_j.astype(np.float64).T
    rows, columns = linear_sum_assignment(affinity, maximize=True)
    return affinity[rows, columns].sum()


@compiled
def frame(rows, r, columns, c, tolerance, rounding):
    return auction_pair.frame_pair(rows, r, columns, c, tolerance, rounding)


@compiled
def is_flat(pair):
    return auction_pair.is_flat(pair)


@compiled
def usual_bound(side, i, j, pair, memory):
    auction_pair.multiply_pair(side.images, i, side.images, j, pair, memory.work)
    dual = progressive.usual_bound(side, j, pair, memory)
    return auction_pair.bound_of_dual(pair, dual, pair.slack)


@compiled
def sketch_bound(side, i, j, pair, floor, setting, memory):
    return progressive.sketch_bound(side, i, side, j, pair, floor, setting, memory)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    counts=st.lists(st.integers(1, 20), min_size=2, max_size=5),
    equal=st.booleans(),
    exponent=st.integers(-25, 25),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_bound_is_one(kind, counts, equal, exponent, seed):
    rng = np.random.default_rng(seed)
    counts = [20] * len(counts) if equal else counts
    whole = make(kind, len(counts), 20, 24, rng).astype(np.float32) * np.float32(10.0) ** exponent
    images = [image[:count] for image, count in zip(whole, counts, strict=True)]
    panel = Auction().prepare(*stack_tokens(images))
    ordered = pruning_bounds.sort_channels(panel)
    bounds = pruning_bounds.sorted_channel_bounds(panel, ordered, panel, ordered)
    directions = np.linalg.qr(rng.normal(size=(24, 5)))[0]
    sketches = pruning_bounds.sketch(panel, directions)
    search = Search(Auction(), panel, panel, 1)
    side = search.rows.images._replace(sketches=sketches.packed)
    setting = search.settings._replace(sketch_channels=6, sketch_rounding=sketches.rounding)
    memory = progressive.make_memory(panel.n_tokens, panel.n_channels)
    for i, z_i in enumerate(images):
        for j, z_j in enumerate(images):
            best = optimum(z_i, z_j)
            rounding = 1e-14 * np.linalg.norm(z_i.astype(float)) * np.linalg.norm(z_j.astype(float))
            assert bounds[i, j] >= best - rounding
            pair = frame(side.images, i, side.images, j, setting.tolerance, setting.rounding)
            for floor in (-np.inf, best):  # the second learns prices where they do not suffice, and uses them
                bound = sketch_bound(side, i, j, pair, floor, setting, memory)
                assert bound >= best - rounding
            if not is_flat(pair):
                side.prices[:] = rng.normal(size=side.prices.shape) * rng.choice([0.0, 0.1, 10.0])
                assert usual_bound(side, i, j, pair, memory) >= best - rounding


@compiled
def multiply_while_open(rows, columns, n_tokens, prices, floor, memory, affinity):
    longest_first.sort_tokens(rows.packed[0], rows.lengths[0], 0, n_tokens, memory)
    lowered = np.empty_like(prices)
    part = prices.size * rows.means.shape[1]
    packed = columns.packed[0, :part]
    return longest_first.multiply_while_open(
        memory, packed, columns.lengths[0], n_tokens, prices, floor, lowered, affinity
    )


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    n_tokens=st.integers(2, 100),
    n_channels=st.sampled_from((1, 3, 40)),
    spread=st.floats(0, 3),
    offset=st.sampled_from((0.0, 1e-6, 1e-2, 0.3)),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_by_length_prove_only_what_holds_or_give_the_whole_product(
    kind, n_tokens, n_channels, spread, offset, seed
):
    rng = np.random.default_rng(seed)
    z = make(kind, 2, n_tokens, n_channels, rng) * np.exp(spread * rng.normal(size=(2, n_tokens, 1)))
    panels = [Auction().prepare(z[k : k + 1].astype(np.float32)) for k in range(2)]
    sides = images_of(*panels)
    width = padded(n_tokens)
    whole = np.empty(width**2, np.float32)
    multiply_packed(sides[0].packed[0], sides[1].packed[0], n_channels, n_tokens, n_tokens, whole)
    matrix = whole.reshape(width, width)[:n_tokens, :n_tokens].astype(np.float64)
    best = matrix[linear_sum_assignment(matrix, maximize=True)].sum()
    size = sides[0].centred_norms[0] * sides[1].centred_norms[0]
    prices = np.full(width, np.inf, np.float32)
    prices[:n_tokens] = rng.choice([0.0, 0.1, 3.0]) * rng.normal(size=n_tokens) * size / n_tokens
    memory = longest_first.make_longest_first(n_tokens, n_channels)
    slack = (rounding_of_product(n_channels) + 2.0**-22) * size  # of affinities and of packing
    for floor in (best - slack - offset * size, best + slack + offset * size, np.inf):
        found = np.full(width**2, np.nan, np.float32)
        proved = multiply_while_open(sides[0], sides[1], n_tokens, prices, floor, memory, found)
        assert not proved or floor > best - slack
        if not proved:
            rows = slice(0, n_tokens * width)
            np.testing.assert_array_equal(found[rows], whole[rows])
    assert proved  # even infinity as the floor


@settings(max_examples=60, deadline=None)
@given(
    n_tokens=st.integers(1, 150),
    spread=st.sampled_from((0.0, 0.1, 2.0)),
    scale=st.sampled_from((0.0, 1.0, 30.0)),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_rows_can_add_is_bounded_closely_by_their_lengths(n_tokens, spread, scale, seed):
    rng = np.random.default_rng(seed)
    lengths_i, lengths_j = np.exp(spread * rng.normal(size=(2, n_tokens)))
    lengths_i[::-1].sort()
    prices = (scale * rng.normal(size=n_tokens)).astype(np.float32)
    n_bands = -(-n_tokens // longest_first.BAND)
    rest = np.full(n_bands + 1, np.nan)
    longest_first.bound_rest(lengths_i, lengths_j, prices, rest)
    most = (lengths_i[:, None] * lengths_j - prices).max(axis=1)
    exact = np.array([most[band * longest_first.BAND :].sum() for band in range(n_bands + 1)])
    size = np.abs(most).sum() + np.abs(prices).sum() + 1.0
    assert (rest >= exact).all()
    # Every row adds at most what the longest of its band does.
    coarse = [most[i // longest_first.BAND * longest_first.BAND] - most[i] for i in range(n_tokens)]
    assert (rest - exact <= sum(coarse) + 1e-9 * size).all()


def test_what_rows_can_add_is_exact_where_it_is_linear_in_their_lengths():
    lengths = np.sort(np.exp(np.random.default_rng(0).normal(size=90)))[::-1].copy()
    rest = np.empty(4)
    longest_first.bound_rest(lengths, np.full(90, 2.0), np.zeros(90, np.float32), rest)
    exact = [2.0 * lengths[band * longest_first.BAND :].sum() for band in range(4)]
    np.testing.assert_allclose(rest, exact, rtol=1e-9)


def test_few_long_tokens_decide_before_the_rest_is_multiplied():
    rng = np.random.default_rng(3)
    z = rng.normal(size=(2, 200, 16))
    z[:, rng.permutation(200)[:190]] *= 1e-3
    panels = [Auction().prepare(image[None].astype(np.float32)) for image in z]
    sides = images_of(*panels)
    memory = longest_first.make_longest_first(200, 16)
    affinity = np.full(padded(200) ** 2, np.nan, np.float32)
    prices = np.where(np.arange(padded(200)) < 200, 0, np.inf).astype(np.float32)
    size = float(sides[0].centred_norms[0] * sides[1].centred_norms[0])
    assert multiply_while_open(sides[0], sides[1], 200, prices, 1.5 * size, memory, affinity)
    rows = affinity.reshape(-1, padded(200))
    assert np.isfinite(rows).all(axis=1).sum() == longest_first.BAND


def test_prices_of_earlier_auctions_prove_better_bounds_than_none():
    rng = np.random.default_rng(8)
    brightness = np.exp(rng.normal(size=(40, 30, 1)))  # tokens that all others want
    panel = Auction().prepare(brightness * rng.normal(size=(40, 30, 16)) + rng.normal(size=(40, 1, 16)))
    search = Search(Auction(), panel, panel, 1)
    search.run(1)
    side, setting = search.rows.images, search.settings
    assert np.count_nonzero(side.n_learned) > 30
    memory = progressive.make_memory(panel.n_tokens, panel.n_channels)
    bounds = np.empty((2, 39))
    for prices in (side.prices, np.zeros_like(side.prices)):
        for j in range(1, 40):
            pair = frame(side.images, 0, side.images, j, setting.tolerance, setting.rounding)
            bounds[int(not prices.any()), j - 1] = usual_bound(
                side._replace(prices=prices), 0, j, pair, memory
            )
    assert (bounds[0] < bounds[1]).mean() > 0.9


def test_bounds_from_sorted_channels_are_tight_for_one_channel():
    z = np.random.default_rng(6).normal(size=(4, 30, 1))
    panel = Auction().prepare(z)
    ordered = pruning_bounds.sort_channels(panel)
    bounds = pruning_bounds.sorted_channel_bounds(panel, ordered, panel, ordered)
    expected = [[optimum(a, b) for b in z] for a in z]
    np.testing.assert_allclose(bounds, expected, atol=1e-4)


@settings(max_examples=200, deadline=None)
@given(norms=st.tuples(*[st.floats(1e-300, 1e300)] * 2), share=st.floats(-1.1, 1.1), seed=st.integers(0, 99))
def test_the_cosine_of_a_pair_is_that_of_the_kernel_to_the_last_bit(norms, share, seed):
    panel = Auction().prepare(np.random.default_rng(seed).normal(size=(2, 3, 2)))
    side = Search(Auction(), panel, panel, 1).rows.images
    mantissas, halves = kernels.even_exponents(np.array(norms))
    side = side._replace(mantissas=mantissas, halves=halves)
    matched = share * np.sqrt(norms[0]) * np.sqrt(norms[1])
    expected = kernels.cosine([[matched]], norms[:1], norms[1:])[0, 0]
    assert progressive.cosine_of_pair(matched, side, 0, side, 1) == expected


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"k": 0}, ConfigError, "k: .*: (must be|expected)"),
        ({"k": True}, ConfigError, "k: .*: (must be|expected)"),
        ({"k": 2**63 - 1}, ConfigError, "k: 9223372036854775807: .* do not fit into memory"),
        ({"k": 2.0}, ConfigError, "k: .*: (must be|expected)"),
        ({"workers": 0}, ConfigError, "workers"),
        ({"tolerance": -1.0}, ConfigError, "tolerance"),
        ({"groups": ["a"]}, InputError, "groups: expected a group or None for each of 3"),
        ({"groups": ["a", float("nan"), "b"]}, InputError, "groups: .* found nan for image 1; give None"),
        ({"database_groups": ["a"] * 3}, ConfigError, "database_groups needs a database"),
        ({"database": np.ones((2, 4, 2)), "groups": ["a"] * 3}, ConfigError, "give both"),
        ({"database": np.ones((2, 4, 3))}, InputError, "channels"),
        ({"database": np.full((2, 4, 2), np.nan)}, InputError, "database: image 0"),
        ({"queries": np.full((2, 4, 2), np.inf)}, InputError, "queries: image 0"),
    ],
)
def test_what_cannot_be_searched_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        srs.top_k(**{"queries": np.ones((3, 4, 2))} | changes)


def test_an_error_in_a_thread_stops_the_search(monkeypatch):
    begun = []

    def fail(*arguments):
        begun.append(arguments)
        time.sleep(0.2)  # in which the caller can learn of the last one
        raise MemoryError

    monkeypatch.setattr("semrsm_dist.matching.search.block.sorted_channel_bounds", fail)
    with pytest.raises(MemoryError):
        srs.top_k(np.random.default_rng(0).normal(size=(400, 2, 2)), k=1, workers=1)
    assert len(begun) < 13


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"groups": np.array("a")}, InputError),
        ({"k": 10**39}, ConfigError),
        ({"workers": 10**39}, ConfigError),
    ],
)
def test_arguments_that_are_no_lists_or_too_large_are_refused(options, error):
    with pytest.raises(error, match=next(iter(options))):
        srs.top_k(np.ones((3, 2, 2)), **options)

"""Images that differ in their number of tokens: all tokens of the smaller one are matched, certified the same way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

import semrsm_dist as srs
from semrsm_dist.errors import InputError
from semrsm_dist.matching.assignment.auction_pair import EXACT
from semrsm_dist.matching.matchers import MATCHERS, make_matcher

ROUNDING = 1e-12  # float64 sums of a few thousand terms, relative to the norms

UNEQUAL = [kind.name for kind in MATCHERS if kind.takes_unequal]
EQUAL = [kind.name for kind in MATCHERS if not kind.takes_unequal]

pairs = st.tuples(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 12),
    st.sampled_from(["plain", "offset", "negative", "duplicates", "constant", "tiny", "zero"]),
    st.integers(0, 2**32 - 1),
)


def make(n_i, n_j, n_channels, kind, seed):
    rng = np.random.default_rng(seed)
    z_i, z_j = (rng.normal(size=(n, n_channels)) for n in (n_i, n_j))
    if kind == "offset":
        z_i, z_j = z_i + 7.0, z_j + 3.0
    elif kind == "negative":  # every match costs: none may be left out all the same
        z_i, z_j = z_i + 6.0, z_j - 6.0
    elif kind == "duplicates":
        z_i, z_j = np.round(z_i), np.round(z_j)
    elif kind == "constant":
        z_i = np.repeat(z_i[:1], n_i, axis=0)
    elif kind == "tiny":
        z_i = z_i * 1e-30
    elif kind == "zero":
        z_j = z_j * 0.0
    return z_i.astype(np.float32), z_j.astype(np.float32)


def norms_of(z_i, z_j):
    return np.linalg.norm(z_i.astype(np.float64)) * np.linalg.norm(z_j.astype(np.float64))


def optimum(z_i, z_j):
    affinity = z_i.astype(np.float64) @ z_j.astype(np.float64).T
    return affinity[linear_sum_assignment(affinity, maximize=True)].sum()


def check_permutation(found, z_i, z_j):
    """All tokens of the smaller image have partners of their own, whose inner products sum to the value."""
    matched = np.flatnonzero(found.permutation >= 0)
    partners = found.permutation[matched]
    assert found.permutation.shape == (len(z_i),)
    assert len(matched) == min(len(z_i), len(z_j)) == len(set(partners.tolist()))
    assert partners.max() < len(z_j)
    value = np.einsum("sc,sc->", z_i[matched].astype(np.float64), z_j[partners].astype(np.float64))
    assert abs(found.value - value) <= ROUNDING * norms_of(z_i, z_j)


@settings(max_examples=100, deadline=None)
@given(pairs, st.sampled_from([1e-2, 1e-4, 1e-7, 0.0]))
def test_the_auction_keeps_its_promises(pair, tolerance):
    z_i, z_j = make(*pair)
    found = srs.match(z_i, z_j, tolerance=tolerance)
    scale, best = norms_of(z_i, z_j), optimum(z_i, z_j)
    check_permutation(found, z_i, z_j)
    assert best - ROUNDING * scale <= found.upper_bound
    assert found.value <= best + ROUNDING * scale
    assert 0.0 <= found.gap <= max(tolerance or EXACT, ROUNDING) * scale


@settings(max_examples=40, deadline=None)
@given(pairs)
def test_hungarian_finds_the_optimum(pair):
    z_i, z_j = make(*pair)
    found = srs.match(z_i, z_j, "hungarian")
    check_permutation(found, z_i, z_j)
    assert abs(found.value - optimum(z_i, z_j)) <= ROUNDING * norms_of(z_i, z_j)


@settings(max_examples=40, deadline=None)
@given(pairs)
def test_greedy_takes_the_largest_affinity_that_is_free(pair):
    z_i, z_j = make(*pair)
    found = srs.match(z_i, z_j, "greedy")
    check_permutation(found, z_i, z_j)
    assert found.upper_bound >= optimum(z_i, z_j) - ROUNDING * norms_of(z_i, z_j)
    affinity = z_i.astype(np.float64) @ z_j.astype(np.float64).T
    matched = np.flatnonzero(found.permutation >= 0)
    chosen = affinity[matched, found.permutation[matched]]
    assert chosen.max() >= affinity.max() - ROUNDING * norms_of(z_i, z_j)


@settings(max_examples=40, deadline=None)
@given(pairs)
def test_swapping_the_images_changes_nothing_beyond_the_certificate(pair):
    z_i, z_j = make(*pair)
    forth, back = srs.match(z_i, z_j, tolerance=1e-3), srs.match(z_j, z_i, tolerance=1e-3)
    margin = ROUNDING * norms_of(z_i, z_j)
    assert forth.value <= back.upper_bound + margin
    assert back.value <= forth.upper_bound + margin


@pytest.mark.parametrize("name", UNEQUAL)
def test_a_tile_holds_what_each_pair_gives_alone(name):
    rng = np.random.default_rng(1)
    images = [rng.normal(size=(n, 5)).astype(np.float32) + 2.0 for n in (3, 17, 17, 40, 1, 33)]
    stack = np.full((6, 40, 5), np.nan, np.float32)  # what lies beyond an image's tokens is never looked at
    for place, image in zip(stack, images, strict=True):
        place[: len(image)] = image
    matcher = make_matcher(name)
    panel = matcher.prepare(stack, [len(image) for image in images])
    tile = matcher.solve_tile(panel, panel, triangular=True)
    for i in range(6):
        for j in range(i + 1, 6):
            alone = srs.match(images[i], images[j], name)
            assert (tile.matched[i, j], tile.upper_bound[i, j]) == (alone.value, alone.upper_bound)
    same = np.equal.outer(panel.token_counts, panel.token_counts)
    assert np.array_equal(np.isnan(tile.identity), ~same)
    trace = np.vdot(images[1].astype(np.float64), images[2].astype(np.float64))
    assert tile.identity[1, 2] == pytest.approx(trace, rel=1e-12)


@pytest.mark.parametrize("name", UNEQUAL)
def test_room_for_more_tokens_changes_no_bit(name):
    rng = np.random.default_rng(2)
    z = rng.normal(size=(4, 20, 6)).astype(np.float32)
    counts = np.array([20, 7, 13, 20])
    matcher = make_matcher(name)
    narrow = matcher.solve_tile(*[matcher.prepare(z, counts)] * 2)
    wide_panel = matcher.prepare(np.pad(z, ((0, 0), (0, 30), (0, 0))), counts)
    wide = matcher.solve_tile(wide_panel, wide_panel)
    assert np.array_equal(narrow.matched, wide.matched)
    assert np.array_equal(narrow.upper_bound, wide.upper_bound)


def test_similarity_matrices_take_images_of_any_size():
    rng = np.random.default_rng(3)
    images = [rng.normal(size=(n, 4)) for n in (2, 9, 5)]
    norms = np.array([np.vdot(z, z) for z in images])
    best = np.array([[optimum(a, b) for b in images] for a in images])
    best = np.array([[np.vdot(a, b) if a is b else best[i, j] for j, b in enumerate(images)]
                     for i, a in enumerate(images)])  # fmt: skip
    cosine = srs.similarity_matrix(images, matcher="hungarian")
    np.testing.assert_allclose(cosine, best / np.sqrt(np.outer(norms, norms)), rtol=1e-12)
    rbf = srs.similarity_matrix(images, images[:2], kernel="rbf", sigma=3.0, matcher="hungarian")
    distances = norms[:, None] + norms[None, :2] - 2 * best[:, :2]
    np.testing.assert_allclose(rbf, np.exp(-distances / 18.0), rtol=1e-12)


@pytest.mark.parametrize("kernel", ["linear", "cosine", "rbf"])
def test_position_by_position_needs_positions_in_both(kernel):
    rng = np.random.default_rng(5)
    images = [rng.normal(size=(n, 2)) for n in (3, 4, 3, 4, 4)]
    options = {"kernel": kernel, "kind": "spatio-semantic"} | ({"sigma": 2.0} if kernel == "rbf" else {})
    whole = srs.similarity_matrix(images, **options)
    assert np.array_equal(whole, whole.T, equal_nan=True)
    short, long = [0, 2], [1, 3, 4]
    for some in (short, long):
        alone = srs.similarity_matrix([images[index] for index in some], **options)
        np.testing.assert_allclose(whole[np.ix_(some, some)], alone, rtol=1e-12)
    assert np.isnan(whole[np.ix_(short, long)]).all()
    rows = srs.similarity_matrix(images, np.stack([images[index] for index in long]), **options)
    np.testing.assert_allclose(rows, whole[:, long], rtol=1e-12)


def test_images_may_be_lists_of_numbers():
    images = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]]]
    arrays = [np.array(image) for image in images]
    assert np.array_equal(srs.similarity_matrix(images), srs.similarity_matrix(arrays))
    assert np.array_equal(srs.similarity_matrix(images[:1] * 2), srs.similarity_matrix(arrays[:1] * 2))
    with pytest.raises(InputError, match="z: expected representations of shape"):
        srs.similarity_matrix([[[1.0, 2.0], [3.0]]])


@pytest.mark.parametrize("name", EQUAL)
def test_matchers_that_need_equal_numbers_refuse_others(name):
    with pytest.raises(InputError, match=r"equal numbers of tokens, found 3 to 4.*'auction'"):
        srs.match(np.ones((3, 2)), np.ones((4, 2)), name)
    with pytest.raises(InputError, match="equal numbers of tokens"):
        srs.similarity_matrix(np.ones((2, 3, 2)), np.ones((2, 4, 2)), matcher=name)


@pytest.mark.parametrize("counts", [[1], [0, 2], [2, 4], [1.5, 2.0], [[1, 2]]])
def test_counts_that_do_not_go_with_the_array_are_refused(counts):
    with pytest.raises(InputError, match=r"tokens|token counts"):
        make_matcher("auction").prepare(np.ones((2, 3, 2)), counts)


def test_images_that_differ_in_channels_or_type_are_refused():
    with pytest.raises(InputError, match=r"z: expected representations.*image 1"):
        srs.similarity_matrix([np.ones((3, 2)), np.ones((4, 3))])
    with pytest.raises(InputError, match="convert them to one type"):
        srs.similarity_matrix([np.ones((3, 2)), np.ones((4, 2), np.float32)])

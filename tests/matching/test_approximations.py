"""What the approximations beyond the paper's own promise: each its definition, its guarantees, its limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from semrsm_dist.matching.assignment.auction_pair import EXACT
from semrsm_dist.matching.matchers import make_matcher
from semrsm_dist.matching.matchers.projection import draw_basis

KINDS = ("plain", "offset", "ties", "constant", "one constant", "duplicates", "unequal scales")

pairs = st.tuples(
    st.sampled_from(KINDS), st.integers(1, 45), st.sampled_from((1, 2, 5, 17)), st.integers(0, 2**32 - 1)
)


def make(kind, n_tokens, n_channels, seed):
    z = np.random.default_rng(seed).normal(size=(2, n_tokens, n_channels))
    if kind == "offset":
        z += 50.0
    elif kind == "ties":
        z = np.round(z)
    elif kind == "constant":
        z[:] = z[:, :1]
    elif kind == "one constant":
        z[1] = 0.0
    elif kind == "duplicates":
        z = z[:, np.arange(n_tokens) // 4]
    elif kind == "unequal scales":
        z[1] *= 1e12
    return z.astype(np.float32)


def norms_of(z_i, z_j):
    return np.linalg.norm(z_i.astype(np.float64)) * np.linalg.norm(z_j.astype(np.float64))


def best_permutation(z_i, z_j):
    affinity = z_i.astype(np.float64) @ z_j.astype(np.float64).T
    return linear_sum_assignment(affinity, maximize=True)[1]


def value_of(z_i, z_j, permutation):
    return float(np.sum(z_i.astype(np.float64) * z_j.astype(np.float64)[permutation]))


def optimum(z_i, z_j):
    return value_of(z_i, z_j, best_permutation(z_i, z_j))


APPROXIMATIONS = (
    ("batch-optimal", "window"),
    ("median-split", "window"),
    ("subsample", "sample"),
    ("projection", "channels"),
)


@pytest.mark.parametrize(("name", "parameter"), APPROXIMATIONS)
@settings(max_examples=60, deadline=None)
@given(pair=pairs, size=st.integers(1, 50), tolerance=st.sampled_from((0.0, 1e-3)))
def test_the_value_is_that_of_a_permutation_and_the_bound_holds(name, parameter, pair, size, tolerance):
    z_i, z_j = make(*pair)
    found = make_matcher(name, **{parameter: size, "tolerance": tolerance}).match(z_i, z_j)
    rounding = 1e-12 * norms_of(z_i, z_j)
    assert sorted(found.permutation.tolist()) == list(range(len(z_i)))
    assert found.value == pytest.approx(value_of(z_i, z_j, found.permutation), rel=0.0, abs=rounding)
    best = optimum(z_i, z_j)
    assert found.value <= best + rounding
    assert found.upper_bound >= best - rounding
    whole = len(z_i) if parameter != "channels" else z_i.shape[1]
    if size >= whole:
        assert found.value >= best - max(tolerance, EXACT) * norms_of(z_i, z_j) - rounding


@pytest.mark.parametrize(("name", "parameter"), APPROXIMATIONS)
@settings(max_examples=30, deadline=None)
@given(pair=pairs, size=st.integers(1, 50))
def test_exchanging_the_images_moves_values_only_within_the_tolerance(name, parameter, pair, size):
    kind, n_tokens, n_channels, seed = pair
    z_i, z_j = make(
        "plain" if kind in ("ties", "duplicates", "constant") else kind, n_tokens, n_channels, seed
    )
    matcher = make_matcher(name, **{parameter: size})
    there, back = matcher.match(z_i, z_j), matcher.match(z_j, z_i)
    if name == "projection":  # it tells apart what the projections do: equal there may differ on all channels
        directions = draw_basis(n_channels, size, 0).directions
        z_i, z_j = z_i @ directions.T, z_j @ directions.T
        there_value, back_value = (
            value_of(z_i, z_j, there.permutation),
            value_of(z_j, z_i, back.permutation),
        )
    else:
        there_value, back_value = there.value, back.value
    assert there_value == pytest.approx(back_value, rel=0.0, abs=2 * EXACT * norms_of(z_i, z_j))


@pytest.mark.parametrize(("name", "parameter"), APPROXIMATIONS)
def test_panels_and_company_do_not_change_a_bit(name, parameter):
    z = np.cumsum(np.random.default_rng(0).normal(size=(6, 40, 12)), axis=1).astype(np.float32)
    matcher = make_matcher(name, **{parameter: 7})
    whole = matcher.solve_tile(matcher.prepare(z), matcher.prepare(z))
    for r, c in ((0, 1), (4, 2), (5, 5)):
        again = make_matcher(name, **{parameter: 7}).match(z[r], z[c])
        assert (again.value, again.upper_bound) == (whole.matched[r, c], whole.upper_bound[r, c])


# --- subsample ---------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(pair=pairs, seed=st.integers(0, 5))
def test_a_sample_is_never_worse_than_no_matching_and_grows_with_its_size(pair, seed):
    z_i, z_j = make(*pair)
    accuracy = EXACT * norms_of(z_i, z_j)
    before = value_of(z_i, z_j, np.arange(len(z_i))) - accuracy
    for size in (1, 2, 7, 20, 45):
        value = make_matcher("subsample", sample=size, seed=seed).match(z_i, z_j).value
        assert value >= before - accuracy
        before = value


def test_tokens_outside_the_sample_stay_and_those_inside_are_matched_best():
    z_i, z_j = make("plain", 30, 4, 0)
    found = make_matcher("subsample", sample=10, seed=3).match(z_i, z_j).permutation
    sample = np.sort(np.random.default_rng(3).permutation(30)[:10])
    expected = np.arange(30)
    expected[sample] = sample[best_permutation(z_i[sample], z_j[sample])]
    np.testing.assert_array_equal(found, expected)
    assert (found != np.arange(30)).any()


@pytest.mark.parametrize(("name", "size"), [("subsample", {"sample": 10}), ("projection", {"channels": 2})])
def test_the_draw_depends_on_the_seed_alone(name, size):
    z_i, z_j = make("plain", 30, 6, 0)
    a, again, b = (make_matcher(name, **size, seed=seed).match(z_i, z_j).permutation for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, again)
    assert (a != b).any()


# --- projection --------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(n_tokens=st.integers(1, 30), channels=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_the_permutation_is_the_best_one_of_the_projected_tokens(n_tokens, channels, seed):
    z_i, z_j = make("plain", n_tokens, 8, seed)
    found = make_matcher("projection", channels=channels, seed=seed % 7).match(z_i, z_j)
    directions = draw_basis(8, channels, seed % 7).directions
    p_i, p_j = (z.astype(np.float64) @ directions.T for z in (z_i, z_j))
    assert value_of(p_i, p_j, found.permutation) >= optimum(p_i, p_j) - EXACT * norms_of(p_i, p_j)


@pytest.mark.parametrize(("n_channels", "k"), [(1, 1), (5, 3), (200, 32), (16, 16), (16, 40)])
def test_directions_are_orthonormal(n_channels, k):
    directions, rounding = draw_basis(n_channels, k, 0)
    k = min(k, n_channels)
    assert directions.shape == (k, n_channels)
    np.testing.assert_allclose(directions @ directions.T, np.eye(k), atol=1e-13)
    assert 0.0 < rounding < 1e-10


def test_directions_favour_no_channel():
    """Uniform directions have squared components of mean 1 / C in every channel."""
    squares = np.array([draw_basis(6, 2, seed).directions[0] ** 2 for seed in range(600)])
    np.testing.assert_allclose(squares.mean(axis=0), 1.0 / 6.0, atol=0.03)
    signs = np.array([np.sign(draw_basis(6, 2, seed).directions[0, 0]) for seed in range(600)])
    assert abs(signs.mean()) < 0.15


def test_the_certificate_of_a_projection_tightens_with_its_channels_and_beats_the_norms():
    rng = np.random.default_rng(4)
    z_i, z_j = (rng.normal(size=(2, 60, 3)) @ rng.normal(size=(3, 24))).astype(np.float32)  # rank 3
    gaps = [
        make_matcher("projection", channels=k).match(z_i, z_j).gap / norms_of(z_i, z_j) for k in (1, 8, 24)
    ]
    by_norms = make_matcher("identity").match(z_i, z_j).upper_bound
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] <= EXACT
    assert make_matcher("projection", channels=8).match(z_i, z_j).upper_bound < by_norms


# --- median-split ------------------------------------------------------------------------------------------


def split(z_i, z_j, part_i, part_j, window):
    """Return the leaves by the eigenvectors of the summed covariances: the definition, computed differently."""
    if len(part_i) <= window:
        return [(part_i, part_j)]
    covariances = []
    for z, part in ((z_i, part_i), (z_j, part_j)):
        centred = z[part].astype(np.float64) - z[part].astype(np.float64).mean(axis=0)
        covariances.append(centred.T @ centred / np.sum(centred**2))
    direction = np.linalg.eigh(sum(covariances))[1][:, -1]
    direction = direction * np.sign(direction[np.abs(direction).argmax()])
    middle = len(part_i) // 2
    part_i, part_j = (part[np.argsort(z[part] @ direction)] for z, part in ((z_i, part_i), (z_j, part_j)))
    return split(z_i, z_j, part_i[:middle], part_j[:middle], window) + split(
        z_i, z_j, part_i[middle:], part_j[middle:], window
    )


@pytest.mark.parametrize("window", (1, 5, 10, 20))
@pytest.mark.parametrize("seed", range(3))
def test_leaves_are_halves_along_the_common_principal_components(window, seed):
    # Clusters far apart on a few axes: the split is clear, however accurate the direction is. The first image alone
    # would be split along another axis first.
    rng = np.random.default_rng(seed)
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    n_tokens = 8 if window == 1 else 40
    z_i, z_j = (
        scale
        * (spread * corners[rng.permutation(n_tokens) % 8] + 0.05 * rng.normal(size=(n_tokens, 3)))
        @ turn
        for scale, spread in ((1.0, np.array([9, 6, 1])), (100.0, np.array([2, 9, 1])))
    )
    leaves = split(z_i, z_j, np.arange(n_tokens), np.arange(n_tokens), window)
    assert len(leaves) == n_tokens // window
    found = make_matcher("median-split", window=window).match(z_i, z_j)
    assert all(set(found.permutation[part_i]) == set(part_j) for part_i, part_j in leaves)
    expected = sum(optimum(z_i[part_i], z_j[part_j]) for part_i, part_j in leaves)
    assert found.value == pytest.approx(expected, rel=0.0, abs=EXACT * norms_of(z_i, z_j))


@settings(max_examples=40, deadline=None)
@given(pair=pairs, window=st.integers(1, 50))
def test_shifts_and_scales_of_an_image_do_not_change_the_split(pair, window):
    kind, n_tokens, n_channels, seed = pair
    z_i, z_j = make(kind if kind == "offset" else "plain", n_tokens, n_channels, seed).astype(np.float64)
    matcher = make_matcher("median-split", window=window)
    plain = matcher.match(z_i, z_j).permutation
    np.testing.assert_array_equal(matcher.match(z_i * 2.0**40, z_j).permutation, plain)
    shifted = matcher.match(z_i, z_j + np.arange(n_channels)).permutation
    accuracy = EXACT * norms_of(z_i, z_j + np.arange(n_channels))
    assert value_of(z_i, z_j, shifted) == pytest.approx(value_of(z_i, z_j, plain), rel=0.0, abs=accuracy)


def test_one_channel_is_matched_in_order_whatever_the_window():
    """With one channel the best permutation sorts both images, and so do all splits."""
    z_i, z_j = make("plain", 45, 1, 8)
    best = optimum(z_i, z_j)
    for window in (1, 3, 10):
        value = make_matcher("median-split", window=window).match(z_i, z_j).value
        assert value == pytest.approx(best, rel=0.0, abs=EXACT * norms_of(z_i, z_j))


def test_a_split_that_follows_the_data_keeps_more_than_windows_of_equal_norm():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 16))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)  # norms tell nothing here
    z_i, z_j = (
        (centres[rng.permutation(160) % 10] + 0.05 * rng.normal(size=(160, 16))).astype(np.float32)
        for _ in range(2)
    )
    best = optimum(z_i, z_j)
    by_norm, by_split = (
        make_matcher(name, window=40).match(z_i, z_j).value / best
        for name in ("batch-optimal", "median-split")
    )
    assert by_split > by_norm


def test_values_almost_too_small_to_square_are_split():
    z_i, z_j = make("plain", 20, 3, 0).astype(np.float64) * 1e-130
    found = make_matcher("median-split", window=4).match(z_i, z_j)
    assert sorted(found.permutation.tolist()) == list(range(20))


@pytest.mark.parametrize(("name", "parameter"), APPROXIMATIONS)
def test_zero_representations_have_value_and_bound_zero(name, parameter):
    z = make("plain", 20, 4, 0)
    z[1] = 0.0
    for z_i, z_j in ((z[0], z[1]), (z[1], z[0]), (z[1], z[1])):
        found = make_matcher(name, **{parameter: 3}).match(z_i, z_j)
        assert found.value == found.upper_bound == 0.0

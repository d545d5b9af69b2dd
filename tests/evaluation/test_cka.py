"""CKA agrees with its dense formulas, whatever the blocks, and with the definition of the debiased one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.errors import InputError
from semrsm_dist.evaluation.bootstrap import draw_counts
from semrsm_dist.evaluation.cka import cka
from semrsm_dist.evaluation.entries import Entries


def gram(n, channels, seed):
    z = np.random.default_rng(seed).normal(size=(n, channels))
    return z @ z.T


def dense_hsic(k, m):
    n = len(k)
    h = np.eye(n) - 1 / n
    return np.trace(k @ h @ m @ h)


def dense_unbiased_hsic(k, m):
    """Song et al. (2012), equation 5."""
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    n, ones = len(k), np.ones(len(k))
    terms = (
        np.trace(k @ m)
        + (ones @ k @ ones) * (ones @ m @ ones) / (n - 1) / (n - 2)
        - 2 / (n - 2) * (ones @ k @ m @ ones)
    )
    return terms / n / (n - 3)


def dense_cka(k, m, hsic):
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def value(k, m, debiased, rows=256, counts=None):
    return cka(Entries.of(k, m, rows), debiased=debiased, counts=counts).values


@pytest.mark.parametrize("rows", [1, 7, 100])
@pytest.mark.parametrize(("debiased", "hsic"), [(False, dense_hsic), (True, dense_unbiased_hsic)])
def test_it_agrees_with_the_dense_formula(rows, debiased, hsic):
    k, m = gram(25, 4, 0), gram(25, 4, 0) + gram(25, 3, 1)
    assert value(k, m, debiased, rows) == pytest.approx(dense_cka(k, m, hsic), abs=1e-12)


def test_linear_cka_of_features_is_that_of_their_covariances():
    """Kornblith et al. (2019), section 3: the squared norm of the cross-covariance over those of both."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 6))
    a, b = x - x.mean(axis=0), y - y.mean(axis=0)
    expected = np.linalg.norm(b.T @ a) ** 2 / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b)
    assert value(x @ x.T, y @ y.T, debiased=False) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("debiased", [True, False])
def test_a_matrix_is_fully_aligned_with_itself_scaled_and_shifted(debiased):
    k = gram(12, 5, 0)
    assert value(k, 3 * k + 1e4, debiased) == pytest.approx(1, abs=1e-9)
    assert value(k, -k, debiased) == pytest.approx(-1)


def test_the_debiased_one_does_not_see_the_diagonal():
    k, m = gram(12, 5, 0), gram(12, 5, 1)
    assert value(k + 7 * np.eye(12), m, debiased=True) == pytest.approx(value(k, m, debiased=True))


def test_unrelated_features_are_unrelated_without_bias_alone():
    values = {
        kind: [value(gram(20, 50, s), gram(20, 50, s + 99), kind)[0] for s in range(40)]
        for kind in (True, False)
    }
    assert abs(np.mean(values[True])) < 0.03
    assert np.mean(values[False]) > 0.5


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_a_resample_correlates_what_the_best_weighted_fit_leaves(seed, rows):
    n = 9
    k, m = gram(n, 3, seed), gram(n, 3, seed + 1) + 5
    counts = draw_counts(n, resamples=3, seed=seed)
    counts[0] = [3, 1, 0, 1, 1, 0, 2, 0, 0]
    i, j = np.triu_indices(n, k=1)
    design = np.zeros((i.size, n))
    design[np.arange(i.size), i] = design[np.arange(i.size), j] = 1
    for row, found in zip(counts, value(k, m, debiased=True, rows=rows, counts=counts), strict=True):
        if (row > 0).sum() < 4 or 2 * row.max() >= n:
            assert np.isnan(found)
            continue
        roots = np.sqrt(row[i] * row[j])
        left, right = (
            y - roots[:, None] * design @ np.linalg.lstsq(roots[:, None] * design, y, rcond=None)[0]
            for y in (roots * k[i, j], roots * m[i, j])
        )
        if min(np.linalg.norm(left), np.linalg.norm(right)) > 1e-6:
            expected = left @ right / np.linalg.norm(left) / np.linalg.norm(right)
            assert found == pytest.approx(expected, abs=1e-7)


def test_intervals_of_resamples_cover_the_value_of_many_images():
    def features(n, seed):
        shared, *own = np.random.default_rng(seed).normal(size=(3, n, 3))
        return shared + own[0], shared + own[1]

    x, y = features(3000, 0)
    truth = value(x @ x.T, y @ y.T, debiased=True)[0]
    covered = 0
    for seed in range(1, 41):
        x, y = features(40, seed)
        replicates = value(x @ x.T, y @ y.T, debiased=True, counts=draw_counts(40, resamples=200, seed=seed))
        low, high = np.nanquantile(replicates, [0.05, 0.95])
        covered += low <= truth <= high
    assert 30 <= covered <= 40


def test_an_image_without_similarity_to_itself_is_left_out_and_counted():
    k, m = gram(10, 3, 0), gram(10, 3, 1)
    k[4, :] = k[:, 4] = np.nan
    kept = np.delete(np.arange(10), 4)
    found = cka(Entries.of(k, m, 3))
    assert found.values == pytest.approx(value(k[np.ix_(kept, kept)], m[np.ix_(kept, kept)], debiased=True))
    assert (found.n_images, found.n_left_out) == (9, 1)


def test_a_hole_in_the_matrix_is_refused():
    k = gram(6, 3, 0)
    k[1, 2] = np.nan
    with pytest.raises(InputError, match="undefined"):
        cka(Entries.of(k, gram(6, 3, 1)))


@pytest.mark.parametrize(
    "k", [np.full((8, 8), 0.7), np.eye(8)], ids=["constant", "constant but for the diagonal"]
)
@pytest.mark.parametrize("debiased", [True, False])
def test_a_constant_matrix_has_no_alignment(k, debiased):
    assert np.isnan(value(k, gram(8, 3, 0), debiased)).all()


@pytest.mark.parametrize("n", [8, 10, 20, 30, 200])
@pytest.mark.parametrize("kind", ["outlier", "sum"])
@pytest.mark.parametrize("debiased", [True, False])
def test_what_belongs_to_single_images_alone_is_no_alignment(n, kind, debiased):
    rng = np.random.default_rng(n)
    own = rng.normal(size=n) if kind == "sum" else (np.arange(n) == 3) * 0.7
    k = own[:, None] + own
    for pair in ((k, gram(n, 3, 0)), (gram(n, 3, 0), k), (k, k)):
        assert np.isnan(value(*pair, debiased)).all()
    assert np.isfinite(value(k + 1e-4 * gram(n, 3, 1), gram(n, 3, 0), debiased)).all()


def test_resamples_without_the_only_images_that_differ_have_none():
    k, other = np.ones((12, 12)), gram(12, 3, 0)
    k[2, 5] = k[5, 2] = 0.3
    counts = draw_counts(12, resamples=40, seed=0)
    found = value(k, other, True, counts=counts)
    both = (counts[:, 2] > 0) & (counts[:, 5] > 0)
    assert 0 < both.sum() < 40
    assert np.isnan(found[~both]).all()
    assert np.isfinite(found[both]).any()


def test_three_images_are_too_few():
    assert np.isnan(value(gram(3, 3, 0), gram(3, 3, 1), debiased=True)).all()

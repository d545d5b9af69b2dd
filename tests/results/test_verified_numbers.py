"""The conditions that a verification checks: true of what matchers compute, and false once it is changed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.matching.matchers import make_matcher
from semrsm_dist.results.verification.numbers import (
    Numbers,
    best_inner_product,
    check_features,
    check_match,
    check_pairs,
    draw_pairs,
)
from semrsm_dist.results.verification.tiles import certificate_of
from semrsm_dist.store.tiles import encode

MATCHERS = ("auction", "hungarian", "greedy", "identity", "subsample")


def features(seed, n=3, n_tokens=5):
    return np.random.default_rng(seed).normal(size=(n, n_tokens, 4)).astype(np.float32)


def solve(name, z):
    """Return a matcher, and what a run stores of all pairs."""
    matcher = make_matcher(name)
    panel = matcher.prepare(z)
    tile = matcher.solve_tile(panel, panel)
    stored = encode(tile.matched, tile.identity, tile.upper_bound, np.dtype(np.float32))
    norms = np.sqrt(np.outer(panel.squared_norms, panel.squared_norms))
    return matcher, Numbers(*stored.astype(np.float64)), norms


def kinds(matcher, numbers, norms):
    comparable = np.ones(norms.shape, bool)
    found = check_pairs(numbers, norms, comparable, certificate_of(matcher), lambda r, c: f"{r}, {c}")
    return {str(problem.kind) for problem in found}


@pytest.mark.parametrize("name", MATCHERS)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_matchers_compute_has_no_fault(name, seed):
    z = features(seed)
    matcher, numbers, norms = solve(name, z)
    assert kinds(matcher, numbers, norms) == set()
    for r, c in itertools.product(range(len(z)), repeat=2):
        assert not list(check_match(z[r], z[c], tuple(float(each[r, c]) for each in numbers)))


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("matched", np.nan, "not-finite"),
        ("gap", np.inf, "not-finite"),
        ("identity", np.nan, "not-finite"),
        ("matched", 1e9, "norms"),
        ("identity", -1e9, "norms"),
        ("matched", -1.0, "identity"),
        ("gap", -1e-3, "gap"),
        ("gap", 1.0, "gap"),
    ],
)
def test_a_changed_number_is_a_fault(field, value, kind):
    matcher, numbers, norms = solve("auction", np.abs(features(0)))
    getattr(numbers, field)[1, 2] = value
    assert kind in kinds(matcher, numbers, norms)


@pytest.mark.parametrize("amount", [-0.1, 0.1])
def test_a_match_beside_the_optimum_contradicts_its_certificate(amount):
    z = features(0)
    _, numbers, _ = solve("hungarian", z)
    stored = [float(each[0, 1]) for each in numbers]
    stored[0] += amount
    (problem,) = check_match(z[0], z[1], (stored[0], stored[1], stored[2]))
    assert problem.kind == "certificate"


@given(seed=st.integers(0, 2**32 - 1), shape=st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_the_best_inner_product_is_that_of_all_permutations(seed, shape):
    affinity = np.random.default_rng(seed).normal(size=shape)
    narrow = affinity if shape[0] <= shape[1] else affinity.T
    rows = range(len(narrow))
    everything = (
        narrow[rows, chosen].sum() for chosen in itertools.permutations(range(narrow.shape[1]), len(narrow))
    )
    assert best_inner_product(affinity) == pytest.approx(max(everything), abs=1e-12)


@given(
    sizes=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    count=st.integers(0, 400),
    symmetric=st.booleans(),
)
def test_drawn_pairs_are_different_and_all_if_there_are_no_more(sizes, count, symmetric):
    n_rows, n_columns = (sizes[0], sizes[0]) if symmetric else sizes
    pairs = draw_pairs(n_rows, n_columns, count, np.random.default_rng(0), symmetric=symmetric)
    total = math.comb(n_rows, 2) if symmetric else n_rows * n_columns
    listed = [tuple(pair) for pair in pairs.tolist()]
    assert listed == sorted(set(listed))
    assert all(0 <= i < n_rows and 0 <= j < n_columns and (i < j or not symmetric) for i, j in listed)
    assert len(listed) <= count or len(listed) == total
    if total <= count:
        assert len(listed) == total


def test_features_are_blamed_if_all_that_is_derived_of_them_differs():
    z, counts = features(0), np.full(3, 5)
    norms, pooled = np.einsum("tsc,tsc->t", z.astype(float), z.astype(float)), z.mean(axis=1)
    assert list(check_features(z, counts, norms, pooled)) == []
    z[1, 2, 3] += 1
    assert [(name, str(problem.kind)) for name, problem in check_features(z, counts, norms, pooled)] == [
        ("features", "features")
    ]

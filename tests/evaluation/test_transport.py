"""Entropic transport against its definition, and against matching where the two meet."""

import math

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from semrsm_dist.errors import ConfigError
from semrsm_dist.evaluation.tokens import unit_tokens
from semrsm_dist.evaluation.transport import Transport, token_masses


def make_tokens(n_images, n_tokens, seed=0, n_channels=4):
    rng = np.random.default_rng(seed)
    return unit_tokens(rng.normal(size=(n_images, n_tokens, n_channels)))


def uniform(z):
    return token_masses(z, np.full(len(z), z.shape[1]))


def transported(query, image, a, b, entropy, relaxation, iterations=3000):
    """Return sum(P * A) of one pair in float64, by Sinkhorn's steps in the logarithmic domain."""
    affinity = query.astype(float) @ image.astype(float).T
    power = 1.0 if math.isinf(relaxation) else relaxation / (relaxation + entropy)
    scaled = (affinity - 1) / entropy
    f, g = np.zeros(len(a)), np.zeros(len(b))
    with np.errstate(divide="ignore"):
        log_a, log_b = np.log(a), np.log(b)
    for _ in range(iterations):
        f = -power * np.logaddexp.reduce(scaled + (log_b + g), axis=1)
        g = -power * np.logaddexp.reduce(scaled.T + (log_a + f), axis=1)
    plan = np.exp(scaled + (log_a + f)[:, None] + log_b + g)
    return np.sum(plan * affinity), plan


@pytest.mark.parametrize("relaxation", [math.inf, 1.0, 0.1])
@pytest.mark.parametrize("product_bytes", [1, 2**20])
def test_it_is_what_the_best_plan_transports(relaxation, product_bytes):
    queries, database = make_tokens(3, 5), make_tokens(2, 7, seed=1)
    masses = uniform(queries), uniform(database)
    transport = Transport(0.2, relaxation, iterations=300)
    found = transport.similarities(queries, database, masses, product_bytes=product_bytes)
    for i, query in enumerate(queries):
        for j, image in enumerate(database):
            expected, plan = transported(query, image, masses[0][i], masses[1][j], 0.2, relaxation)
            assert found[i, j] == pytest.approx(expected, abs=2e-5)
            if math.isinf(relaxation):
                np.testing.assert_allclose(plan.sum(axis=0), masses[1][j], atol=1e-6)


def test_it_is_that_of_an_independent_library():
    ot = pytest.importorskip("ot")
    query, image = make_tokens(1, 6), make_tokens(1, 6, seed=1)
    masses = uniform(query)[0]
    cost = 1 - query[0].astype(float) @ image[0].astype(float).T
    plans = {
        math.inf: ot.sinkhorn(masses, masses, cost, 0.1, numItermax=5000),
        0.3: ot.sinkhorn_unbalanced(
            masses, masses, cost, 0.1, 0.3, reg_type="kl", numItermax=5000, stopThr=1e-12
        ),
    }
    for relaxation, plan in plans.items():
        found = Transport(0.1, relaxation, 1000).similarities(query, image, (masses[None], masses[None]))
        assert found[0, 0] == pytest.approx(np.sum(plan * (1 - cost)), abs=1e-5)


def test_with_little_entropy_it_approaches_the_best_permutation_from_below():
    left, right = make_tokens(1, 8), make_tokens(1, 8, seed=1)
    affinity = left[0].astype(float) @ right[0].astype(float).T
    rows, columns = linear_sum_assignment(affinity, maximize=True)
    best = affinity[rows, columns].mean()
    found = [
        Transport(entropy, iterations=2000).similarities(left, right, (uniform(left), uniform(right)))[0, 0]
        for entropy in (1.0, 0.2, 0.05)
    ]
    assert found == sorted(found)
    assert best - 0.02 < found[-1] <= best + 1e-4


def test_places_without_a_token_take_no_part():
    short = make_tokens(1, 3)
    padded = np.concatenate([short, np.full((1, 2, 4), 9.0, np.float32)], axis=1)
    image = make_tokens(1, 5, seed=1)
    masses = token_masses(padded, np.array([3]))
    assert masses[0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0])
    transport = Transport(0.2)
    padded[0, 3:] = 0
    np.testing.assert_allclose(
        transport.similarities(padded, image, (masses, uniform(image))),
        transport.similarities(short, image, (uniform(short), uniform(image))),
        rtol=1e-5,
    )


def test_masses_follow_the_norms_where_requested():
    z = np.zeros((2, 3, 2), np.float32)
    z[0, :, 0] = 1, 3, 0
    masses = token_masses(z, np.array([3, 2]), by_norm=True)
    np.testing.assert_allclose(masses, [[0.25, 0.75, 0], [0.5, 0.5, 0]])


@pytest.mark.parametrize(
    "parameters", [{"entropy": 0.01}, {"entropy": math.nan}, {"relaxation": 0.0}, {"iterations": 0}]
)
def test_parameters_that_cannot_be_used_are_refused(parameters):
    with pytest.raises(ConfigError, match=r"entropy of at least 0\.03"):
        Transport(**parameters)

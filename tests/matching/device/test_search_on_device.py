"""A search whose pairs GPUs match first has the hits of the CPU's, to the last bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import semrsm_dist as srs
from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.matching import similarity

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def _one_gpu(device):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "_GPU_TILE", 5)
        if type(device).__name__ == "EmulatedDevice":
            patch.setattr(similarity, "available_gpus", lambda: 1)
        yield


def images(seed, n, likeness=1.0):
    """Images of which some are equal, one is zero, and all resemble each other."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(1, 9, 6)) + likeness * rng.normal(size=(n, 9, 6))
    z[n // 2] = z[0]
    z[n - 1] = 0
    return z.astype(np.float32)


def require_same_hits(found, expected):
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.similarities, expected.similarities)
    assert found.pairs == expected.pairs


@settings(max_examples=4)
@given(
    seed=st.integers(0, 1000),
    likeness=st.sampled_from([1.0, 0.03]),
    tolerance=st.sampled_from([0.0, 1e-3, 0.1]),
    k=st.integers(1, 6),
)
@pytest.mark.parametrize("has_database", [False, True])
def test_hits_are_those_of_the_cpu(device, has_database, seed, likeness, tolerance, k):
    z = images(seed, 12, likeness)
    y = images(seed + 1, 9, likeness) if has_database else None
    groups = [None, "a", "b"] * 4
    options = {"tolerance": tolerance, "k": k, "groups": groups}
    if has_database:
        options["database_groups"] = groups[:9]
    require_same_hits(srs.top_k(z, y, device="cuda", **options), srs.top_k(z, y, **options))


def test_most_pairs_are_settled_on_the_gpu_where_images_differ(device):
    z = np.random.default_rng(0).normal(size=(30, 9, 6)).astype(np.float32).cumsum(axis=1)
    found = srs.top_k(z, k=2, device="cuda")
    require_same_hits(found, srs.top_k(z, k=2))
    assert found.solved > 0.5 * found.pairs


def test_bad_input_is_refused_before_the_gpu_is_used(device, monkeypatch):
    z = images(0, 6)
    z[2, 3, 4] = np.nan
    with pytest.raises(InputError, match="image 2 holds 1 NaN"):
        srs.top_k(z, device="cuda")
    monkeypatch.setattr(similarity, "available_gpus", lambda: 0)
    with pytest.raises(ConfigError, match="needs 1 GPU, but this machine has 0"):
        srs.top_k(images(0, 6), device="cuda")

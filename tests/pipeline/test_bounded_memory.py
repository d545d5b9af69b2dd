"""Memory is what the configuration allows, whatever the number of images."""

from __future__ import annotations

import numpy as np
import pytest

import semrsm_dist as srs

WORKERS = 2
WORKER_MEMORY = 16 * 2**20
TOKENS, CHANNELS = 8, 784


def write_features(path, n_images):
    """Write features panel by panel: this process must not hold them either."""
    z = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n_images, TOKENS, CHANNELS))
    rng = np.random.default_rng(0)
    for start in range(0, n_images, 100):
        z[start : start + 100] = rng.normal(size=z[start : start + 100].shape)
    return path


def measure(shop, n_images):
    """Return the memory that a run of 10 queries against so many images takes on top of the libraries, in bytes."""

    def document(run, data):
        matching = {"matcher": "auction", "tolerance": 0.2, "worker_memory": WORKER_MEMORY}
        document = shop.of_features(run, data, matching=matching, workers=WORKERS)
        return document | {"queries": {"source": "features", "layers": {"last": str(queries)}}}

    queries = write_features(shop.path / "queries.npy", 10)
    images = write_features(shop.path / f"{n_images}.npy", n_images)
    documents = [document(f"warm{n_images}", queries), document(f"run{n_images}", images)]
    return shop.measure_memory(*documents)


@pytest.mark.timeout(240)
def test_five_thousand_images_take_no_more_memory_than_is_allowed(shop):
    small, large = measure(shop, 1250), measure(shop, 5000)
    allowed = WORKERS * WORKER_MEMORY
    assert (shop.path / "5000.npy").stat().st_size > 3.5 * allowed
    assert large < allowed
    assert large - small < allowed / 2  # for 88 MiB more of features
    matrix = srs.open_run(shop.path / "run5000").similarity("last")
    assert matrix.shape == (10, 5000)
    assert np.isfinite(matrix.values).all()

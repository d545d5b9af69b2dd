"""Small runs to read: ready-made features with labels, groups, ties and awkward ids, in each shape a run can have."""

import numpy as np
import pandas as pd
import pytest

import semrsm_dist as srs

N_IMAGES, N_QUERIES, N_TOKENS, N_CHANNELS = 14, 6, 9, 4


def make_run(folder, *, queries=False, **settings):
    """Compute a run on random features; image 7 is a copy of image 3, and images 8 and 9 are of one group."""
    rng = np.random.default_rng(0)
    document = {
        "run": str(folder / "run"),
        "kernels": ["cosine", "rbf"],
        "matching": {"tile": 4, "tolerance": 1e-4},
        **settings,
    }
    for side, count in (("data", N_IMAGES), ("queries", N_QUERIES * queries)):
        if not count:
            continue
        section = {"source": "features", "layers": {}, "table": str(folder / f"{side}.parquet")}
        table = {
            "image_id": [f"größe {side} {index}" for index in range(count)],
            "labels": [[f"class {index % 3}", "=1+1"] for index in range(count)],
            "group": ["pair" if index in (8, 9) else None for index in range(count)],
        }
        pd.DataFrame(table).to_parquet(section["table"])
        for layer in ("early", "late"):
            z = rng.normal(size=(count, N_TOKENS, N_CHANNELS)).astype(np.float32)
            if count == N_IMAGES:
                z[7] = z[3]
            np.save(folder / f"{side}.{layer}.npy", z)
            section["layers"][layer] = str(folder / f"{side}.{layer}.npy")
        document[side] = section
    return srs.run(document)


@pytest.fixture(scope="session")
def symmetric(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("symmetric"))


@pytest.fixture(scope="session")
def rectangular(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("rectangular"), queries=True)


@pytest.fixture(scope="session")
def neighbours(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("neighbours"), output={"neighbours": {"k": 5}})


@pytest.fixture(scope="session")
def features(symmetric):
    """The features of the symmetric run's layer `late`."""
    return np.load(symmetric.directory.path.parent / "data.late.npy")

"""Small runs to report: ready-made features of pictures with awkward names, in each shape that a run can have."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import semrsm_dist as srs

HOSTILE = "</script><img src=x onerror=alert(1)>.png"


def draw(path, seed):
    """Save a picture of 4 x 4 coloured squares."""
    squares = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(squares).resize((32, 24), Image.Resampling.NEAREST).save(path)


def make_run(
    folder, n_images=24, *, n_queries=0, layers=("early", "late"), pictures=True, labels=True, **settings
):
    """Compute a run of features on a grid of 3 x 3 tokens, of which half come from a class that its images share."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    prototypes = rng.normal(size=(3, 9, 5))
    document = {
        "run": str(folder / "run"),
        "matching": {"tolerance": 1e-4},
        "retrieval": {"k": [1, 3]},
        **settings,
    }
    for side, count in (("data", n_images), ("queries", n_queries)):
        if not count:
            continue
        classes = np.arange(count) % 3
        names = [f"{side} {index}.png" for index in range(count)]
        if side == "data":
            names[0] = HOSTILE.replace("/", "\N{DIVISION SLASH}")
        table = {
            "image_id": [
                HOSTILE if index == 0 and side == "data" else name for index, name in enumerate(names)
            ],
            "labels": [["<b>bold</b>", f"class {c}"] if labels else [] for c in classes],
        }
        if pictures:
            table["uri"] = names
            for index, name in enumerate(names):
                draw(folder / name, index)
        pd.DataFrame(table).to_parquet(folder / f"{side}.parquet")
        section = {"source": "features", "layers": {}, "table": str(folder / f"{side}.parquet")}
        for layer in layers:
            z = rng.normal(size=(count, 9, 5))
            for image, of_class in enumerate(classes):
                z[image, rng.permutation(9)] += 2 * prototypes[of_class]
            np.save(folder / f"{side}.{layer}.npy", z.astype(np.float32))
            section["layers"][layer] = str(folder / f"{side}.{layer}.npy")
        document[side] = section
    return srs.run(document)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("symmetric"))


@pytest.fixture(scope="session")
def rectangular(tmp_path_factory):
    kernels = ["cosine", "linear", "rbf"]
    return make_run(tmp_path_factory.mktemp("rectangular"), n_queries=7, kernels=kernels)


@pytest.fixture(scope="session")
def neighbours(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("neighbours"), output={"neighbours": {"k": 4}})


@pytest.fixture
def copy(tmp_path):
    """A run to be damaged."""
    return make_run(tmp_path / "copy")

"""Measure progressive top-k search against the full matrix that gives the same hits.

    pip install '.[bench]' && python jobs/bench_top_k.py [--layers resnet18/layer3 ...] [--k 1 10] [--json FILE]

One process on one core. In each round the matrix and the searches run one after the other, so that whatever else
the machine does hits them alike; times are medians of processor time, preparation included on both sides. Every
search is checked against the matrix, bit by bit. Images are digit scenes through the network trained on them, and
crops at random places of photographs that come with scikit-image and scikit-learn, through networks with random
weights (theirs need a download).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import skimage
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from threadpoolctl import threadpool_limits

import semrsm_dist as srs
from semrsm_dist.data.sources.digits import DigitScenes
from semrsm_dist.features.extractor import Extractor
from semrsm_dist.features.models import ModelSpec

LAYERS = (
    ("test_resnet", "digits", "layer4", 400),
    ("test_resnet", "digits", "layer3", 400),
    ("test_resnet", "digits", "layer2", 400),
    ("test_resnet", "digits", "layer1", 200),
    ("resnet18", "random", "layer4", 320),
    ("resnet18", "random", "layer3", 320),
    ("resnet18", "random", "layer2", 160),
    ("vit_base_patch16_224", "random", "blocks.5", 160),
)
"""Network, weights, layer, and images: the matrix takes about a minute at most."""

PHOTOGRAPHS = (
    "astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg",
    "hubble_deep_field.jpg", "ihc.png", "camera.png", "coins.png", "moon.png", "brick.png", "grass.png", "gravel.png",
)  # fmt: skip
BATCH = 20
STAGES = ("without_product", "sketched", "with_product", "solved")


def crops(n: int) -> list[Image.Image]:
    """Return n square crops of 224 pixels, of all photographs in turn, from a third of a side to the whole."""
    folder = Path(skimage.__file__).parent / "data"
    photos = [Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS]
    photos += [Image.fromarray(photo) for photo in load_sample_images().images]
    rng = np.random.default_rng(0)
    result = []
    for number in range(n):
        photo = photos[number % len(photos)]
        side = round(rng.uniform(0.3, 1.0) * min(photo.size))
        left, top = (int(rng.integers(0, length - side + 1)) for length in photo.size)
        result.append(photo.crop((left, top, left + side, top + side)).resize((224, 224)))
    return result


def features(name: str, weights: str, layer: str, n: int) -> NDArray[np.float32]:
    """Return representations (n, S, C) of digit scenes or of crops of photographs."""
    if weights == "digits":
        scenes = DigitScenes(n_images=n, digits=(1, 4), split="evaluation")
        images = [scenes.read(record) for record in scenes.entries()]
    else:
        images = crops(n)
    extract = Extractor(ModelSpec(name, weights), [layer], device="cpu")
    return np.concatenate([extract(images[at : at + BATCH])[layer] for at in range(0, n, BATCH)])


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a function returns, and its processor time in seconds."""
    started = time.process_time()
    return function(), time.process_time() - started


def require_same_hits(matrix: NDArray[np.float64], found: Any) -> None:
    """Raise unless a search found what the matrix says, with the same similarities."""
    k = found.indices.shape[1]
    hits = np.argsort(-matrix, axis=1, kind="stable")[:, :k]
    if not np.array_equal(hits, found.indices) or not np.array_equal(
        np.take_along_axis(matrix, hits, axis=1), found.similarities
    ):
        raise AssertionError("the search differs from the matrix: this is a bug, please report it")


def measure(
    z: NDArray[np.float32], ks: list[int], n_queries: int, tolerance: float, rounds: int
) -> pd.DataFrame:
    """Return a row for each k: shares of pairs by what decided them, seconds, and the speed-up."""
    sides = (z[:n_queries], z[n_queries:]) if n_queries else (z, None)
    measured = []
    for _ in range(rounds):
        matrix, seconds = timed(lambda: srs.similarity_matrix(*sides, tolerance=tolerance, workers=1))
        if not n_queries:
            np.fill_diagonal(matrix, -np.inf)
        for k in ks:
            found, passed = timed(lambda k=k: srs.top_k(*sides, k, tolerance=tolerance, workers=1))
            require_same_hits(matrix, found)
            shares = {stage: getattr(found, stage) / found.pairs for stage in STAGES}
            measured.append({"k": k, "pairs": found.pairs, **shares, "matrix s": seconds, "top-k s": passed})
    table = pd.DataFrame(measured).groupby("k", as_index=False).median()
    return table.assign(**{"speed-up": table["matrix s"] / table["top-k s"]})


def main() -> None:
    """Measure the requested layers and print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    names = [f"{name}/{layer}" for name, _, layer, _ in LAYERS]
    parser.add_argument("--layers", nargs="+", choices=names, default=names)
    parser.add_argument("--k", nargs="+", type=int, default=[1, 10])
    parser.add_argument("--queries", type=int, default=0, help="search the first images in the others")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, default=0, help="the core to run on")
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    torch.set_num_threads(1)
    threadpool_limits(1)
    small = np.random.default_rng(0).normal(size=(6, 20, 1)) * np.ones((1, 1, 64))
    _, seconds = timed(lambda: srs.top_k(small.astype(np.float32), k=2))
    print(f"One core; compiling or loading what is compiled took {seconds:.1f} s")
    tables = []
    for name, weights, layer, n_images in LAYERS:
        if f"{name}/{layer}" not in options.layers:
            continue
        z = features(name, weights, layer, n_images)
        sizes = {"layer": f"{name}/{layer}", "images": n_images, "S": z.shape[1], "C": z.shape[2]}
        table = measure(z, options.k, options.queries, options.tolerance, options.rounds).assign(**sizes)
        tables.append(table[[*sizes, *(column for column in table if column not in sizes)]])
        print(
            f"{sizes['layer']}: {table['speed-up'].min():.1f} to {table['speed-up'].max():.1f} times",
            flush=True,
        )
    whole = pd.concat(tables, ignore_index=True)
    print(whole.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    if options.json:
        options.json.write_text(json.dumps(whole.to_dict("records"), indent=1))


if __name__ == "__main__":
    main()

"""Measure the matching engine against the product that feeds it and against public exact solvers.

    pip install '.[bench]' && python jobs/bench_matching.py [--layers resnet18/layer2 ...] [--json FILE]

One process on one core. For every pair of images all contenders run one after the other, so that whatever
else the machine does hits them alike; the table has medians over the pairs, of processor time (wall time where
our own time is split into product and matching: a busy machine makes these look slower). `matching` leaves
the product out on both sides: rivals get a ready cost matrix of the type they like best.
Photographs come with scikit-image and scikit-learn; the large networks have random weights (theirs need
a download), the digit networks are trained.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lap
import numpy as np
import pandas as pd
import skimage
import torch
from numpy.typing import NDArray
from ortools.graph.python.linear_sum_assignment import SimpleLinearSumAssignment
from PIL import Image
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_sample_images
from threadpoolctl import threadpool_limits

from semrsm_dist.data.sources.digits import DigitScenes
from semrsm_dist.features.extractor import Extractor
from semrsm_dist.features.models import ModelSpec
from semrsm_dist.matching.matchers.auction import Auction

TOLERANCES = (1e-2, 1e-3, 1e-4, 0.0)
LAYERS = (
    ("resnet18", "random", "layer4"),
    ("resnet18", "random", "layer3"),
    ("vit_base_patch16_224", "random", "blocks.5"),
    ("resnet18", "random", "layer2"),
    ("resnet18", "random", "layer1"),
    ("test_resnet", "digits", "layer3"),
    ("test_vit", "digits", "blocks.3"),
    ("test_resnet", "digits", "layer2"),
    ("test_resnet", "digits", "layer1"),
)
# Wanted speed-ups over the fastest rival at tolerances 1e-3 and 0.
TARGETS = {49: (7, 4), 196: (20, 12), 784: (55, 30), 3136: (35, 18)}

PHOTOGRAPHS = {
    "main": ("astronaut.png", "coffee.png", "chelsea.png"),
    "check": ("rocket.jpg", "motorcycle_left.png", "retina.jpg", "hubble_deep_field.jpg"),
}
SLOW = 4.0  # seconds; a rival that needs longer is timed on one pair only

Array = NDArray[Any]


def photographs(choice: str) -> list[Image.Image]:
    """Return square crops of 224 pixels, three of each photograph, from whole to detail."""
    folder = Path(skimage.__file__).parent / "data"
    whole = [Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS[choice]]
    if choice == "main":
        whole += [Image.fromarray(photo) for photo in load_sample_images().images]
    crops = []
    for photo in whole:
        width, height = photo.size
        for share, across, down in ((1.0, 0.5, 0.5), (0.7, 0.0, 0.5), (0.5, 0.7, 0.3)):
            side = round(share * min(width, height))
            left, top = round(across * (width - side)), round(down * (height - side))
            crops.append(photo.crop((left, top, left + side, top + side)).resize((224, 224)))
    return crops


def features(name: str, weights: str, layer: str, choice: str) -> NDArray[np.float32]:
    """Return representations (T, S, C) of photographs, or of digit scenes for a network trained on them."""
    if weights == "digits":
        scenes = DigitScenes(n_images=15, seed=0 if choice == "main" else 1)
        images = [scenes.read(record) for record in scenes.entries()]
    else:
        images = photographs(choice)
    return Extractor(ModelSpec(name, weights), [layer], device="cpu")(images)[layer]


def seconds(function: Callable[[], object], at_least: float = 0.0) -> float:
    """Return the processor time of one call, the mean over as many as `at_least` seconds hold."""
    calls, started = 0, time.thread_time()
    while calls == 0 or time.thread_time() - started < at_least:
        function()
        calls += 1
    return (time.thread_time() - started) / calls


def pairs_of(n_images: int, n_pairs: int) -> list[tuple[int, int]]:
    """Return pairs of different images, spread over all of them."""
    every = list(itertools.combinations(range(n_images), 2))
    return [every[k] for k in np.random.default_rng(0).permutation(len(every))[:n_pairs]]


def rivals(affinity: Array, norms: float) -> dict[str, Callable[[], object]]:
    """Return what solves the assignment of one affinity matrix; preparing the input is not counted."""
    cost, n = np.ascontiguousarray(-affinity, np.float64), len(affinity)
    cost32 = cost.astype(np.float32)
    left, right = (np.ascontiguousarray(index.ravel(), np.int32) for index in np.indices((n, n)))

    def ortools(scale: float) -> Callable[[], object]:
        whole = np.rint(cost * scale).astype(np.int64).ravel()

        def solve() -> object:
            solver = SimpleLinearSumAssignment()
            solver.add_arcs_with_cost(left, right, whole)
            return solver.solve()

        return solve

    return {
        "scipy": lambda: linear_sum_assignment(cost),
        "lapjv f64": lambda: lap.lapjv(cost, return_cost=False),
        "lapjv f32": lambda: lap.lapjvs(cost32, return_cost=False),
        "or-tools x1000": ortools(1000.0),
        # n roundings of half a unit on either side stay below a cosine of 1e-6
        "or-tools 1e-6": ortools(n / (1e-6 * norms)),
    }


def product_seconds(z: Array, i: int, others: list[int], at_least: float) -> dict[str, float]:
    """Return seconds per pair of the product of image i with others, by each library."""
    n = len(others)
    many = np.ascontiguousarray(z[others].reshape(-1, z.shape[2]).T)
    batch = np.ascontiguousarray(z[others].transpose(0, 2, 1))
    out = np.empty((z.shape[1], many.shape[1]), z.dtype)
    out_batch = np.empty((n, z.shape[1], z.shape[1]), z.dtype)
    tensors = [torch.from_numpy(array) for array in (z[i], many, out)]
    return {
        "numpy one-to-many": seconds(lambda: np.matmul(z[i], many, out=out), at_least) / n,
        "numpy batched": seconds(lambda: np.matmul(z[i], batch, out=out_batch), at_least) / n,
        "torch one-to-many": seconds(lambda: torch.mm(tensors[0], tensors[1], out=tensors[2]), at_least) / n,
    }


def measure_layer(z: Array, n_pairs: int, at_least: float, with_rivals: bool) -> Iterator[dict[str, Any]]:
    """Yield one measurement, in seconds per pair, of each contender on each pair.

    Products and whole matches are those of image i with a few others, as a tile has them, j among them.
    """
    matchers = {tolerance: Auction(tolerance=tolerance) for tolerance in TOLERANCES}
    panels = Auction().prepare(z)
    slow: set[str] = set()
    for number, (i, j) in enumerate(pairs_of(len(z), n_pairs)):
        others = list(range(max(i + 1, j - 7), j + 1))
        rows, columns = panels.part(slice(i, i + 1)), panels.part(slice(others[0], j + 1))
        for name, passed in product_seconds(z, i, others, at_least).items():
            yield {"pair": number, "kind": "product", "contender": name, "seconds": passed}
        for tolerance, matcher in matchers.items():
            label, tiles = f"{tolerance:g}", []
            solve = partial(matcher.solve_tile, rows, columns)
            times = {"whole": seconds(lambda s=solve, t=tiles: t.append(s()), at_least) / columns.n_images}
            for kind, name in (
                ("matching", "solving"),
                ("product", "products"),
            ):  # wall time, so of the median
                times[kind] = np.median([getattr(tile, name) for tile in tiles]) / columns.n_images
            for kind, passed in times.items():
                contender = "own" if kind == "product" else label
                yield {"pair": number, "kind": kind, "contender": contender, "seconds": passed}
        if not with_rivals:
            continue
        affinity = z[i].astype(np.float64) @ z[j].astype(np.float64).T
        norms = float(np.linalg.norm(z[i]) * np.linalg.norm(z[j]))
        for name, rival in rivals(affinity, norms).items():
            if name not in slow:
                passed = seconds(rival, at_least)
                slow |= {name} if passed > SLOW else set()
                yield {"pair": number, "kind": "rival", "contender": name, "seconds": passed}


def summarise(layer: str, z: Array, measured: pd.DataFrame) -> dict[str, Any]:
    """Return one row of the table: medians in milliseconds, and ratios."""
    medians = measured.groupby(["kind", "contender"])["seconds"].median() * 1e3
    blas = medians["product"].drop("own")
    row: dict[str, Any] = {"layer": layer, "S": z.shape[1], "C": z.shape[2]}
    row |= {"own product": medians["product", "own"], "BLAS product": blas.min(), "BLAS": blas.idxmin()}
    for t in TOLERANCES:
        whole = medians["whole", f"{t:g}"]
        row |= {f"matching {t:g}": medians["matching", f"{t:g}"]}
        row |= {f"whole/own {t:g}": whole / row["own product"], f"whole/BLAS {t:g}": whole / blas.min()}
    if "rival" in medians:
        row |= {"rivals": dict(medians["rival"]), "fastest rival": medians["rival"].idxmin()}
        row |= {f"speed-up {t:g}": medians["rival"].min() / row[f"matching {t:g}"] for t in TOLERANCES}
    return row


def print_row(row: dict[str, Any]) -> None:
    """Print one layer: milliseconds per pair, then ratios."""
    print(f"\n{row['layer']} ({row['weights']} weights): S = {row['S']}, C = {row['C']}")
    print(f"  product {row['own product']:.4f} ms; BLAS {row['BLAS product']:.4f} ms ({row['BLAS']})")
    wanted = dict(zip((1e-3, 0.0), TARGETS.get(row["S"], ()), strict=False))
    for t in TOLERANCES:
        line = f"  auction {t:<6g} {row[f'matching {t:g}']:9.4f} ms;  product + matching: "
        line += f"{row[f'whole/own {t:g}']:5.2f} x product, {row[f'whole/BLAS {t:g}']:5.2f} x BLAS"
        if "rivals" in row:
            line += f";  {row[f'speed-up {t:g}']:6.1f} x as fast as {row['fastest rival']}"
            line += f" (wanted {wanted[t]})" if t in wanted else ""
        print(line)
    print("  " + "   ".join(f"{k} {v:.3f} ms" for k, v in row.get("rivals", {}).items()), flush=True)


def main() -> None:
    """Measure the requested layers and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    names = [f"{name}/{layer}" for name, _, layer in LAYERS]
    parser.add_argument("--layers", nargs="+", choices=names, default=names)
    parser.add_argument("--photographs", choices=tuple(PHOTOGRAPHS), default="main")
    parser.add_argument("--pairs", type=int, default=15, help="of each layer; a third of it for S > 2000")
    parser.add_argument("--seconds", type=float, default=0.005, help="least time of one measurement")
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument("--core", type=int, default=0, help="the core to run on")
    parser.add_argument("--json", type=Path, help="write the table here")
    parser.add_argument("--parquet", type=Path, help="write every single measurement here")
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    torch.set_num_threads(1)
    threadpool_limits(1)
    started = time.perf_counter()
    Auction().compile()
    print(f"One core; compiling took {time.perf_counter() - started:.1f} s")
    table, everything = [], []
    for name, weights, layer in LAYERS:
        if (label := f"{name}/{layer}") not in options.layers:
            continue
        z = features(name, weights, layer, options.photographs)
        n_pairs = options.pairs if z.shape[1] < 2000 else max(1, options.pairs // 3)
        measured = pd.DataFrame(measure_layer(z, n_pairs, options.seconds, not options.no_rivals))
        everything.append(measured.assign(layer=label, weights=weights))
        table.append(summarise(label, z, measured) | {"weights": weights})
        print_row(table[-1])
        if options.json:
            options.json.write_text(json.dumps(table, indent=1))
        if options.parquet:
            pd.concat(everything).to_parquet(options.parquet)


if __name__ == "__main__":
    main()

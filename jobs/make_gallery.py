"""Draw the pictures of docs/gallery.md, and docs/matching.png, from scenes of digits.

    python jobs/make_gallery.py [--runs runs] [--out docs]

It computes the run it needs, 400 scenes in two layers, and the experiment `translation`: a few minutes on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

import semrsm_dist as srs

LAYER = "layer3"
KINDS = ("spatio-semantic", "semantic")


def config_of(runs: Path) -> dict[str, object]:
    """Return the configuration of the run: that of `jobs/digits.yaml`, in its last two layers."""
    return {
        "run": str(runs / "gallery"),
        "data": {"source": "digits", "n_images": 400, "digits": [1, 4], "scale": [2.5, 4.0], "overlap": 0.1},
        "model": {"name": "test_resnet", "weights": "digits", "layers": ["layer3", "layer4"]},
        "matching": {"tolerance": 1e-3},
        "kernels": ["cosine", "rbf"],
        "retrieval": {"k": [1, 5]},
    }


def find_pair(run: srs.Run) -> tuple[int, int]:
    """Return the two scenes of the same two digits between which matching raises the similarity most."""
    labels = run.manifest().labels()
    before, after = (run.similarity(LAYER, kind=kind).values for kind in KINDS)
    pairs = [
        (i, j)
        for i, j in combinations(range(len(labels)), 2)
        if labels[i] == labels[j] and len(labels[i]) == 2
    ]
    return max(pairs, key=lambda pair: after[pair] - before[pair])


def draw_matching(run: srs.Run) -> Figure:
    """Draw a pair of scenes with the matching between them, and all similarities before and after it."""
    figure = Figure(figsize=(13.5, 3.8), layout="constrained")
    left, *right = figure.subplots(1, 3, width_ratios=[2.1, 1, 1])
    srs.plot.matches(run.pair(*find_pair(run), layer=LAYER), ax=left)
    scores = {
        row["method"]: row["f1"]
        for row in run.summary()["retrieval"]
        if row["layer"] == LAYER and row["k"] == 1
    }
    matrices = [run.similarity(LAYER, kind=kind) for kind in KINDS]
    off_diagonal = np.concatenate([matrix.values[~np.eye(len(matrix), dtype=bool)] for matrix in matrices])
    limits = tuple(np.quantile(off_diagonal, [0.01, 0.99]))
    for axes, kind, matrix in zip(right, KINDS, matrices, strict=True):
        srs.plot.rsm(matrix, limits=limits, ax=axes)
        axes.set_title(f"{kind} RSM, F1@1 {scores[kind]:.2f}", fontsize=9)
    figure.colorbar(right[-1].images[-1], ax=right, shrink=0.7, label="cosine similarity")
    return figure


def draw_rsm(run: srs.Run) -> Figure:
    """Draw one matrix in three orders."""
    figure = Figure(figsize=(8, 2.9), layout="constrained")
    for axes, order in zip(figure.subplots(1, 3), ("given", "label", "cluster"), strict=True):
        srs.plot.rsm(run.similarity(LAYER), order=order, ax=axes)
        axes.set_title(f'order="{order}"', fontsize=9)
    return figure


def draw_matches(run: srs.Run) -> Figure:
    """Draw the pair in both layers."""
    figure = Figure(figsize=(8, 2.4), layout="constrained")
    for axes, layer in zip(figure.subplots(1, 2), run.layers, strict=True):
        srs.plot.matches(run.pair(*find_pair(run), layer=layer), ax=axes)
        axes.set_title(f"{layer}, {axes.get_title()}", fontsize=7)
    return figure


def draw_nearest(run: srs.Run) -> Figure:
    """Draw a scene and those nearest to it, before and after matching."""
    image, figure = find_pair(run)[0], Figure(figsize=(8, 3.2), layout="constrained")
    for row, kind in zip(figure.subplots(2, 6), KINDS, strict=True):
        found = run.nearest(image, 5, layer=LAYER, kind=kind)
        titles = [f"query, {kind}", *(f"{value:.2f}" for value in found["similarity"])]
        for axes, index, title in zip(row, [image, *found["index"]], titles, strict=True):
            axes.imshow(run.pair(image, index, layer=LAYER).images[1])
            axes.set(xticks=[], yticks=[])
            axes.set_title(title, fontsize=7)
    return figure


def draw_retrieval(run: srs.Run) -> Figure:
    """Draw the scores of the most similar scene."""
    figure = Figure(figsize=(6, 2.7), layout="constrained")
    srs.plot.retrieval(run, k=1, ax=figure.subplots())
    return figure


def draw_translation(table: pd.DataFrame) -> Figure:
    """Draw both layers."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, layer in zip(figure.subplots(1, 2, sharey=True), dict.fromkeys(table["layer"]), strict=True):
        srs.plot.translation(table, layer=layer, ax=axes)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a picture in 128 colours, which takes a third of the space."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    with Image.open(path) as picture:
        smaller = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    smaller.save(path, optimize=True)


def main() -> None:
    """Compute the run and the experiment, and write the pictures."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--runs", type=Path, default=Path("runs"))
    options.add_argument("--out", type=Path, default=Path("docs"))
    chosen = options.parse_args()
    config = config_of(chosen.runs)
    run = srs.run(config, reporter=srs.ConsoleReporter())
    drawings: dict[str, Callable[[srs.Run], Figure]] = {
        "matching.png": draw_matching,
        "gallery/rsm.png": draw_rsm,
        "gallery/matches.png": draw_matches,
        "gallery/nearest.png": draw_nearest,
        "gallery/retrieval.png": draw_retrieval,
    }
    for name, draw in drawings.items():
        save(draw(run), chosen.out / name)
    shifts = srs.evaluate("translation", config, reporter=srs.ConsoleReporter(), images=100)
    save(draw_translation(shifts.table), chosen.out / "gallery/translation.png")


if __name__ == "__main__":
    main()

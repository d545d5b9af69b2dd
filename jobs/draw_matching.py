"""Draw two scenes with the matching between them, and the RSMs of all scenes before and after matching.

    semrsm run jobs/digits.yaml
    python jobs/draw_matching.py [--run runs/digits] [--layer layer3] [--out docs/matching.png]

Of all pairs of scenes that show the same two digits, it draws the one whose similarity matching raises most, with the
token pairs that carry at least 2 % of its matched inner product.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from numpy.typing import NDArray
from PIL import Image

import semrsm_dist as srs
from semrsm_dist.data.sources.digits import DigitScenes, Scene

COLOURS = ("#f4a259", "#5bc0eb")
SMALLEST_SHARE = 0.02


def find_pair(labels: list[tuple[str, ...]], gain: NDArray[np.float64]) -> tuple[int, int]:
    """Return the two scenes of the same two digits between which the similarity rises most."""
    pairs = [(i, j) for i, j in combinations(range(len(labels)), 2) if labels[i] == labels[j]]
    return max((pair for pair in pairs if len(labels[pair[0]]) == 2), key=lambda pair: gain[pair])


def draw_pair(part: Any, scenes: DigitScenes, pair: tuple[int, int], z: NDArray[np.float32]) -> None:
    """Draw both scenes, and lines between the tokens that are matched and matter."""
    side = round(z.shape[1] ** 0.5)
    cell = scenes.canvas / side
    match = srs.match(*z)
    shares = (z[0] * z[1][match.permutation]).sum(axis=1) / match.value
    axes = part.subplots(1, 2)
    for ax, index in zip(axes, pair, strict=True):
        ax.imshow(scenes.render(scenes.scene(index)), cmap="gray", vmin=0, vmax=255)
        ax.set_xticks(np.arange(side + 1) * cell - 0.5, [])
        ax.set_yticks(np.arange(side + 1) * cell - 0.5, [])
        ax.tick_params(length=0)
        ax.grid(color="white", alpha=0.18, linewidth=0.6)
    for token in np.flatnonzero(shares >= SMALLEST_SHARE):
        here, there = ((t % side + 0.5, t // side + 0.5) for t in (token, match.permutation[token]))
        ends = [(x * cell - 0.5, y * cell - 0.5) for x, y in (here, there)]
        colour = COLOURS[nearest_digit(scenes.scene(pair[0]), ends[0])]
        part.add_artist(ConnectionPatch(*ends, axes[0].transData, axes[1].transData, color=colour, lw=1.5))
        for ax, end in zip(axes, ends, strict=True):
            ax.plot(*end, "o", markersize=4, color=colour)


def nearest_digit(scene: Scene, point: tuple[float, float]) -> int:
    """Return which digit of a scene has its centre nearest to a point (x, y)."""
    centres = [(p.left + p.size / 2, p.top + p.size / 2) for p in scene.placements]
    return int(np.argmin([np.hypot(x - point[0], y - point[1]) for x, y in centres]))


def draw_matrices(part: Any, run: srs.Run, layer: str, matrices: dict[str, xr.DataArray]) -> None:
    """Draw the matrices side by side, sorted by label, with the retrieval scores of each."""
    labels = run.manifest().labels()
    order = sorted(range(len(labels)), key=lambda index: (len(labels[index]), labels[index], index))
    scores = {row["method"]: row["f1"] for row in run.summary()["retrieval"] if row["layer"] == layer}
    off_diagonal = ~np.eye(len(labels), dtype=bool)
    values = np.concatenate([matrix.values[off_diagonal] for matrix in matrices.values()])
    low, high = np.quantile(values, [0.01, 0.99])
    axes = part.subplots(1, 2)
    for ax, (kind, matrix) in zip(axes, matrices.items(), strict=True):
        image = ax.imshow(matrix.values[np.ix_(order, order)], cmap="magma", vmin=low, vmax=high)
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"{kind} RSM\nF1@1 {scores[kind]:.2f}", fontsize=10)
    part.colorbar(image, ax=axes, location="right", shrink=0.7, label="cosine similarity")


def main() -> None:
    """Read the run and write the picture."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--run", default="runs/digits")
    options.add_argument("--layer", default="layer3")
    options.add_argument("--out", type=Path, default=Path("docs/matching.png"))
    chosen = options.parse_args()
    run, layer = srs.open_run(chosen.run), chosen.layer
    matrices = {kind: run.similarity(layer, kind=kind) for kind in ("spatio-semantic", "semantic")}
    before, after = matrices.values()
    pair = find_pair(run.manifest().labels(), after.values - before.values)
    features = xr.open_zarr(Path(chosen.run) / "features.zarr", group=f"images/{layer}", consolidated=False)

    figure = Figure(figsize=(11, 3.1), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.05, 1.15])
    draw_pair(left, DigitScenes(), pair, features["features"].values[list(pair)])
    left.suptitle(
        "the same two digits in other places: cosine similarity\n"
        f"{before.values[pair]:.2f} position by position, {after.values[pair]:.2f} after matching",
        fontsize=10,
    )
    draw_matrices(right, run, layer, matrices)
    figure.savefig(chosen.out, dpi=130)
    with Image.open(chosen.out) as picture:
        smaller = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    smaller.save(chosen.out, optimize=True)


if __name__ == "__main__":
    main()

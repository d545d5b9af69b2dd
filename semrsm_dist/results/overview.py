"""One picture of a run: each layer's matrices before and after matching, and their retrieval scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.results.run import Run
from semrsm_dist.store.chunks import writing

Item = TypeVar("Item")

LARGEST = 400
"""Maximum images drawn per side; larger runs are subsampled evenly."""


MOST_LAYERS = 24
"""Maximum layers drawn; of more, evenly spaced ones."""

METHODS = (("spatio-semantic", "#8c8c8c"), ("average pooling", "#d9a441"), ("semantic", "#2a6f97"))


def draw_overview(run: Run) -> Path:
    """Draw the run's overview into its folder of figures.

    Parameters
    ----------
    run
        A complete run.

    Returns
    -------
    Path
        The PNG file.

    Raises
    ------
    IncompleteError
        If the run is not complete.
    StorageError
        If it cannot be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to load, needed here alone

    summary = run.summary()
    scores = summary["retrieval"]
    layers = _evenly(list(summary["layers"]), MOST_LAYERS)
    columns = max(len(layers), 2)
    figure = Figure(figsize=(3.1 * columns + 1.2, 9.2 if scores else 6.4), layout="constrained")
    grid = figure.add_gridspec(3 if scores else 2, columns, height_ratios=[1, 1, 0.75] if scores else [1, 1])
    rows, order_columns = _order(run, "images" if run.is_symmetric else "queries"), _order(run, "images")
    for column, layer in enumerate(layers):
        readers = [run.similarity_rows(layer, "cosine", kind) for kind in ("spatio-semantic", "semantic")]
        blocks = [_pick(read_rows, rows, order_columns, run.chunk_size(layer)) for read_rows in readers]
        low, high = _range(blocks, run.is_symmetric)
        for position, (block, kind) in enumerate(zip(blocks, ("spatio-semantic", "semantic"), strict=True)):
            axes = figure.add_subplot(grid[position, column])
            image = axes.imshow(block, vmin=low, vmax=high, cmap="magma", interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(kind, fontsize=11)
            if position == 0:
                sizes = run.record.layers[layer]
                title = f"{layer}\nS = {sizes.n_tokens}, C = {sizes.n_channels}"
                axes.set_title(title, fontsize=10, parse_math=False)
        figure.colorbar(image, ax=axes, location="bottom", shrink=0.8, label="cosine similarity")
    if scores:
        _draw_retrieval(figure.add_subplot(grid[2, :]), scores, layers)
    counts = " x ".join(str(count) for count in run.record.counts.values())
    title = f"{run.directory.path.name}: {counts} images, sorted by label"
    figure.suptitle(title, fontsize=12, parse_math=False)
    path = run.directory.figures / "overview.png"
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=110)
    return path


def _order(run: Run, side: str) -> NDArray[np.intp]:
    """Return the indices of the images to draw: sorted by labels, at most `LARGEST`, evenly spaced."""
    labels = run.manifest(side).labels()
    order = sorted(range(len(labels)), key=lambda index: (len(labels[index]), labels[index], index))
    return np.array(_evenly(order, LARGEST))


def _evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most `most` of the items, evenly spaced."""
    if len(items) <= most:
        return list(items)
    return [items[index] for index in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _pick(
    read_rows: Callable[[slice], NDArray[np.float64]],
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    rows_at_once: int,
) -> NDArray[np.float64]:
    """Return the given rows and columns of a matrix that may be larger than memory."""
    block = np.empty((len(rows), len(columns)))
    for start in range(0, int(rows.max()) + 1, rows_at_once):
        here = np.flatnonzero((rows >= start) & (rows < start + rows_at_once))
        block[here] = read_rows(slice(start, start + rows_at_once))[rows[here] - start][:, columns]
    return block


def _range(blocks: list[NDArray[np.float64]], symmetric: bool) -> tuple[float, float]:
    """Return the common colour range of a layer's two matrices, ignoring the diagonal."""
    values = np.concatenate(
        [block[~np.eye(len(block), dtype=bool)] if symmetric else block.ravel() for block in blocks]
    )
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.quantile(values, [0.01, 0.99])
    return float(low), float(max(high, low + 1e-6))


def _draw_retrieval(axes: Any, scores: list[dict[str, Any]], layers: list[str]) -> None:
    k = min(score["k"] for score in scores)
    width = 0.26
    for position, (method, colour) in enumerate(METHODS):
        f1 = [
            next((s["f1"] for s in scores if (s["layer"], s["method"], s["k"]) == (layer, method, k)), None)
            for layer in layers
        ]
        heights = [float("nan") if value is None else value for value in f1]
        bars = axes.bar(
            np.arange(len(layers)) + (position - 1) * width, heights, width, color=colour, label=method
        )
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_xticks(np.arange(len(layers)), layers, parse_math=False)
    axes.set_ylim(0, 1.05)
    axes.set_ylabel(f"retrieval F1@{k}")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)

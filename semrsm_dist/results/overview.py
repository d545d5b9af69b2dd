"""One picture of a run: each layer's matrices before and after matching, and their retrieval scores."""

from __future__ import annotations

import hashlib
import io
import json
import textwrap
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semrsm_dist.results.figures import new_figure
from semrsm_dist.results.run import Run
from semrsm_dist.store.chunks import writing
from semrsm_dist.store.paths import RunPath, make_folder, write_atomically

Item = TypeVar("Item")

LARGEST = 400
"""Maximum images drawn per side; larger runs are subsampled."""

PARTS = 8
"""Parts of each side, as wide as a tile, from which they come in a larger run: a picture needs no terabyte."""

MOST_LAYERS = 24
"""Maximum layers drawn; of more, evenly spaced ones."""

PER_ROW = 6
"""Layers side by side."""

VERSION = 3
"""Of the drawing: raised whenever it changes, so that pictures are drawn again."""

CONTENT = "semrsm-content"
"""Key of the picture's metadata that says what it shows."""

METHODS = (("spatio-semantic", "#8c8c8c"), ("average pooling", "#d9a441"), ("semantic", "#2a6f97"))
KINDS = ("spatio-semantic", "semantic")


def draw_overview(run: Run) -> RunPath:
    """Draw the run's overview into its folder of figures, unless it is there already.

    Parameters
    ----------
    run
        A complete run.

    Returns
    -------
    Path or ObjectPath
        The PNG file.

    Raises
    ------
    IncompleteError
        If the run is not complete.
    StorageError
        If it cannot be written.
    """
    summary = run.summary()
    path = run.directory.figures / "overview.png"
    content = _digest(run, summary)
    if _content_of(path) == content:
        return path
    scores, layers = summary["retrieval"], _evenly(list(summary["layers"]), MOST_LAYERS)
    single = len(layers) == 1  # then its two matrices are side by side, else one above the other
    n_rows = -(-len(layers) // PER_ROW)
    columns = 2 if single else -(-len(layers) // n_rows)
    lines = 1 if single else 2 * n_rows
    tile_size = max(run.layout(layer).tile_size for layer in layers)
    rows, order = (_order(run, side, tile_size) for side in (run.record.row_side, "images"))
    shape = min(1.0, max(0.3, len(rows) / len(order)))
    width, height = 3.1 * columns + 1.2, (2.6 * shape + 0.5) * lines + 1.2 + 2.6 * bool(scores)
    figure = new_figure(figsize=(width, height), layout="constrained")
    ratios = [shape] * lines + [0.8] * bool(scores)
    grid = figure.add_gridspec(lines + bool(scores), columns, height_ratios=ratios)
    for index, layer in enumerate(layers):
        blocks = [run.similarity_rows(layer, "cosine", kind)(rows, order) for kind in KINDS]
        low, high = _range(blocks, run.is_symmetric)
        pair = []
        for position, (block, kind) in enumerate(zip(blocks, KINDS, strict=True)):
            line, column = (0, position) if single else (index // columns * 2 + position, index % columns)
            axes = figure.add_subplot(grid[line, column])
            pair.append(axes)
            image = axes.imshow(
                block, vmin=low, vmax=high, cmap="magma", interpolation="nearest", aspect="auto"
            )
            axes.set_box_aspect(shape)
            axes.set(xticks=[], yticks=[])
            if not run.is_symmetric:
                axes.set_xlabel("images", fontsize=9)
            if column == 0 or single:
                axes.set_ylabel(kind if run.is_symmetric else f"{kind}\nqueries", fontsize=10)
            if position == 0 or single:
                sizes = run.record.layers[layer]
                title = f"{layer}\nS = {sizes.n_tokens}, C = {sizes.n_channels}"
                axes.set_title(title, fontsize=10, parse_math=False)
        bar_beside = pair if single else pair[-1]
        figure.colorbar(
            image, ax=bar_beside, location="bottom", shrink=0.8, label="cosine similarity", extend="both"
        )
    if scores:
        _draw_retrieval(figure.add_subplot(grid[lines, :]), scores, layers)
    title = _title(run, summary, (len(rows), len(order)), line_length=int(11 * width))
    figure.suptitle(title, fontsize=11, parse_math=False)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110, format="png", metadata={CONTENT: content})
    with writing(path):
        make_folder(path.parent)
    write_atomically(path, picture.getvalue())
    return path


def _digest(run: Run, summary: dict[str, Any]) -> str:
    """Return a hash of what the picture shows: drawing it again takes long, and longer in a large run."""
    shown = {name: summary[name] for name in ("about", "layers", "retrieval")}
    shown |= {"run": run.directory.path.name, "fingerprint": dict(run.record.fingerprint), "version": VERSION}
    return hashlib.sha256(json.dumps(shown, sort_keys=True, default=str).encode()).hexdigest()


def _content_of(path: RunPath) -> str | None:
    """Return the hash in a picture, or None if there is none that can be read."""
    try:
        with Image.open(io.BytesIO(path.read_bytes()), formats=["PNG"]) as picture:
            picture.verify()
            return picture.info.get(CONTENT)
    except (OSError, SyntaxError):  # missing, or damaged: it is drawn again
        return None


def _title(run: Run, summary: dict[str, Any], drawn: tuple[int, int], *, line_length: int) -> str:
    counts = run.record.counts
    size = " x ".join(f"{counts[side]} {side}" for side in dict.fromkeys((run.record.row_side, "images")))
    whole = (counts[run.record.row_side], counts["images"])
    shown = "" if drawn == whole else f" ({drawn[0]} x {drawn[1]} drawn)"
    about = "\n".join(textwrap.wrap(summary["about"], line_length))
    return f"{run.directory.path.name}: {size}{shown}, sorted by label\n{about}"


def _order(run: Run, side: str, size: int) -> NDArray[np.intp]:
    """Return the indices of the images to draw, sorted by labels: at most `LARGEST`, from evenly spaced parts."""
    labels = run.manifest(side).labels()
    parts = [range(start, min(start + size, len(labels))) for start in range(0, len(labels), size)]
    if len(parts) <= PARTS:
        chosen = _evenly(range(len(labels)), LARGEST)
    else:
        chosen = [index for part in _evenly(parts, PARTS) for index in _evenly(part, LARGEST // PARTS)]
    return np.array(sorted(chosen, key=lambda index: (len(labels[index]), labels[index], index)))


def _evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most `most` of the items, evenly spaced."""
    if len(items) <= most:
        return list(items)
    return [items[index] for index in np.linspace(0, len(items) - 1, most).round().astype(int)]


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
    f1 = {(score["layer"], score["method"]): score["f1"] for score in scores if score["k"] == k}
    width = 0.26
    for position, (method, colour) in enumerate(METHODS):
        heights = [f1.get((layer, method)) for layer in layers]
        bars = axes.bar(
            np.arange(len(layers)) + (position - 1) * width,
            [float("nan") if height is None else height for height in heights],
            width,
            color=colour,
            label=method,
        )
        if len(layers) <= PER_ROW:
            axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_xticks(
        np.arange(len(layers)), layers, rotation=0 if len(layers) <= PER_ROW else 30, parse_math=False
    )
    axes.set_ylim(0, 1.05)
    axes.set_ylabel(f"retrieval F1@{k}")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)

"""One picture of a run: each layer's matrices before and after matching, and their retrieval scores."""

from __future__ import annotations

import hashlib
import io
import json
import textwrap
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semrsm_dist.plot.figures import new_figure
from semrsm_dist.plot.heatmap import choose_images, colour_limits, draw_block, evenly
from semrsm_dist.plot.looks import KINDS
from semrsm_dist.plot.orders import order_by_label
from semrsm_dist.plot.scores import as_table, retrieval
from semrsm_dist.results.run import Run
from semrsm_dist.store.paths import RunPath, make_folder, read_file, write_atomically, writing

LARGEST = 400
"""Maximum images drawn per side; larger runs are subsampled."""

MOST_LAYERS = 24
"""Maximum layers drawn; of more, evenly spaced ones."""

PER_ROW = 6
"""Layers side by side."""

VERSION = 5
"""Of the drawing: raised whenever it changes, so that pictures are drawn again."""

CONTENT = "semrsm-content"
"""Key of the picture's metadata that says what it shows."""


def draw_overview(run: Run) -> RunPath:
    """Draw a complete run's overview into its folder of figures, unless it is there already; return the PNG file.

    Raises IncompleteError if the run is not complete, StorageError if it cannot be written.
    """
    summary = run.summary()
    path = run.directory.figures / "overview.png"
    content = _digest(run, summary)
    if _content_of(path) == content:
        return path
    scores, layers = summary["retrieval"], evenly(list(summary["layers"]), MOST_LAYERS)
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
        limits = colour_limits(*blocks, symmetric=run.is_symmetric)
        pair = []
        for position, (block, kind) in enumerate(zip(blocks, KINDS, strict=True)):
            line, column = (0, position) if single else (index // columns * 2 + position, index % columns)
            axes = figure.add_subplot(grid[line, column])
            pair.append(axes)
            image = draw_block(axes, block, limits)
            axes.set_box_aspect(shape)
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
        table = as_table(scores)
        retrieval(table[table["layer"].isin(layers)], ax=figure.add_subplot(grid[lines, :]))
    title = _title(run, summary, (len(rows), len(order)), line_length=int(11 * width))
    figure.suptitle(title, fontsize=11, parse_math=False)
    picture = io.BytesIO()
    with warnings.catch_warnings():  # of names in a script that the font lacks: the summary has them, too
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
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
        with Image.open(io.BytesIO(read_file(path)), formats=["PNG"]) as picture:
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
    """Return the indices of the images to draw, sorted by labels."""
    labels = run.manifest(side).labels()
    chosen = choose_images(len(labels), LARGEST, size)
    return chosen[order_by_label([labels[index] for index in chosen])]

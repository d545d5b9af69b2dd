"""Writes the page of a run as a static site: its maps are files of tiles, and any web server serves it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from semrsm_dist.errors import ConfigError, StorageError
from semrsm_dist.progress import Reporter
from semrsm_dist.report.gathering import gather
from semrsm_dist.report.maps import Orders, cluster_images, kernels_of, order_images
from semrsm_dist.report.page import render
from semrsm_dist.report.page_data import Layer, Maps
from semrsm_dist.report.view.filling import Source
from semrsm_dist.report.view.live import as_bytes
from semrsm_dist.report.view.pyramid import Tile, Window
from semrsm_dist.report.view.tiles import OVERVIEW, MapTiles, describe_tiles, shape_of
from semrsm_dist.results.run import Run

MOST_CELLS = 4096
"""Cells along an edge of the finest maps: of more images, these are means of several pairs."""


def write_site(run: Run, folder: Path, reporter: Reporter) -> Path:
    """Write the page of a run and the tiles of its maps; return the path of the page.

    Parameters
    ----------
    run
        The run; of an unfinished one, what there is.
    folder
        A new or empty folder. The page is written last: without one, a site is not complete.
    reporter
        Where progress is reported.

    Raises
    ------
    ConfigError
        If the folder is a file, or has something in it.
    StorageError
        If the run is damaged, or the site cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is not an empty folder; choose another one, or remove it first")
    gathered = gather(run, reporter)
    layers = gathered.data.layers
    try:
        tiled = [_write_layer(run, layer, index, folder, reporter) for index, layer in enumerate(layers)]
        page = folder / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        data = gathered.data.model_copy(update={"layers": tiled})
        page.write_text(render(run, gathered, shown=data), encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"{folder}: the site cannot be written ({error.strerror or error}); the run is unchanged: make room, "
            "remove the folder, and start again"
        ) from error
    return page


def _write_layer(run: Run, layer: Layer, index: int, folder: Path, reporter: Reporter) -> Layer:
    """Write the orders and tiles of a layer, and return it as its page has it."""
    if layer.maps is None:
        return layer
    orders = _find_orders(run, layer.name, layer.maps, reporter)
    for name, order in orders.items():
        _write(folder / "orders" / str(index) / f"{name}.bin", as_bytes(order, symmetric=run.is_symmetric))
    finest = _finest(run, layer.name)
    matrices = run.matrices(layer.name)
    for kernel in kernels_of(run, matrices)[0]:
        source = Source(matrices, kernel)
        for name, order in orders.items():
            maps, place = MapTiles(source, order), folder / "tiles" / str(index) / kernel / name

            def keep(tile: Tile, content: bytes, place: Path = place) -> None:
                _write(place / str(tile.level) / f"{tile.row}-{tile.column}.bin", content)

            windows = list(_windows(maps, finest))
            with reporter.stage(f"tiles of {layer.name}, {kernel}, {name}", len(windows), "parts") as stage:
                for window in windows:
                    maps.fill(window, keep).fill()
                    stage.advance(1)
    return layer.model_copy(update={"maps": None, "tiles": describe_tiles(run, layer.name, orders, finest)})


def _find_orders(run: Run, layer: str, maps: Maps, reporter: Reporter) -> Orders:
    """Return the orders of all images: those of a page's maps, if these show all."""
    shape, given = shape_of(run, layer), maps.orders["given"]
    if (given.rows.shape[0], given.columns.shape[0]) == (shape.n_rows, shape.n_columns):
        return {
            name: (order.rows.read().astype(np.intp), order.columns.read().astype(np.intp))
            for name, order in maps.orders.items()
        }
    labels = {side: run.manifest(side).labels() for side in run.record.sides}
    rows, columns = np.arange(shape.n_rows), np.arange(shape.n_columns)
    orders = order_images(labels, rows, columns, run.record.row_side)
    with reporter.stage(f"order of {layer}", shape.n_rows, "images") as stage:
        orders["cluster"] = cluster_images(run.matrices(layer), rows, columns, stage)
    return orders


def _finest(run: Run, layer: str) -> int:
    shape = shape_of(run, layer)
    return next(level for level in range(shape.top + 1) if max(shape.cells(level)) <= MOST_CELLS)


def _windows(maps: MapTiles, finest: int) -> Iterator[Window]:
    """Yield windows that hold all tiles of the levels from `finest` on, as large as the memory for one may be."""
    yield maps.shape.whole(maps.overview)
    for level in range(finest, maps.overview):
        rows, columns = maps.shape.cells(level)
        for top in range(0, rows, OVERVIEW):
            for left in range(top if maps.is_symmetric else 0, columns, OVERVIEW):
                part = range(top, min(top + OVERVIEW, rows)), range(left, min(left + OVERVIEW, columns))
                yield Window(maps.shape, level, *part)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)

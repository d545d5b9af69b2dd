"""Still pictures of the heat maps, for browsers without scripts."""

from __future__ import annotations

from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semrsm_dist.plot.heatmap import colour_limits
from semrsm_dist.report.page_data import Array, Layer, Map, Maps, Order
from semrsm_dist.report.pictures import as_url

SIZE = 256
"""Pixels along an edge, about."""


def still_maps(layer: Layer, colours: str, *, symmetric: bool) -> str:
    """Return the three maps of a layer as pictures, sorted by label if there are labels."""
    if layer.maps is None:
        return ""
    order: Order = "label" if "label" in layer.maps.orders else "cluster"
    by_order = layer.maps.cells["cosine"]
    cells = by_order.get(order, by_order["given"])
    is_sorted = order in by_order
    matrices = [_unpack(cells, values, symmetric=symmetric) for values in (cells.spatial, cells.semantic)]
    difference = (
        matrices[1] - matrices[0]
        if cells.difference is None
        else _unpack(cells, cells.difference, symmetric=symmetric)
    )
    if not is_sorted:
        places = _places(layer.maps, order)
        matrices, difference = [matrix[np.ix_(*places)] for matrix in matrices], difference[np.ix_(*places)]
    shared = colour_limits(*matrices, symmetric=symmetric)
    figures = [
        _figure(matrix, limits, name, colours)
        for matrix, limits, name in (
            (matrices[0], shared, "spatio-semantic"),
            (matrices[1], shared, "semantic"),
            (difference, colour_limits(difference, symmetric=symmetric), "difference"),
        )
    ]
    return f"<h3>{escape(layer.name)}, sorted by {order}</h3><div class='stills'>{''.join(figures)}</div>"


def _places(maps: Maps, order: Order) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the places, in the order as given, of what an order shows."""
    wanted, given = maps.orders[order], maps.orders["given"]
    return (
        np.searchsorted(given.rows.read(), wanted.rows.read()),
        np.searchsorted(given.columns.read(), wanted.columns.read()),
    )


def _unpack(cells: Map, values: Array, *, symmetric: bool) -> NDArray[np.float32]:
    shape = cells.row_edges.shape[0] - 1, cells.column_edges.shape[0] - 1
    if not symmetric:
        return values.read().reshape(shape)
    matrix = np.empty(shape, np.float32)
    upper = np.triu_indices(shape[0])
    matrix[upper] = matrix.T[upper] = values.read()
    return matrix


def _figure(matrix: NDArray[np.float32], limits: tuple[float, float], name: str, colours: str) -> str:
    low, high = limits
    levels = np.nan_to_num(np.clip((matrix - low) / (high - low), 0, 1), nan=0.0)
    picture = Image.fromarray((levels * 255).astype(np.uint8), "P")
    picture.putpalette(bytes.fromhex(colours))
    scale = SIZE / max(picture.size)
    shape = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    url = as_url(picture.resize(shape, Image.Resampling.NEAREST), "png")
    return (
        f"<figure><img src='{url}' alt='{name} similarity of all pairs'>"
        f"<figcaption>{name}, {low:.3f} to {high:.3f}</figcaption></figure>"
    )

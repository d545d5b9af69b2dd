"""Similarity matrices as heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from semrsm_dist.data.entries import parse_labels
from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.plot.figures import axes_or_current
from semrsm_dist.plot.orders import Indices, order_by_label, order_by_similarity, profile_affinity

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

Item = TypeVar("Item")

COLOURS = "viridis"
"""Of all maps: the colour-blind can read it, and it is even in print."""

PARTS = 8
"""Parts of each side of a large matrix, from which the images drawn come: not all of it is read."""

PART = 512
"""Images of a part, about as many as are read together."""


def rsm(
    matrix: xr.DataArray | ArrayLike,
    *,
    order: Literal["label", "cluster", "given"] | None = None,
    most: int = 400,
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
    **options: Any,
) -> Axes:
    """Draw a similarity matrix.

    Parameters
    ----------
    matrix : xarray.DataArray or array_like, (N, M)
        As `Run.similarity` returns it, or any matrix, of which N = M is taken for a symmetric one. NaN is left white.
    order
        ``label`` sorts the images by their labels, ``cluster`` puts similar ones side by side, ``given`` leaves them as
        they are; by default ``label`` if there are labels, else ``given``.
    most
        Images drawn along each side; of more, evenly spaced ones, and only their part of the matrix is read.
    limits
        Values of the darkest and of the lightest colour; by default `colour_limits` of what is drawn.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default the current axes.
    **options
        Further options of `matplotlib.axes.Axes.imshow`, such as `cmap`.

    Returns
    -------
    matplotlib.axes.Axes
        With the picture as ``ax.images[-1]``, of which ``ax.figure.colorbar`` makes a scale.

    Raises
    ------
    ConfigError
        If `order` is unknown, or there are no labels for it, or `most` is not a positive number.
    InputError
        If `matrix` is not a matrix.
    """
    labels, symmetric = _labels_of(matrix), _is_symmetric(matrix)
    if order is None:
        order = "label" if any(map(any, labels)) else "given"
    if order not in ("label", "cluster", "given"):
        raise ConfigError(f"order: {order!r}: expected label, cluster or given")
    if order == "label" and not any(map(any, labels)):
        raise ConfigError("order: these images have no labels to be sorted by; choose cluster or given")
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise ConfigError(f"most: {most!r}: expected a whole number from 1 on")
    shape = np.shape(matrix)
    rows, columns = (choose_images(length, most, PART) for length in shape)
    block = _read(matrix, rows, columns)
    if order == "label":
        places = [
            order_by_label([side[image] for image in images])
            for side, images in zip(labels, (rows, columns), strict=True)
        ]
    elif order == "cluster":
        places = _cluster(block, symmetric=symmetric)
    else:
        places = [np.arange(rows.size), np.arange(columns.size)]
    axes = axes_or_current(ax)
    draw_block(axes, block[np.ix_(*places)], limits or colour_limits(block, symmetric=symmetric), **options)
    for name, chosen, length in (("x", columns, shape[1]), ("y", rows, shape[0])):
        side = "images" if symmetric or name == "x" else "queries"
        count = f"{length:,} {side}" if chosen.size == length else f"{chosen.size:,} of {length:,} {side}"
        axes.set(**{f"{name}label": count})
    return axes


def draw_block(
    axes: Axes, block: NDArray[np.float64], limits: tuple[float, float], **options: Any
) -> AxesImage:
    """Draw values as they are, without ticks, and return the picture."""
    low, high = limits
    options = {"cmap": COLOURS, "interpolation": "nearest", "aspect": "auto", **options}
    axes.set_box_aspect(block.shape[0] / block.shape[1])
    axes.set(xticks=[], yticks=[])
    return axes.imshow(block, vmin=low, vmax=high, **options)


def colour_limits(*blocks: NDArray[Any], symmetric: bool) -> tuple[float, float]:
    """Return a range of colours: all but the lowest and highest hundredth of the values, and not the diagonal's."""
    values = np.concatenate(
        [block[~np.eye(len(block), dtype=bool)] if symmetric else block.ravel() for block in blocks]
    )
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.quantile(values, [0.01, 0.99])
    return float(low), float(max(high, low + 1e-6))


def choose_images(length: int, most: int, part_size: int) -> Indices:
    """Return which images to draw, about `most`: of a large matrix, from evenly spaced parts of it."""
    parts = [range(start, min(start + part_size, length)) for start in range(0, length, part_size)]
    if length <= most or len(parts) <= PARTS:
        return np.array(evenly(range(length), most), np.intp)
    each = max(1, most // PARTS)
    chosen = [index for part in evenly(parts, min(PARTS, most)) for index in evenly(part, each)]
    return np.array(chosen, np.intp)


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most `most` of the items, evenly spaced."""
    if len(items) <= most:
        return list(items)
    return [items[index] for index in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _labels_of(matrix: xr.DataArray | ArrayLike) -> list[list[tuple[str, ...]]]:
    """Return the labels of the images of rows and columns; empty tuples where there are none."""
    shape = np.shape(matrix)
    if len(shape) != 2 or 0 in shape:
        raise InputError(f"expected a matrix of similarities, (N, M), found an array of shape {shape}")
    coordinates = getattr(matrix, "coords", {})
    names = [f"labels_{suffix}" for suffix in "ij"]
    return [
        [parse_labels(str(text)) for text in coordinates[name].values]
        if name in coordinates
        else [()] * length
        for name, length in zip(names, shape, strict=True)
    ]


def _is_symmetric(matrix: xr.DataArray | ArrayLike) -> bool:
    coordinates = getattr(matrix, "coords", {})
    if {"image_i", "image_j"} <= set(coordinates):
        return bool(np.array_equal(coordinates["image_i"].values, coordinates["image_j"].values))
    n_rows, n_columns = np.shape(matrix)
    return bool(n_rows == n_columns)


def _read(matrix: xr.DataArray | ArrayLike, rows: Indices, columns: Indices) -> NDArray[np.float64]:
    if hasattr(matrix, "coords"):  # of xarray, whose indices of rows and columns are each on their own
        part: Any = matrix
        return np.asarray(part[rows, columns], np.float64)
    return np.asarray(matrix, np.float64)[np.ix_(rows, columns)]


def _cluster(block: NDArray[np.float64], *, symmetric: bool) -> list[Indices]:
    if symmetric:
        order = order_by_similarity(lambda some, others: block[np.ix_(some, others)], len(block))
        return [order, order]
    return [order_by_similarity(profile_affinity(side), len(side)) for side in (block, block.T)]

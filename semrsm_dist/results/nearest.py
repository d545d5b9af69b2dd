"""The images that are most similar to one image, from its row of the matrix or its neighbours."""

from __future__ import annotations

import difflib
import operator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.errors import ConfigError, counted
from semrsm_dist.results.reader import RunReader
from semrsm_dist.store.neighbours import NOBODY
from semrsm_dist.store.record import Side

if TYPE_CHECKING:
    import pandas as pd

MOST_COMPARED = 20_000
"""Ids among which one is sought that resembles an unknown one: it takes a fraction of a second."""


def find_nearest(
    run: RunReader, image: int | str, k: int, layer: str, *, kernel: str, kind: str, sigma: float | None
) -> pd.DataFrame:
    """Return the images that are most similar to one; see `Run.nearest`."""
    import pandas as pd  # noqa: PLC0415 - slow to load, needed by readers alone

    if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
        raise ConfigError(f"k: {k!r}: expected a whole number from 1 on")
    find = _among_all if run.record.neighbours is None else _among_neighbours
    indices, columns, store = find(run, image, int(k), layer, kernel=kernel, kind=kind, sigma=sigma)
    return pd.DataFrame(
        {
            "image": store.coordinate("image_j")[indices].astype(object),
            "index": indices,
            **columns,
            "labels": store.coordinate("labels_j")[indices].astype(object),
        },
        index=pd.RangeIndex(1, indices.size + 1, name="rank"),
    )


Found = tuple[NDArray[np.intp], dict[str, NDArray[np.float64]], Any]
"""Indices of images, what goes with each by the name of its column, and the store that has their coordinates."""


def _among_all(
    run: RunReader, image: int | str, k: int, layer: str, *, kernel: str, kind: str, sigma: float | None
) -> Found:
    matrix = run.kernel_matrix(layer, kernel, kind, sigma=sigma)
    store = matrix.layer.store
    row = find_image(image, store.coordinate("image_i"), run.record.row_side)
    similarity = matrix.read((np.array([row]), slice(None)))[0]
    is_candidate = ~np.isnan(similarity)
    group = store.coordinate("group_i")[row]
    if group:
        is_candidate &= store.coordinate("group_j") != group
    if run.is_symmetric:
        is_candidate[row] = False
    candidates = np.flatnonzero(is_candidate)
    nearest = candidates[np.argsort(-similarity[candidates], kind="stable")[:k]]
    columns = {"similarity": similarity[nearest]}
    if kind == "semantic":
        columns["gap"] = matrix.read_gap((np.array([row]), nearest))[0]
    return nearest, columns, store


def _among_neighbours(
    run: RunReader, image: int | str, k: int, layer: str, *, kernel: str, kind: str, sigma: float | None
) -> Found:
    path, kept = run.directory.path, run.record.neighbours
    if (kernel, kind, sigma) != ("cosine", "semantic", None):
        raise ConfigError(
            f"{path}: this run keeps the neighbours by semantic cosine similarity, from which the nearest by another "
            "kernel or kind are not known; leave both out, or read the neighbours' other similarities with "
            "Run.neighbours"
        )
    if kept is not None and k > kept.k:
        raise ConfigError(
            f"{path}: k: this run keeps {counted(kept.k, 'neighbour')} of each image, not {k}; ask for at most "
            f"{kept.k}, or start another run directory with output.neighbours.k={k}"
        )
    neighbours = run.layer_neighbours(layer)
    row = find_image(image, neighbours.store.coordinate("image_i"), run.record.row_side)
    indices, similarity, _, gap = (part[0][:k] for part in neighbours.read(slice(row, row + 1)))
    there = indices != NOBODY
    columns = {"similarity": similarity[there], "gap": gap[there]}
    return indices[there].astype(np.intp), columns, neighbours.store


def find_image(image: int | str, ids: NDArray[np.str_], side: Side) -> int:
    """Return the index of an image that is given by index or id; raises ConfigError if there is no such image."""
    if isinstance(image, str):
        found = np.flatnonzero(ids == image)
        if found.size:
            return int(found[0])
        similar = difflib.get_close_matches(image, ids[:MOST_COMPARED].tolist(), n=1)
        hint = f"; did you mean {similar[0]!r}?" if similar else f"; they are such as {str(ids[0])[:80]!r}"
        raise ConfigError(f"image: {image!r}: the {ids.size} {side} have no such id{hint}")
    try:
        index = -1 if isinstance(image, bool | np.bool_) else operator.index(image)
    except TypeError:
        index = -1
    if not 0 <= index < ids.size:
        raise ConfigError(
            f"image: {image!r}: expected an id, or an index from 0 to {ids.size - 1} among the {side}"
        )
    return index

"""The matrices of a layer, derived from its tiles: mirrored, with an exact diagonal, kernels computed on reading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from semrsm_dist.matching.kernels import derive, kernel_gap
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.store.tiles import KINDS, QUANTITIES, TileStore

CHUNK = 512
"""Maximum rows and columns that are derived together: a whole number of tiles."""

DESCRIPTIONS = {
    "matched": "inner product after the best permutation found",
    "identity": "inner product position by position",
    "gap": "certified: the best permutation's inner product is at most matched + gap",
}

SINGLE = 2.0**-23
"""Squared distances below this share of the squared norms are zero up to the rounding of float32."""


class LayerMatrices:
    """The matrices of a layer whose tiles are all solved, as numpy arrays.

    Parameters
    ----------
    store
        The layer's tiles.
    layout
        How its matrix is cut into tiles.
    squared_norms
        Of the images of rows and of columns.
    kernels
        The kernels of the run's configuration in both kinds, by name: their attributes `kernel`, `kind` and `sigma`.
    """

    def __init__(
        self,
        store: TileStore,
        layout: Layout,
        squared_norms: tuple[NDArray[np.float64], NDArray[np.float64]],
        kernels: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.store, self.layout = store, layout
        self.squared_norms, self.kernels = squared_norms, kernels

    @classmethod
    def open(cls, store: TileStore, layout: Layout) -> LayerMatrices:
        """Open a finished layer; raises IncompleteError if it has not been finished."""
        return cls(store, layout, store.squared_norms(), store.read_attributes()["kernels"])

    @property
    def names(self) -> list[str]:
        """Names of the inner products, the gap, and the kernels of the run's configuration in both kinds."""
        return [*QUANTITIES, *self.kernels]

    @property
    def chunks(self) -> Layout:
        """Parts of the matrix that are read well together: as tiles, but larger."""
        size = max(1, CHUNK // self.layout.tile_size) * self.layout.tile_size
        return Layout(self.layout.n_rows, self.layout.n_columns, size, self.layout.symmetric)

    def matrix(self, name: str) -> DerivedMatrix:
        """Return one of the matrices of `names`, to be read in parts."""
        if name in QUANTITIES:
            return DerivedMatrix(self, name, name, {"description": DESCRIPTIONS[name]})
        return self.kernel_matrix(**self.kernels[name])

    def all(self) -> list[DerivedMatrix]:
        """Return the matrices of all `names`."""
        return [self.matrix(name) for name in self.names]

    def kernel_matrix(
        self, kind: str, kernel: str, sigma: float | None = None, sigma_error: float | None = None
    ) -> DerivedMatrix:
        """Return the matrix of any kernel; `rbf` needs its width, which may be known to an error."""
        facts = {"sigma": sigma, "sigma_error": sigma_error}
        attributes = {"kernel": kernel, "from": KINDS[kind]} | {
            k: v for k, v in facts.items() if v is not None
        }
        return DerivedMatrix(self, f"{kind}_{kernel}", KINDS[kind], attributes, kernel, sigma)

    def read(
        self, quantities: Sequence[str], key: tuple[Any, Any], dtype: DTypeLike = np.float64
    ) -> NDArray[Any]:
        """Return a part of the matrices of some quantities, (Q, R, C).

        Raises StorageError if a tile is damaged or missing; the message names its file.

        Parameters
        ----------
        quantities
            Of `QUANTITIES`.
        key
            A slice or indices of rows, and of columns.
        dtype
            Of the result: float32 loses the last digits of the diagonal, and of what is stored in float64.
        """
        layout = self.layout
        rows, columns = (
            np.arange(length)[part]
            for part, length in zip(key, (layout.n_rows, layout.n_columns), strict=True)
        )
        values = np.empty((len(quantities), rows.size, columns.size), dtype)
        column_parts = list(_by_panel(columns, layout.tile_size))
        for row, at_rows, in_row in _by_panel(rows, layout.tile_size):
            for column, at_columns, in_column in column_parts:
                tile = self._read_tile(row, column)
                for place, name in enumerate(quantities):
                    part = tile[QUANTITIES.index(name)][_outer(in_row, in_column)]
                    values[place][_outer(at_rows, at_columns)] = part
        return values

    def _read_tile(self, row: int, column: int) -> NDArray[np.floating[Any]]:
        """Return (3, R, K): a tile, or the mirror image of one; its diagonal is exact whatever the stored type."""
        if not self.layout.symmetric or row < column:
            return self.store.read((row, column))
        tile = self.store.read((column, row)).transpose(0, 2, 1)
        if row == column:
            tile = tile.astype(np.float64)
            norms = self.squared_norms[0][self.layout.rows(row)]
            for quantity, diagonal in zip(tile, (norms, norms, 0.0), strict=True):
                np.fill_diagonal(quantity, diagonal)
        return tile

    def read_for_distances(self, quantity: str, key: tuple[Any, Any]) -> NDArray[np.float64]:
        """Return inner products (R, C) in which a distance that is zero up to the tiles' rounding is zero."""
        return self.snap(self.read([quantity], key)[0], key)

    def snap(self, inner: NDArray[np.float64], key: tuple[Any, Any]) -> NDArray[np.float64]:
        """Return inner products (R, C), read from a part, in which a distance that is zero up to rounding is zero."""
        if self.store.dtype == np.float32:
            norms_i, norms_j = (norms[part] for norms, part in zip(self.squared_norms, key, strict=True))
            return snap_distances(inner, norms_i[:, None], norms_j)
        return inner


def snap_distances(
    inner: NDArray[np.float64], norms_i: NDArray[np.float64], norms_j: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return inner products in which a distance that is zero up to the rounding of float32 is zero."""
    middle = (norms_i + norms_j) / 2
    return np.where(np.abs(middle - inner) <= SINGLE * middle, middle, inner)


@dataclass(frozen=True)
class DerivedMatrix:
    """A matrix that is computed from the tiles when it is read."""

    layer: LayerMatrices
    name: str
    """Name of the matrix."""
    quantity: str
    """What is read from the tiles."""
    attributes: Mapping[str, Any]
    """What it is, as JSON values."""
    kernel: str | None = None
    """The kernel that is computed of it; None for the quantity itself."""
    sigma: float | None = None
    """The width of `rbf`."""
    dtype = np.dtype(np.float64)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        return self.layer.layout.n_rows, self.layer.layout.n_columns

    def read(self, key: tuple[Any, Any]) -> NDArray[np.float64]:
        """Return a part: a slice or indices of rows, and of columns; raises what `LayerMatrices.read` raises."""
        return self.derive(self.layer.read([self.quantity], key)[0], key)

    def read_gap(self, key: tuple[Any, Any]) -> NDArray[np.float64]:
        """Return how far a part of a kernel after matching can be below that of the best permutations."""
        matched, gap = self.layer.read(("matched", "gap"), key)
        norms_i, norms_j = self._norms(key)
        return kernel_gap(self.kernel or "linear", matched, matched + gap, norms_i, norms_j, self.sigma)

    def derive(self, values: NDArray[np.float64], key: tuple[Any, Any]) -> NDArray[np.float64]:
        """Return a part of the matrix from what `quantity` is there."""
        if self.kernel is None:
            return values
        if self.kernel == "rbf":
            values = self.layer.snap(values, key)
        norms_i, norms_j = self._norms(key)
        return derive(self.kernel, values, norms_i, norms_j, sigma=self.sigma)

    def _norms(self, key: tuple[Any, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        (norms_i, norms_j), (rows, columns) = self.layer.squared_norms, key
        return norms_i[rows], norms_j[columns]


Places = slice | NDArray[np.intp]


def _by_panel(indices: NDArray[np.intp], size: int) -> Iterator[tuple[int, Places, Places]]:
    """Yield each panel that some images lie in, their places among `indices`, and within the panel."""
    panels = indices // size
    for panel in np.unique(panels):
        places = np.flatnonzero(panels == panel)
        yield int(panel), compact(places), compact(indices[places] - panel * size)


def compact(places: NDArray[np.intp]) -> Places:
    """Return consecutive places as a slice, which numpy copies much faster."""
    if places.size and np.all(np.diff(places) == 1):
        return slice(int(places[0]), int(places[-1]) + 1)
    return places


def _outer(rows: Places, columns: Places) -> Any:
    if isinstance(rows, slice) or isinstance(columns, slice):
        return rows, columns
    return np.ix_(rows, columns)

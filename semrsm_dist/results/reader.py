"""Reading what is stored of a run: its layers, similarities and certificates, as xarray objects and numpy arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.data.manifest import Manifest
from semrsm_dist.errors import ConfigError, IncompleteError, counted, require_known
from semrsm_dist.matching.kernels import KERNELS
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.results.matrices import DerivedMatrix, LayerMatrices
from semrsm_dist.results.neighbours import LayerNeighbours
from semrsm_dist.results.rbf_width import median_width
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.neighbours import NeighbourStore
from semrsm_dist.store.paths import RunPath
from semrsm_dist.store.record import RunRecord
from semrsm_dist.store.tiles import KINDS, TileStore

if TYPE_CHECKING:
    import xarray as xr


class RunReader:
    """What is stored of a run, as arrays; `semrsm_dist.Run` adds what is made of it.

    Parameters
    ----------
    path
        The run directory, or its URI such as `s3://bucket/runs/digits`.

    Raises
    ------
    ConfigError
        If there is no run at `path`.
    StorageError
        If its record cannot be read, or is lost.
    """

    def __init__(self, path: str | RunPath) -> None:
        if not isinstance(path, str | RunPath):
            raise ConfigError(f"expected the path of a run directory, found {path!r}")
        self.directory = RunDirectory(path)
        self.record: RunRecord = self.directory.require_record()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.directory.path)!r}, layers={self.layers})"

    @property
    def layers(self) -> list[str]:
        """Names of all layers that any session of the run requested, in the network's order."""
        return list(self.record.layers)

    @property
    def requested_layers(self) -> list[str]:
        """Names of the layers that the last session requested: with these the run is complete."""
        return [layer for layer in self.layers if layer in self.record.requested]

    @property
    def kernels(self) -> list[str]:
        """Names of the kernels of the last session's configuration; others are derived when they are read."""
        return [kernel["name"] for kernel in self.record.config["kernels"]]

    @property
    def is_symmetric(self) -> bool:
        """Whether rows and columns are the same images."""
        return self.record.row_side == "images"

    def manifest(self, side: str = "images") -> Manifest:
        """Return the manifest of `images` or, in a rectangular run, `queries`."""
        require_known("side", side, self.record.counts)
        return self.directory.read_manifest(side)

    def layout(self, layer: str) -> Layout:
        """Return how a layer's matrix is cut into tiles."""
        return self.record.layout(self._known(layer))

    def chunk_size(self, layer: str) -> int:
        """Return how many rows of a layer's matrices are read well at once: a whole number of tiles.

        Raises
        ------
        ConfigError, IncompleteError
            As `dataset`.
        """
        return self.matrices(layer).chunks.tile_size

    def rounding(self, layer: str) -> float:
        """Return by how much a cosine similarity can differ from the one that was computed; 0 in float64."""
        return 2.0**-24 if self.matrices(layer).store.dtype == np.float32 else 0.0

    def dataset(self, layer: str) -> xr.Dataset:
        """Open all matrices of a layer lazily: what is read of them is derived from the tiles.

        Raises
        ------
        ConfigError
            If the layer is unknown.
        IncompleteError
            If it has not been finished yet.
        """
        from semrsm_dist.results.datasets import open_dataset  # noqa: PLC0415 - slow to load, needed by readers alone

        matrices = self.matrices(layer)
        return open_dataset(matrices, matrices.all())

    def matrices(self, layer: str) -> LayerMatrices:
        """Open all matrices of a layer as numpy arrays.

        Raises
        ------
        ConfigError, IncompleteError
            As `dataset`.
        """
        if self.record.neighbours is not None:
            raise ConfigError(
                f"{self.directory.path}: this run keeps {counted(self.record.neighbours.k, 'neighbour')} of each "
                "image and no matrices: read them with Run.neighbours, or start another run directory without "
                "output.neighbours"
            )
        return LayerMatrices.open(TileStore(self.directory.tiles, self._known(layer)), self.layout(layer))

    def neighbours(self, layer: str, kernel: str = "cosine", *, sigma: float | None = None) -> xr.Dataset:
        """Return the most similar images of each image, of a run with `output.neighbours`.

        Parameters
        ----------
        layer
            One of `layers`.
        kernel
            Of the similarities: `linear`, `cosine` or `rbf`. Who is a neighbour, and in which order, is always decided
            by cosine.
        sigma
            Width of the RBF kernel; by default that of the run's configuration.

        Returns
        -------
        xarray.Dataset
            Dims (image, rank), the most similar first: `index`, int64, the neighbour's row among the images, -1 where
            there is none; `neighbour`, its id; `similarity` after matching, `identity` position by position, and `gap`,
            by how much the similarity of the best permutation can be larger, float64, NaN where there is none.

        Raises
        ------
        ConfigError
            If the run keeps matrices; if layer or kernel is unknown, or sigma not positive or not known.
        IncompleteError
            If the layer has not been finished yet.
        """
        import xarray as xr  # noqa: PLC0415 - slow to load, needed by readers alone

        found = self.layer_neighbours(layer, kernel, sigma=sigma)
        indices, similarity, identity, gap = found.read(slice(None))
        names = np.array([*found.store.coordinate("image_j").tolist(), ""], dtype=object)  # -1 is the last
        dims = ("image", "rank")
        return xr.Dataset(
            {
                "index": (dims, indices),
                "neighbour": (dims, names[indices]),
                "similarity": (dims, similarity),
                "identity": (dims, identity),
                "gap": (dims, gap),
            },
            {"image": found.store.coordinate("image_i"), "rank": np.arange(1, indices.shape[1] + 1)},
            {"kernel": kernel} | ({} if found.sigma is None else {"sigma": found.sigma}),
        )

    def layer_neighbours(
        self, layer: str, kernel: str = "cosine", *, sigma: float | None = None
    ) -> LayerNeighbours:
        """Return what `neighbours` returns as a reader of numpy arrays, in parts.

        Raises
        ------
        ConfigError, IncompleteError
            As `neighbours`.
        """
        if self.record.neighbours is None:
            raise ConfigError(
                f"{self.directory.path}: this run keeps matrices: read them with Run.similarity, or start another run "
                "directory with output.neighbours"
            )
        require_known("kernel", kernel, KERNELS)
        _require_width(kernel, sigma)
        if kernel == "rbf" and sigma is None:
            widths = [one["sigma"] for one in self.record.config["kernels"] if one["name"] == "rbf"]
            sigma = next(iter(widths), None)
            if sigma is None:
                raise ConfigError(
                    "the width of rbf is by default the median distance of all pairs, which is not known in a run that "
                    "keeps neighbours: give sigma=..."
                )
        store = NeighbourStore(self.directory.neighbours, self._known(layer))
        return LayerNeighbours.open(store, kernel, sigma)

    def similarity(
        self, layer: str, kernel: str = "cosine", kind: str = "semantic", *, sigma: float | None = None
    ) -> xr.DataArray:
        """Return a similarity matrix.

        Parameters
        ----------
        layer
            One of `layers`.
        kernel
            `linear`, `cosine` or `rbf`, whether or not the run's configuration names it.
        kind
            `semantic` (after matching) or `spatio-semantic` (position by position).
        sigma
            Width of the RBF kernel; by default that of the run's configuration, or else the square root of the median
            non-zero squared distance: of all pairs, or of a sample of 4 million; then the matrix's attribute
            `sigma_error` is two standard errors.

        Returns
        -------
        xarray.DataArray
            Dims (image_i, image_j), float64, read when it is used; NaN where a representation of norm zero leaves
            cosine undefined.

        Raises
        ------
        ConfigError
            If layer, kernel or kind is unknown, or sigma is not positive.
        IncompleteError
            If the layer has not been finished yet.
        """
        from semrsm_dist.results.datasets import open_dataset  # noqa: PLC0415 - slow to load, needed by readers alone

        matrix = self.kernel_matrix(layer, kernel, kind, sigma=sigma)
        return open_dataset(matrix.layer, [matrix])[matrix.name]

    def similarity_rows(
        self, layer: str, kernel: str = "cosine", kind: str = "semantic", *, sigma: float | None = None
    ) -> Callable[..., NDArray[np.float64]]:
        """Return a function that reads a part of `similarity`, for matrices larger than memory.

        It takes a slice or indices of rows and, unless all are wanted, of columns.
        """
        matrix = self.kernel_matrix(layer, kernel, kind, sigma=sigma)
        return lambda rows, columns=slice(None): matrix.read((rows, columns))

    def kernel_matrix(
        self, layer: str, kernel: str = "cosine", kind: str = "semantic", *, sigma: float | None = None
    ) -> DerivedMatrix:
        """Return the matrix of `similarity` as a reader of numpy arrays.

        Raises
        ------
        ConfigError, IncompleteError
            As `similarity`.
        """
        require_known("kind", kind, KINDS)
        require_known("kernel", kernel, KERNELS)
        _require_width(kernel, sigma)
        matrices, name, error = self.matrices(layer), f"{kind}_{kernel}", None
        if sigma is None and name in matrices.kernels:
            return matrices.matrix(name)
        if sigma is None and kernel == "rbf":
            sigma, error = median_width(matrices, kind)
        return matrices.kernel_matrix(kind, kernel, sigma, error)

    def gap(self, layer: str, kernel: str | None = None) -> xr.DataArray:
        """Return how far a layer's matching can be below the best: a small error only of a certified matcher.

        Parameters
        ----------
        layer
            One of `layers`.
        kernel
            Kernel whose similarities the error is of; None means the inner products.

        Returns
        -------
        xarray.DataArray
            Dims (image_i, image_j), float64: bound minus value. The best possible permutation gives at most
            `matched + gap`, or with a kernel, the similarity plus this gap. An RBF's width is taken as exact.

        Raises
        ------
        ConfigError, IncompleteError
            As `similarity`.
        """
        import xarray as xr  # noqa: PLC0415 - slow to load, needed by readers alone

        gap = self.dataset(layer)["gap"]
        if kernel is None:
            return gap
        values = self.kernel_matrix(layer, kernel).read_gap((slice(None), slice(None)))
        return xr.DataArray(
            values, coords=gap.coords, dims=gap.dims, name=f"gap_{kernel}", attrs={"kernel": kernel}
        )

    def summary(self) -> dict[str, Any]:
        """Return the summary that the last session wrote.

        Raises
        ------
        IncompleteError
            If no session has finished yet.
        """
        summary = self.directory.read_summary()
        if summary is None:
            raise IncompleteError(
                f"{self.directory.path}: no session of this run has finished; start its command again"
            )
        return summary

    def chosen_layer(self, layer: str | None) -> str:
        """Return a layer that may be left out where there is only one.

        Raises ConfigError if it is unknown, or left out where there are several.
        """
        if layer is None and len(self.layers) > 1:
            raise ConfigError(
                f"{self.directory.path}: which layer? name one with layer=...; there are {', '.join(self.layers)}"
            )
        return self.layers[0] if layer is None else self._known(layer)

    def _known(self, layer: str) -> str:
        require_known("layer", layer, self.layers, f"{self.directory.path}: ")
        return layer


def _require_width(kernel: str, sigma: Any) -> None:
    """Raise ConfigError unless sigma is None, or may be the width of the kernel."""
    is_number = isinstance(sigma, float | int | np.number) and not isinstance(sigma, bool)
    if sigma is not None and not (is_number and 0 < sigma < math.inf):
        raise ConfigError(f"sigma: {sigma!r}: expected a positive number")
    if sigma is not None and kernel != "rbf":
        raise ConfigError(f"sigma belongs to the kernel rbf, not to {kernel}; leave it out")

"""The final matrices of a layer: a Zarr group that xarray opens as a data set.

Dimensions are `image_i` (rows) and `image_j` (columns), with the image ids as coordinates and labels beside them. A
symmetric matrix is stored whole, so that every reader gets rows as they are.
"""

from __future__ import annotations

import itertools
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from semrsm_dist.errors import IncompleteError
from semrsm_dist.store import chunks

DIMENSIONS = ("image_i", "image_j")
COORDINATES = tuple(f"{name}_{side}" for name in ("labels", "group", "squared_norm") for side in "ij")
"""What goes with the image ids; xarray takes these for coordinates, so that a single matrix carries them."""

COMPLETE, ARRAYS = "complete", "arrays"
"""Attributes of a layer's group: whether it is assembled, and the arrays that belong to it then."""


class MatrixStore:
    """The final matrices of one layer.

    Parameters
    ----------
    root
        The run's group of matrices.
    layer
        Name of the layer.
    """

    def __init__(self, root: Path, layer: str) -> None:
        self.root = root
        self.layer = layer
        self._arrays = chunks.OpenArrays(self.group)

    @property
    def group(self) -> Path:
        """Directory of the layer's group."""
        return self.root / self.layer

    def read_attributes(self) -> dict[str, Any]:
        """Return the attributes of the layer's group; empty if there is none.

        Raises
        ------
        StorageError
            If the group's description is damaged.
        """
        try:
            with chunks.reading_metadata(self.group):
                return dict(zarr.open_group(self.group, mode="r", use_consolidated=False).attrs)
        except FileNotFoundError:
            return {}

    def is_complete(self) -> bool:
        """Return whether the layer has been assembled and every chunk of it is there.

        A chunk that is not there would read as NaN, like an undefined similarity. The chunks are listed, not read.
        """
        return self._find_missing() is None

    def _find_missing(self) -> Path | None:
        """Return the first thing that is missing: the group if it is not assembled, an array or a chunk."""
        try:
            with chunks.reading_metadata(self.group):
                group = zarr.open_group(self.group, mode="r")
                if not group.attrs.get(COMPLETE) or ARRAYS not in group.attrs:
                    return self.group
                arrays = dict(
                    group.arrays()
                )  # as gathered when the layer was finished: one read for all of them
        except FileNotFoundError:
            return self.group
        for name in cast("list[str]", group.attrs[ARRAYS]):
            if name not in arrays or not (self.group / name / "zarr.json").is_file():
                return self.group / name
            missing = set(np.ndindex(arrays[name].cdata_shape)) - chunks.list_chunks(self.group, name)
            if missing:
                return self.group.joinpath(name, "c", *map(str, min(missing)))
        return None

    def begin(self, attributes: Mapping[str, Any], names: Collection[str]) -> None:
        """Open the group for writing matrices of these names; until `finish` it counts as incomplete.

        Matrices of other names go: what an earlier assembly left would pass for part of this one.
        """
        group = chunks.create_group(self.root, self.layer)
        with chunks.writing(self.group):
            _forget_metadata(self.root)
            group.attrs.put({**attributes, "coordinates": " ".join(COORDINATES), COMPLETE: False})
            for folder in self.group.iterdir():
                # What a full disk cut short or has lost its description is assembled anew; Zarr would warn of it.
                if folder.is_dir() and not (folder / "zarr.json").is_file():
                    shutil.rmtree(folder)
            for name in [name for name, array in group.arrays() if array.ndim == 2 and name not in names]:
                del group[name]

    def add_matrix(self, name: str, shape: tuple[int, int], side: int, attributes: dict[str, Any]) -> None:
        """Make one matrix, or reopen it."""
        array = chunks.create_array(
            self.group,
            name,
            shape=shape,
            chunks=(side, side),
            dtype="float64",
            dimension_names=DIMENSIONS,
            attributes=attributes,
        )
        if dict(array.attrs) != attributes:  # it was there
            with chunks.writing(self.group):
                array.attrs.put(attributes)

    def write(self, name: str, tile: tuple[int, int], values: NDArray[np.float64]) -> None:
        """Write one chunk of a matrix that `add_matrix` made, here or in another process."""
        chunks.write_chunk(self._arrays[name], tile, np.ascontiguousarray(values))

    def write_coordinate(
        self, name: str, dimension: str, values: Sequence[str] | NDArray[np.float64]
    ) -> None:
        """Write a coordinate of one dimension: text or numbers, replacing what is there."""
        data = values if isinstance(values, np.ndarray) else np.asarray(values, np.dtypes.StringDType())
        with chunks.writing(self.group):
            zarr.create_array(
                self.group,
                name=name,
                data=data,
                dimension_names=(dimension,),
                config={"write_empty_chunks": True},
                overwrite=True,
            )

    def finish(self) -> None:
        """Gather the layer's metadata, so that it opens in one read, and mark it complete.

        When all layers are finished, `gather_metadata` does the same for the root.
        """
        with chunks.writing(self.group):
            group = zarr.open_group(self.group, mode="a", use_consolidated=False)
            group.attrs[ARRAYS] = sorted(group.array_keys())
            _consolidate(self.group)
            # The last write, which keeps what was gathered: a kill leaves no complete layer without it. The root has
            # nothing gathered meanwhile, which `gather_metadata` would notice.
            _forget_metadata(self.root)
            zarr.open_group(self.group, mode="a", use_consolidated=True).attrs[COMPLETE] = True

    def open(self) -> LayerMatrices:
        """Open the layer for reading.

        Raises
        ------
        IncompleteError
            If it has not been assembled, or a chunk has gone since.
        """
        missing = self._find_missing()
        if missing is not None:
            raise IncompleteError(
                f"{missing}: the matrices of layer {self.layer!r} are not "
                f"{'assembled yet' if missing == self.group else 'complete any more: this is missing'}; start the "
                "run's command again to finish it (semrsm status shows its progress)"
            )
        return LayerMatrices(self.group)


class LayerMatrices:
    """The matrices of an assembled layer, as numpy arrays.

    Parameters
    ----------
    group
        Directory of the layer's group.
    """

    def __init__(self, group: Path) -> None:
        self.group = group
        self._arrays = chunks.OpenArrays(group)
        opened = zarr.open_group(group, mode="r")
        self.names = frozenset(name for name, array in opened.arrays() if array.ndim == len(DIMENSIONS))

    def matrix(self, name: str) -> StoredMatrix:
        """Return one of the matrices, to be read in parts."""
        return StoredMatrix(self.group, name)

    def coordinate(self, name: str) -> NDArray[Any]:
        """Return what goes with the rows or columns, one entry each: numbers, or text as `<U`."""
        array = self._arrays[name]
        values = chunks.read_region(array, (slice(0, array.shape[0]),))
        return values if values.dtype.kind in "iuf" else np.asarray(values.tolist(), dtype=np.str_)


def gather_metadata(root: Path) -> None:
    """Gather the metadata of all layers where `xarray.open_zarr(root, group=layer)` looks, unless it is there.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    with chunks.writing(root), chunks.reading_metadata(root):
        if zarr.open_group(root, mode="a").metadata.consolidated_metadata is None:
            _consolidate(root)


def _forget_metadata(root: Path) -> None:
    """Rewrite the root's description without the metadata that it gathered, which is about to be outdated."""
    zarr.open_group(root, mode="a", use_consolidated=False).attrs.put({})


def _consolidate(group: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata", category=UserWarning)
        zarr.consolidate_metadata(group)


class StoredMatrix:
    """A final matrix on disk; reading a damaged chunk raises DamagedChunkError, which names its file.

    Parameters
    ----------
    group
        Directory of the layer's group.
    name
        Name of the matrix.
    """

    def __init__(self, group: Path, name: str) -> None:
        self._group, self._name = group, name
        self._array = chunks.open_array(group, name)
        self.shape: tuple[int, ...] = self._array.shape
        self.dtype = np.dtype(np.float64)
        self.attributes: dict[str, Any] = dict(self._array.attrs)

    @property
    def chunk_size(self) -> int:
        """Rows and columns of a chunk."""
        return int(self._array.chunks[0])

    def read(self, key: tuple[Any, ...]) -> NDArray[np.float64]:
        """Return a part: numbers, slices or index arrays for rows and for columns, each on its own."""
        try:
            return np.asarray(self._array.oindex[key])
        except (*chunks.DECODING_ERRORS, OSError) as error:
            for index in self._touched(key):
                self._check(index)
            raise chunks.DamagedChunkError(
                f"{self._group / self._name}: cannot be read ({error}); start the run's command again"
            ) from error

    def _touched(self, key: tuple[Any, ...]) -> Iterator[tuple[int, ...]]:
        """Yield the positions of the chunks in which a part of the matrix lies."""
        spans = zip(key, self.shape, self._array.chunks, strict=True)
        yield from itertools.product(
            *(
                map(int, np.unique(np.atleast_1d(np.arange(length)[part]) // side))
                for part, length, side in spans
            )
        )

    def _check(self, index: tuple[int, ...]) -> None:
        """Raise an error that names the file of a chunk and what helps, unless the chunk can be read."""
        try:
            chunks.read_chunk(self._array, index)
        except chunks.DamagedChunkError as error:
            file = self._group.joinpath(self._name, "c", *map(str, index))
            raise chunks.DamagedChunkError(
                f"{file}: the bytes of this chunk are damaged ({error.__cause__}), and similarities in it cannot be "
                "read: delete this file and start the run's command again, which assembles the layer anew from the "
                "solved tiles"
            ) from error

"""A Zarr group of arrays over pairs of images, with the images' ids and labels as coordinates, for xarray.

Dimensions are `image_i` (rows) and `image_j` (columns). The group's metadata is gathered in it when it is finished, so
that it opens in one read.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from semrsm_dist.errors import IncompleteError, StorageError
from semrsm_dist.store import arrays, chunks, groups, paths
from semrsm_dist.store.chunk_labels import origin
from semrsm_dist.store.paths import RunPath
from semrsm_dist.store.sealed import digest

DIMENSIONS = ("image_i", "image_j")
COORDINATES = tuple(f"{name}_{side}" for name in ("labels", "group", "squared_norm") for side in "ij")
"""What goes with the image ids; xarray takes these for coordinates, so that a single matrix carries them."""

COMPLETE = "complete"
"""Attribute of the group: false, or, when it is finished, a digest of all else in its description."""

COORDINATE_CHUNK = 2**17
"""Entries of a coordinate that are written together."""

Values = Sequence[str] | NDArray[np.float64]


@dataclass(frozen=True)
class LabelledGroup:
    """The group of one layer."""

    root: RunPath
    """The Zarr group of all layers."""
    layer: str

    @property
    def group(self) -> RunPath:
        """Directory of the layer's group."""
        return self.root / self.layer

    @cached_property
    def _arrays(self) -> arrays.OpenArrays:
        return arrays.OpenArrays(self.group)

    def read_attributes(self) -> dict[str, Any]:
        """Return the attributes of the group; empty if there is none, or its description is damaged."""
        return groups.read_attributes(self.group)

    def is_finished(self) -> bool:
        """Return whether the group has been finished and is described as then; what has gone is not looked for."""
        description = groups.read_description(self.group)
        return bool(description) and description["attributes"].get(COMPLETE) == _digest(description)

    def is_complete(self) -> bool:
        """Return whether the group has been finished and every chunk of it is there: listed, not read."""
        return self.is_finished() and next(self._missing(), None) is None

    def _missing(self) -> Iterator[RunPath]:
        """Yield the arrays and chunks of the finished group that are not there, or not as they were."""
        described = groups.read_description(self.group)["consolidated_metadata"]["metadata"]
        for name, description in described.items():
            if groups.read_description(self.group / name) != description:
                yield self.group / name
            else:
                yield from self._missing_chunks(name, arrays.open_array(self.group, name))

    def _missing_chunks(self, name: str, array: zarr.Array[Any]) -> Iterator[RunPath]:
        present = chunks.list_chunks(self.group, name)
        for index in sorted(set(np.ndindex(array.cdata_shape)) - present):
            yield self.group.joinpath(name, "c", *map(str, index))

    def begin(self) -> zarr.Group:
        """Return the group for writing; until `finish` it counts as incomplete."""
        group = groups.create_group(self.root, self.layer)
        if group.attrs.get(COMPLETE) is not False:
            with paths.writing(self.group):
                group.attrs.put({COMPLETE: False})
        return group

    def start_over(self) -> None:
        """Make the group anew and empty: what an earlier session left would pass for part of this one's."""
        self.begin()
        with paths.writing(self.group):
            paths.remove_folder(self.group)
        self.begin()

    def finish(
        self, coordinates: Mapping[str, tuple[str, Values]], attributes: Mapping[str, Any], run: str
    ) -> None:
        """Write coordinates, each with its dimension, and attributes, and mark the group complete.

        Raises StorageError if it cannot be written, or another array of the group has lost its description.
        """
        group = self.begin()
        with paths.writing(self.group):
            for name, (dimension, values) in coordinates.items():
                self._write_coordinate(name, dimension, _storable(values), run)
            described = {**attributes, "coordinates": " ".join(COORDINATES), COMPLETE: False}
            group.attrs.put(described)
            with warnings.catch_warnings():
                for message in ("Consolidated metadata", "Object at .* is not recognized"):  # moved aside
                    warnings.filterwarnings("ignore", message=message, category=UserWarning)
                with groups.reading_metadata(self.group):
                    zarr.consolidate_metadata(paths.zarr_store(self.group))
            # The last write, which keeps what was gathered: a kill leaves no complete group without it.
            description = groups.read_description(self.group)
            self._require_gathered(description["consolidated_metadata"]["metadata"])
            description["attributes"][COMPLETE] = _digest(description)
            paths.write_atomically(self.group / "zarr.json", json.dumps(description, indent=2).encode())

    def _require_gathered(self, gathered: Mapping[str, Any]) -> None:
        """Raise StorageError if an array's description was lost while this worked, so that readers would miss it."""
        for name in paths.list_names(self.group):
            if name not in gathered and paths.is_folder(self.group / name / "c") and ".aside-" not in name:
                raise StorageError(
                    f"{self.group / name / 'zarr.json'}: lost or damaged while this driver was at work, so the layer "
                    "is not complete; what is finished is kept: start the run's command, which writes it anew"
                )

    def _write_coordinate(self, name: str, dimension: str, values: NDArray[Any], run: str) -> None:
        if paths.is_folder(self.group / name):
            paths.remove_folder(self.group / name)
        array = arrays.create_array(
            self.group,
            name,
            dimensions={dimension: (len(values), min(len(values), COORDINATE_CHUNK))},
            dtype=values.dtype,
            origin=self.origin(run, name),
        )
        for index in np.ndindex(array.cdata_shape):
            chunks.write_chunk(array, index, values[chunks.chunk_region(array, index)])

    def origin(self, run: str, array: str) -> str:
        """Return the origin of the chunks of an array; see `semrsm_dist.store.chunk_labels.origin`."""
        return origin(run, self.root.name, self.layer, array)

    def require_finished(self) -> None:
        """Raise IncompleteError unless the group has been finished."""
        if not self.is_finished():
            raise IncompleteError(
                f"{self.group}: layer {self.layer!r} is not complete yet; start the run's command again to finish it "
                "(semrsm status shows its progress)"
            )

    def coordinate(self, name: str) -> NDArray[Any]:
        """Return what goes with the rows or columns, one entry each: numbers, or text as `<U`.

        Raises StorageError if it is missing or damaged.
        """
        array = arrays.open_array(self.group, name)
        values = chunks.read_region(array, (slice(0, array.shape[0]),))
        return values if values.dtype.kind in "iuf" else np.asarray(values.tolist(), dtype=np.str_)

    def squared_norms(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the squared norms of the images of rows and columns of the finished group.

        Raises IncompleteError if it has not been finished.
        """
        self.require_finished()
        return self.coordinate("squared_norm_i"), self.coordinate("squared_norm_j")

    def has_sound_coordinates(self) -> bool:
        """Return whether no chunk of the coordinates is missing or damaged: all of them are read."""
        opened = (arrays.open_array(self.group, name) for name in (*DIMENSIONS, *COORDINATES))
        return all(
            not chunks.find_fault(array, index) for array in opened for index in np.ndindex(array.cdata_shape)
        )

    def coordinates(self) -> dict[str, tuple[str, NDArray[Any]]]:
        """Return all coordinates of rows and columns by name, each with its dimension."""
        names = (*DIMENSIONS, *COORDINATES)
        return {name: (f"image_{name[-1]}", self.coordinate(name)) for name in names}


def _digest(description: Mapping[str, Any]) -> str:
    return digest({**description, "attributes": {**description["attributes"], COMPLETE: None}})


def _storable(values: Values) -> NDArray[Any]:
    """Return numbers as they are, and texts in the type of any length."""
    array = np.asarray(values)
    return array if array.dtype.kind == "f" else np.asarray(values, np.dtypes.StringDType())

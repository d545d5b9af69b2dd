"""Parquet files with the images in a column, as the Hugging Face Hub keeps data sets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ClassVar, Literal
from urllib.parse import quote

import pyarrow as pa

from semrsm_dist.data.annotations import annotation_errors
from semrsm_dist.data.columns import LABELS, labels_in
from semrsm_dist.data.entries import ImageEntry
from semrsm_dist.data.packed import PackedSource, parse_numbers, part_uri
from semrsm_dist.data.parquet_rows import BYTES, iterate, open_parquet, read_value
from semrsm_dist.errors import InputError, did_you_mean, first_line, shorten

_LISTED_AT_ONCE = 8  # files, perhaps far away
_BINARY = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)


class ParquetImages(PackedSource):
    """The images in a column of Parquet files, in the order of the files' names and of their rows.

    The column holds the content of image files, or structs with a field ``bytes``, as the library `datasets` writes
    them. Row groups are read piece by piece, and images that follow each other in one pass. Class numbers that the file
    names, as `datasets` does, become these names. `entries` raises InputError if there is no Parquet file, one is
    damaged, or a column is missing or of another type.

    Parameters
    ----------
    path, files
        See `PackedSource`; the files end in ``.parquet``. `files` chooses a split, as in "*train-*".
    image
        Name of the column.
    labels
        Name of the column with labels, or of a field in it ("objects.category"); if not given, "label" or "labels", if
        there is one of them.
    id
        Name of a column with unique ids; if not given, ids are the file's path below the folder, without ``.parquet``,
        and the number of the row.
    """

    endings: ClassVar[tuple[str, ...]] = (".parquet",)

    source: Literal["parquet"] = "parquet"
    image: str = "image"
    labels: str | None = None
    id: str | None = None

    def entries(self) -> list[ImageEntry]:
        """Return the images of all files."""
        with ThreadPoolExecutor(_LISTED_AT_ONCE) as threads:
            listed = threads.map(lambda pack: list(self._entries_of(*pack)), self.list_packs().items())
            entries = [entry for part in listed for entry in part]
        if not entries:
            raise InputError(f"{self.path}: no file has a row, so there is nothing to do; give another path")
        return entries

    def read_part(self, location: str, part: str, most: int) -> bytes:
        """Return the content of the image in a row."""
        column, _, place = part.rpartition("/")
        if column != quote(self.image):  # so that one image is not taken for that of another column
            raise ValueError(f"{part!r} is not a place in column {self.image!r}")
        group, row = parse_numbers(place)
        data = read_value((location, self.image, group), row)
        if data is None:
            raise ValueError(
                f"row {row} of row group {group} of {location} holds no bytes; if it names a file, write the images "
                "into the table (Dataset.to_parquet of `datasets` does)"
            )
        return data

    def _entries_of(self, name: str, location: str) -> Iterator[ImageEntry]:
        with _listing_errors(location):
            with open_parquet(location) as file:
                schema = file.schema_arrow
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            column, path = self._check_columns(schema, location)
            names = _class_names(schema, column, path)
            first = 0
            for group, size in enumerate(sizes):
                rows = _rows(location, [each for each in (column, self.id) if each], group, size)
                for row, cells in enumerate(rows):
                    image_id = f"{name}/{first + row}" if self.id is None else _text(cells[self.id], location)
                    try:
                        labels, counts = labels_in(cells.get(column), path, names)
                    except ValueError as error:
                        raise InputError(
                            f"{location}: labels of image {image_id!r}: {first_line(error)}; correct the file, or name "
                            "another column with data.labels"
                        ) from error
                    uri = part_uri(location, f"{quote(self.image)}/{group}+{row}")
                    yield ImageEntry(image_id, uri, labels, label_counts=counts)
                first += size

    def _check_columns(self, schema: pa.Schema, location: str) -> tuple[str, str]:
        """Return the column of the labels and their path in it, empty if there are none, if all columns are there."""
        column, path = self._find_labels(schema)
        for name in (self.image, self.id, column):
            if name and name not in schema.names:
                raise InputError(
                    f"{location}: there is no column {name!r}, only {shorten(schema.names, 8)}"
                    f"{did_you_mean(name, schema.names)}; name the columns with data.image, data.labels and data.id"
                )
            if name and schema.names.count(name) > 1:
                raise InputError(
                    f"{location}: there is more than one column {name!r}, and it is unclear which is meant; rename the "
                    "others"
                )
        kind = schema.field(self.image).type
        if pa.types.is_struct(kind) and kind.get_field_index(BYTES) >= 0:
            kind = kind.field(BYTES).type
        if not any(is_kind(kind) for is_kind in _BINARY):
            raise InputError(
                f"{location}: column {self.image!r} holds {kind}, not the content of image files or structs with "
                f"{BYTES!r}; name another one with data.image"
            )
        return column, path

    def _find_labels(self, schema: pa.Schema) -> tuple[str, str]:
        """Return where labels are; names of columns may have dots, and the longest that fits is meant."""
        if self.labels is None:
            return next((name for name in LABELS if name in schema.names), ""), ""
        fitting = [name for name in schema.names if f"{self.labels}.".startswith(f"{name}.")]
        column = max(fitting, key=len, default=self.labels.partition(".")[0])
        return column, self.labels[len(column) + 1 :]


def _rows(location: str, columns: Sequence[str], group: int, size: int) -> Iterator[Mapping[str, Any]]:
    """Yield some columns of the rows of a row group."""
    if not columns:
        yield from ({} for _ in range(size))
        return
    for batch in iterate(location, columns, group):
        yield from batch.to_pylist()


def _text(value: object, location: str) -> str:
    if value is None or value == "":
        raise InputError(f"{location}: an id is missing; fill it in, or name another column with data.id")
    return str(value)


def _class_names(schema: pa.Schema, column: str, path: str) -> list[str]:
    """Return the names of classes that `datasets` writes into a file; none if labels are no numbers of classes."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        for key in path.split(".") if path else ():
            feature = _element(feature)[key]
        names = _element(feature).get("names")
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RecursionError):
        return []  # the file says nothing of classes
    return list(map(str, names)) if isinstance(names, list) else []


def _element(feature: Any) -> Any:
    """Return what the elements of a list are, however it is described."""
    while isinstance(feature, list) or (isinstance(feature, dict) and "feature" in feature):
        feature = feature[0] if isinstance(feature, list) else feature["feature"]
    return feature


@contextmanager
def _listing_errors(location: str) -> Iterator[None]:
    try:
        with annotation_errors(location, "check the path"):
            yield
    except InputError:
        raise
    except ValueError as error:  # of Arrow, too
        raise InputError(
            f"{location}: cannot be read as Parquet ({first_line(error)}); get the file again"
        ) from error

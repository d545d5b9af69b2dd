"""A table of images: Parquet or CSV with the columns image_id, uri, labels and, optionally, group."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from semrsm_dist.data.entries import ImageEntry, check_unique_ids
from semrsm_dist.data.files import REMOTE, absolute, below, is_uri, locate, split_options
from semrsm_dist.errors import InputError, did_you_mean

LABEL_SEPARATOR = "|"


def read_entries(path: str | Path, *, needs_uri: bool = True) -> list[ImageEntry]:
    """Read a table of images, or with ``needs_uri=False`` a table of labels for ready-made features.

    Raises
    ------
    InputError
        If the table cannot be read, lacks a column, has no rows, or has an empty or repeated id.
    """
    location = absolute(path)
    table = _read_table(location)
    _check_columns(table, location, needs_uri)
    if not table.num_rows:
        raise InputError(
            f"{location}: the table has no rows, so there is nothing to do; list at least one image"
        )
    ids = _texts(table, "image_id", location)
    uris = _texts(table, "uri", location) if "uri" in table.column_names else [None] * table.num_rows
    groups = _texts(table, "group", location) if "group" in table.column_names else [None] * table.num_rows
    _check_filled(ids, "image_id", location)
    if needs_uri:
        _check_filled(uris, "uri", location)
    check_unique_ids((name for name in ids if name), location)
    place, options = split_options(location)
    folder = posixpath.dirname(place) + options
    places = [_resolve(uri, folder) for uri in uris]
    _check_schemes(places, location)
    return [
        ImageEntry(image_id or "", place, labels, group or None)
        for image_id, place, labels, group in zip(ids, places, _labels(table, location), groups, strict=True)
    ]


def _check_schemes(uris: Sequence[str], location: str) -> None:
    """Refuse a file system that nobody knows here, not at the image that a worker cannot open."""
    schemes = {uri.partition("://")[0].lower(): uri for uri in reversed(uris) if is_uri(uri)}
    for scheme, uri in schemes.items():
        if scheme not in REMOTE:  # to open one of these may take a network
            try:
                locate(uri)
            except InputError as error:
                raise InputError(f"{location}: {uri}: {error}") from error


def _resolve(uri: str | None, folder: str) -> str:
    if not uri or is_uri(uri) or uri.startswith("/"):
        return uri or ""
    return below(folder, uri)


def _read_table(location: str) -> pa.Table:
    readers = {".parquet": _read_parquet, ".pq": _read_parquet, ".csv": _read_csv}
    suffix = posixpath.splitext(split_options(location)[0])[1].lower()
    if suffix not in readers:
        raise InputError(
            f"{location}: a table of images ends in .parquet, .pq or .csv, not in {suffix or 'nothing'!r}; convert or "
            f"rename it, or name a folder as such"
        )
    system, path = locate(location)
    try:
        with system.open_input_file(path) as file:
            return readers[suffix](file)
    except FileNotFoundError as error:
        raise InputError(f"the table of images {location!r} does not exist; check the path") from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{location}: the table cannot be read: {error}") from error


def _read_parquet(file: pa.NativeFile) -> pa.Table:
    return pyarrow.parquet.read_table(file)


def _read_csv(file: pa.NativeFile) -> pa.Table:
    # All as text: an id such as 007 must not become a number, nor a label "null" a missing value.
    names = ("image_id", "uri", "labels", "group")
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
    )
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    return pyarrow.csv.read_csv(file, convert_options=convert, parse_options=parse)


def _check_columns(table: pa.Table, location: str, needs_uri: bool) -> None:
    needed = ["image_id", "uri", "labels"] if needs_uri else ["image_id", "labels"]
    repeated = [name for name in (*needed, "uri", "group") if table.column_names.count(name) > 1]
    if repeated:
        raise InputError(
            f"{location}: the table has more than one column {repeated[0]!r}, and nothing tells which is meant; rename "
            "or remove the others"
        )
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        near = did_you_mean(missing[0], table.column_names)
        raise InputError(
            f"{location}: the table lacks the column(s) {', '.join(missing)}; it has "
            f"{', '.join(table.column_names) or 'none'}{near}. Needed: {', '.join(needed)} (labels may be left empty)"
        )


def _texts(table: pa.Table, name: str, location: str) -> list[str | None]:
    column = table.column(name)
    try:
        return [None if value is None else str(value) for value in column.cast(pa.string()).to_pylist()]
    except pa.ArrowException as error:
        raise InputError(f"{location}: the column {name} must hold text, not {column.type}") from error


def _check_filled(values: Sequence[str | None], name: str, location: str) -> None:
    empty = [row for row, value in enumerate(values) if not value]
    if empty:
        raise InputError(
            f"{location}: {len(empty)} row(s) have no {name}, the first being row {empty[0]} (counted from 0, "
            f"without the header). Fill it in or remove the row"
        )


def _labels(table: pa.Table, location: str) -> list[tuple[str, ...]]:
    """Return the label sets, from lists or from text; a label is told by what is not blank about it."""
    column = table.column("labels")
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    rows: list[list[str]]
    if any(is_kind(column.type) for is_kind in kinds):
        rows = [[str(item) for item in row or () if item is not None] for row in column.to_pylist()]
    else:
        rows = [(text or "").split(LABEL_SEPARATOR) for text in _texts(table, "labels", location)]
    return [tuple(label.strip() for label in row if label.strip()) for row in rows]

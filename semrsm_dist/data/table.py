"""A table of images: the columns image_id and uri and, optionally, labels, their counts and areas, and group."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import posixpath
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from semrsm_dist.data.entries import ImageEntry, check_unique_ids, clean_labels, is_nan, parse_labels
from semrsm_dist.data.locations import (
    REMOTE,
    absolute,
    below,
    is_uri,
    leads_out,
    locate,
    read_bytes,
    split_options,
)
from semrsm_dist.errors import InputError, MissingInputError, StorageError, hide_secrets, reason_of

_logger = logging.getLogger(__name__)

COLUMNS = ("image_id", "uri", "labels", "group", "label_counts", "label_areas")
_LISTS = ("labels", "label_counts", "label_areas")
_MISSING = ("nan", "<na>", "nat", "null", "none")
"""What Python's libraries write for a missing value where they write text, in any case."""

_ALIKE = 0.75
"""How alike an unknown column's name and a column's that is not there must be for the one to be a misspelt other."""

_QUOTING = (
    'in text, a cell that holds the delimiter must be in quotation marks, and those within it doubled: "[""cat"", '
    '""odd""]"; or write the labels with | between them'
)


def read_entries(
    path: str | Path, *, needs_uri: bool = True, allow_outside: bool = False
) -> list[ImageEntry]:
    """Read a table of images, or with ``needs_uri=False`` a table of labels for ready-made features.

    Parameters
    ----------
    path
        The table, or its URI.
    needs_uri
        Whether every row must say where its image is; otherwise it may.
    allow_outside
        Take paths that lead out of the table's folder.

    Raises
    ------
    InputError
        If the table cannot be read, lacks a column or has a misspelt one, has no rows, an empty or repeated id, labels
        that are none, or a path out of its folder that is not allowed.
    StorageError
        If the storage fails, or reading is not permitted.
    """
    location = absolute(path)
    table = read_table(location)
    needed = ["image_id", "uri"] if needs_uri else ["image_id"]
    _check_columns(table.column_names, needed, location)
    if not table.num_rows:
        raise InputError(
            f"{location}: the table has no rows, so there is nothing to do; list at least one image"
        )
    ids, uris, groups = (_texts(table, name, location) for name in ("image_id", "uri", "group"))
    _check_filled(ids, "image_id", location)
    check_unique_ids(ids, location)
    places = [""] * len(ids)
    if needs_uri:
        _check_filled(uris, "uri", location)
        places = _resolve(uris, location, allow_outside)
    else:  # nothing is read from there, but for a report, which is as careful as `TableImages.load`
        given = [row for row, uri in enumerate(uris) if uri]
        found = _resolve([uris[row] for row in given], location, allow_outside=True)
        for row, place in zip(given, found, strict=True):
            places[row] = place
    labels = _labels(table, location)
    _warn_of_missing(location, "labels", {label for some in labels for label in some})
    _warn_of_missing(location, "group", set(groups))
    counts = _numbers(table, "label_counts", labels, location)
    areas = _numbers(table, "label_areas", labels, location)
    columns = zip(ids, places, labels, (group or None for group in groups), counts, areas, strict=True)
    return [ImageEntry(*row) for row in columns]


def folder_of(location: str) -> str:
    """Return the folder of a table, below which its images lie; a URI keeps its options."""
    place, options = split_options(location)
    return posixpath.dirname(place) + options


def _resolve(uris: Sequence[str], location: str, allow_outside: bool) -> list[str]:
    """Return absolute paths and URIs."""
    folder = folder_of(location)
    _check_uris(uris, location)
    places = [uri if is_uri(uri) or uri.startswith("/") else below(folder, uri) for uri in uris]
    if allow_outside:
        return places
    for row, (uri, place) in enumerate(zip(uris, places, strict=True)):
        if _is_outside(place, folder):
            raise InputError(
                f"{location}: row {row} (counted from 0, without the header): the uri {uri!r} leads out of the table's "
                f"folder {folder!r}, so nothing was read: put the images below it, or take them from anywhere with "
                "allow_outside: true"
            )
    return places


def _is_outside(place: str, folder: str) -> bool:
    """Return whether a path leaves a folder as it is written; another file system must be meant."""
    if is_uri(place) and not place.startswith("file://"):
        path = split_options(place)[0]
        return ".." in path.split("/") and not posixpath.normpath(path).startswith(
            posixpath.normpath(split_options(folder)[0]) + "/"
        )
    path = locate(place)[1]
    if is_uri(folder):
        return True
    return not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder)) and leads_out(
        path, folder
    )


def _check_uris(uris: Sequence[str], location: str) -> None:
    """Refuse secrets, and unknown file systems now rather than when a worker cannot open an image."""
    telling = next((row for row, uri in enumerate(uris) if is_uri(uri) and hide_secrets(uri) != uri), None)
    if telling is not None:
        raise InputError(
            f"{location}: row {telling} (counted from 0, without the header): the uri holds a password, a key or a "
            "token, which would be kept in the run for all who can read it: remove it, and put it into the environment"
        )
    schemes = {uri.partition("://")[0].lower(): uri for uri in reversed(uris) if is_uri(uri)}
    for scheme, uri in schemes.items():
        if scheme not in REMOTE:  # opening one of these may need a network
            try:
                locate(uri)
            except InputError as error:
                raise InputError(f"{location}: {uri}: {error}") from error


# --- reading -------------------------------------------------------------------------------------------


def read_table(location: str) -> pa.Table:
    """Return the table in a file, of text unless it is Parquet; errors as in `read_entries`."""
    suffix = posixpath.splitext(split_options(location)[0])[1].lower()
    if suffix not in _READERS:
        raise InputError(
            f"{location}: a table of images ends in {', '.join(_READERS)}, not in {suffix or 'nothing'!r}; convert or "
            f"rename it, or name a folder as such"
        )
    try:
        return _READERS[suffix](read_bytes(location))
    except PermissionError as error:
        raise StorageError(f"{location}: cannot be read ({reason_of(error)}); grant access") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingInputError(f"the table of images {location!r} does not exist; check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{location}: is not UTF-8 ({error.reason} at byte {error.start}), so names could be misread; save it as "
            "UTF-8 (in Excel: CSV UTF-8)"
        ) from error
    except StorageError:
        raise
    except (pa.ArrowException, OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"{location}: the table cannot be read ({reason_of(error).rstrip('.')}); correct the file"
        ) from error


def _read_parquet(content: bytes) -> pa.Table:
    table = pyarrow.parquet.read_table(pa.BufferReader(content))
    return table.rename_columns([name.strip() for name in table.column_names])


def _read_csv(content: bytes) -> pa.Table:
    """Return a table of text: an id such as 007 must not become a number, nor a label "null" a missing value."""
    text = content.decode("utf-8-sig").lstrip("\r\n")
    delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header = [name.strip() for name in next(lines, [])]
    if not header:
        raise ValueError("it is empty")
    rows = []
    for row in lines:
        if row and len(row) != len(header):
            raise ValueError(
                f"line {lines.line_num} has {len(row)} cells, the header {len(header)} (separated by {delimiter!r}); "
                f"{_QUOTING}"
            )
        rows += [row] if row else []
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    return pa.table([pa.array(column, pa.string()) for column in columns], names=header)


def _read_json_lines(content: bytes) -> pa.Table:
    """Return a table of objects, one a line, whose labels are a list or text."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(content.decode("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError(  # noqa: TRY004 - the file is at fault
                f"line {number} is no object with keys: {line[:80]!r}"
            )
        nested = [
            name
            for name in COLUMNS
            if isinstance(row.get(name), dict if name in _LISTS else dict | list) and name != "labels"
        ]
        if nested:
            raise ValueError(f"line {number}: {nested[0]} must be text, not {row[nested[0]]!r}")
        names = [name.strip() for name in row]
        if len(set(names)) < len(names):
            raise ValueError(
                f"line {number} has a key twice (blanks around keys do not count): {line[:80]!r}"
            )
        values = (None if is_nan(value) else value for value in row.values())
        texts = [value if isinstance(value, str | None) else json.dumps(value) for value in values]
        rows.append(dict(zip(names, texts, strict=True)))
    columns = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: pa.array([row.get(name) for row in rows], pa.string()) for name in columns})


def _read_names(content: bytes) -> pa.Table:
    """Return a table of paths, one a line, as thingsvision writes them in ``file_names.txt``: without labels."""
    names = [line for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    columns = {"image_id": names, "uri": names}
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


_READERS: dict[str, Callable[[bytes], pa.Table]] = {
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json_lines,
    ".txt": _read_names,
}


# --- columns -------------------------------------------------------------------------------------------


def _check_columns(names: Sequence[str], needed: Sequence[str], location: str) -> None:
    repeated = [name for name in COLUMNS if names.count(name) > 1]
    if repeated:
        raise InputError(
            f"{location}: the table has more than one column {repeated[0]!r} (blanks around names do not count), and "
            "it is unclear which is meant; rename or remove the others"
        )
    further = [name for name in names if name not in COLUMNS]
    absent = [name for name in COLUMNS if name not in names and (name in needed or name != "uri")]
    for name in absent:
        near = get_close_matches(name, [other.lower() for other in further], n=1, cutoff=_ALIKE)
        if near:
            found = next(other for other in further if other.lower() == near[0])
            raise InputError(
                f"{location}: the table has a column {found!r} but no {name!r}; did you mean {name!r}? Rename it, or, "
                "if it holds something else, give it another name"
            )
    missing = [name for name in absent if name in needed]
    if missing:
        raise InputError(
            f"{location}: the table lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; it has "
            f"{', '.join(names) or 'none'}. Needed: {', '.join(needed)}; the others may be left out"
        )
    if further:
        _warn_once(f"{location}: the columns {', '.join(map(repr, further))} are not used")


@lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    """Warn of something in a table, which is read several times in a run."""
    _logger.warning("%s", message)


def _texts(table: pa.Table, name: str, location: str) -> list[str]:
    """Return the cells of a column as text, empty where one has no value (NaN is none) or there is no such column."""
    if name not in table.column_names:
        return [""] * table.num_rows
    column = table.column(name)
    if pa.types.is_floating(column.type):
        column = pa.chunked_array(
            [pa.array(part.to_pylist(), part.type, from_pandas=True) for part in column.chunks], column.type
        )
    try:
        return [value or "" for value in column.cast(pa.string()).to_pylist()]
    except pa.ArrowException as error:
        raise InputError(f"{location}: the column {name} must hold text, not {column.type}") from error


def _check_filled(values: Sequence[str], name: str, location: str) -> None:
    empty = [row for row, value in enumerate(values) if not value]
    if empty:
        raise InputError(
            f"{location}: {name} is empty in {len(empty)} of {len(values)} rows, first in row {empty[0]} "
            f"(counted from 0, without the header). Fill it in or remove the row"
        )


def _cells(table: pa.Table, name: str, location: str) -> tuple[list[Any], bool]:
    """Return the cells of a column, and whether they are lists rather than text."""
    kind = table.column(name).type
    kinds = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    is_list = any(getattr(pa.types, f"is_{each}")(kind) for each in kinds)
    return (table.column(name).to_pylist() if is_list else _texts(table, name, location)), is_list


def _numbers(
    table: pa.Table, name: str, labels: Sequence[tuple[str, ...]], location: str
) -> list[tuple[Any, ...] | None]:
    """Return the numbers of labels, from lists or from text as labels have it; None where there are none."""
    if name not in table.column_names:
        return [None] * table.num_rows
    is_count, found = name == "label_counts", []
    for row, cell in enumerate(_cells(table, name, location)[0]):
        try:
            values = parse_labels(cell) if isinstance(cell, str) else clean_labels(cell or ())
            numbers = tuple(map(int if is_count else float, values))
            is_wrong = any(not (1 <= number < 2**63 if is_count else 0 <= number <= 1) for number in numbers)
        except ValueError:
            is_wrong, numbers = True, ()
        if is_wrong or (numbers and len(numbers) != len(labels[row])):
            expected = "whole numbers from 1" if is_count else "shares of the image's area, 0 to 1"
            raise InputError(
                f"{location}: the {name} of row {row} (counted from 0, without the header) are {cell!r}, but its "
                f"{len(labels[row])} labels need as many {expected}; correct them, or leave the cell empty"
            )
        found.append(numbers if numbers or not labels[row] else None)
    return found


def _labels(table: pa.Table, location: str) -> Sequence[tuple[str, ...]]:
    """Return the label sets, from lists or from text; a label is what is not blank about it."""
    if "labels" not in table.column_names:
        return [()] * table.num_rows
    cells, is_list = _cells(table, "labels", location)
    labels = []
    for row, cell in enumerate(cells):
        try:
            labels.append(clean_labels(cell or ()) if is_list else parse_labels(cell))
        except ValueError as error:
            raise InputError(
                f"{location}: the labels of row {row} (counted from 0, without the header): {error}; write a list such "
                f'as ["cat", "odd"], or text. And {_QUOTING}'
            ) from error
    _warn_of_commas(labels, location)
    return labels


def _warn_of_missing(location: str, column: str, names: set[str]) -> None:
    """Warn of text that other programs write for a missing value: here, all images that have it share a name."""
    found = sorted(name for name in names if name.lower() in _MISSING)
    if found:
        what = "share a label" if column == "labels" else "are near-duplicates of each other, and no hits"
        _warn_once(
            f"{location}: {', '.join(map(repr, found))} in the column {column} counts as a name, so images with it "
            f"{what}: if it means that the value is missing, leave the cell empty"
        )


def _warn_of_commas(labels: Sequence[tuple[str, ...]], location: str) -> None:
    """Warn of a label such as "cat, dog" where "cat" and "dog" are labels, too: commas do not separate labels."""
    known = set().union(*labels)
    joined = sorted(
        label
        for label in known
        if "," in label and known.issuperset(part.strip() for part in label.split(","))
    )
    if joined:
        several = "|".join(part.strip() for part in joined[0].split(","))
        _warn_once(
            f"{location}: a comma does not separate labels, so each of {', '.join(map(repr, joined))} is one label of "
            f"its own, although its parts are labels, too: if several are meant, write them as {several!r}"
        )

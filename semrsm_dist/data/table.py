"""A table of images, with the columns image_id, uri, labels and, optionally, group."""

from __future__ import annotations

import ast
import json
import posixpath
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from semrsm_dist.data.entries import ImageEntry, check_unique_ids
from semrsm_dist.data.locations import REMOTE, absolute, below, is_uri, locate, split_options
from semrsm_dist.errors import InputError, MissingInputError, did_you_mean

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
    """Refuse an unknown file system now, rather than when a worker cannot open an image."""
    schemes = {uri.partition("://")[0].lower(): uri for uri in reversed(uris) if is_uri(uri)}
    for scheme, uri in schemes.items():
        if scheme not in REMOTE:  # opening one of these may need a network
            try:
                locate(uri)
            except InputError as error:
                raise InputError(f"{location}: {uri}: {error}") from error


def _resolve(uri: str | None, folder: str) -> str:
    if not uri or is_uri(uri) or uri.startswith("/"):
        return uri or ""
    return below(folder, uri)


def _read_table(location: str) -> pa.Table:
    suffix = posixpath.splitext(split_options(location)[0])[1].lower()
    if suffix not in _READERS:
        raise InputError(
            f"{location}: a table of images ends in {', '.join(_READERS)}, not in {suffix or 'nothing'!r}; convert or "
            f"rename it, or name a folder as such"
        )
    system, path = locate(location)
    try:
        with system.open_input_file(path) as file:
            return _READERS[suffix](file)
    except FileNotFoundError as error:
        raise MissingInputError(f"the table of images {location!r} does not exist; check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{location}: is not UTF-8 ({error.reason} at byte {error.start}), so names could be misread; save it as "
            "UTF-8 (in Excel: CSV UTF-8)"
        ) from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{location}: the table cannot be read: {error}; correct the file") from error


def _read_parquet(file: pa.NativeFile) -> pa.Table:
    return pyarrow.parquet.read_table(file)


def _read_csv(file: pa.NativeFile) -> pa.Table:
    content = file.read()
    header = content.decode("utf-8-sig").split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    # All as text: an id such as 007 must not become a number, nor a label "null" a missing value.
    names = ("image_id", "uri", "labels", "group")
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
    )
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True, delimiter=delimiter)
    return pyarrow.csv.read_csv(pa.BufferReader(content), convert_options=convert, parse_options=parse)


def _read_json_lines(file: pa.NativeFile) -> pa.Table:
    """Return a table of objects, one a line, whose labels are a list or text."""
    rows: list[dict[str, object]] = []
    for number, line in enumerate(file.read().decode("utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError(  # noqa: TRY004 - the file is at fault
                f"line {number} is no object with keys: {line[:80]!r}"
            )
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    texts = {name: [_json_text(row.get(name)) for row in rows] for name in names}
    return pa.table({name: pa.array(values, pa.string()) for name, values in texts.items()})


def _json_text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _read_names(file: pa.NativeFile) -> pa.Table:
    """Return a table of paths, one a line, as thingsvision writes them in ``file_names.txt``: without labels."""
    names = [line for line in file.read().decode("utf-8-sig").splitlines() if line.strip()]
    columns = {"image_id": names, "uri": names, "labels": [""] * len(names)}
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


_READERS: dict[str, Callable[[pa.NativeFile], pa.Table]] = {
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json_lines,
    ".txt": _read_names,
}


def _check_columns(table: pa.Table, location: str, needs_uri: bool) -> None:
    needed = ["image_id", "uri", "labels"] if needs_uri else ["image_id", "labels"]
    repeated = [name for name in (*needed, "uri", "group") if table.column_names.count(name) > 1]
    if repeated:
        raise InputError(
            f"{location}: the table has more than one column {repeated[0]!r}, and it is unclear which is meant; rename "
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
    """Return the label sets, from lists or from text; a label is what is not blank about it."""
    column = table.column("labels")
    kinds = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    rows: list[list[object]]
    if any(getattr(pa.types, f"is_{kind}")(column.type) for kind in kinds):
        rows = [row or [] for row in column.to_pylist()]
    else:
        texts = _texts(table, "labels", location)
        rows = [_split_labels(text or "", row, location) for row, text in enumerate(texts)]
    labels = ([str(label).strip() for label in row if label is not None] for row in rows)
    return [tuple(label for label in row if label) for row in labels]


def _split_labels(text: str, row: int, location: str) -> list[object]:
    """Return the labels in a text: a list as JSON or Python writes it, or labels with ``|`` between them."""
    if not text.lstrip().startswith("["):
        return list(text.split(LABEL_SEPARATOR))
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, list) and not any(isinstance(label, list | dict) for label in found):
            return found
    raise InputError(
        f"{location}: the labels of row {row} (counted from 0, without the header) begin with '[' but are no list such "
        f'as ["cat", "odd"]: {text[:80]!r}; correct them, or write the labels with {LABEL_SEPARATOR} between them'
    )

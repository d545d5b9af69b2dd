"""A folder of images with tables about them, as `datasets` of Hugging Face has it."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any, Literal

from semrsm_dist.data.annotations import list_below, place_below, warn_unlabelled
from semrsm_dist.data.columns import LABELS, labels_in
from semrsm_dist.data.entries import ImageEntry, check_unique_ids
from semrsm_dist.data.files import ListedSource
from semrsm_dist.data.listing import is_image
from semrsm_dist.data.locations import absolute, join
from semrsm_dist.data.table import read_table
from semrsm_dist.errors import InputError, MissingInputError, did_you_mean, first_line

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"


class ImageFolder(ListedSource):
    """The images below a folder, with the labels that the tables ``metadata.csv``, ``.jsonl`` or ``.parquet`` have.

    A table lies in the folder of its images or above it, and names them in a column `file_name`, relative to itself.
    Images are sorted by their path, which is their id. Those that no table names stay, without labels, and a warning
    names them; those that are named but not there are unreadable. A folder without such a table is one for the source
    `folder`, which takes the labels from the names of folders. `entries` raises InputError if there is no folder or
    no table, a table cannot be read or lacks a column, names an image twice or one out of its folder, or holds
    something else than labels.

    Parameters
    ----------
    path
        The folder, such as that of a split; or its URI.
    labels
        Name of the column with labels, or of a field in it ("objects.categories"); if not given, "label" or "labels".
    allow_outside
        Take images that are links out of the folder.
    """

    source: Literal["imagefolder"] = "imagefolder"
    labels: str | None = None

    @property
    def folder(self) -> str:
        """The folder of images."""
        return join(self.path)

    def entries(self) -> list[ImageEntry]:
        """Return the images below the folder."""
        files = list_below(self.folder, "check the path")
        tables = [file for file in files if posixpath.basename(file) in TABLES]
        if not tables:
            raise MissingInputError(
                f"{absolute(self.path)}: holds no {', '.join(TABLES[:-1])} or {TABLES[-1]}: write one with a column "
                f"{FILE_NAME!r}, or take labels from the names of folders with source: folder"
            )
        entries = [entry for table in tables for entry in self._read(table)]
        check_unique_ids((entry.image_id for entry in entries), f"the tables in {absolute(self.path)}")
        named = {entry.image_id for entry in entries}
        others = [file for file in files if is_image(file) and file not in named]
        warn_unlabelled(absolute(self.path), others)
        entries += [ImageEntry(file, join(self.path, file)) for file in others]
        if not entries:
            raise MissingInputError(
                f"{absolute(self.path)}: no images, and none in {tables[0]}; check the path"
            )
        return sorted(entries, key=lambda entry: entry.image_id)

    def _read(self, name: str) -> Iterator[ImageEntry]:
        """Yield the images that a table names."""
        where, folder = join(self.path, name), posixpath.dirname(name)
        table = read_table(where)
        column, _, path = (self.labels or "").partition(".")
        column = column or next((each for each in LABELS if each in table.column_names), "")
        for needed in (FILE_NAME, column):
            if needed and needed not in table.column_names:
                raise InputError(
                    f"{where}: there is no column {needed!r}, only {', '.join(table.column_names) or 'none'}"
                    f"{did_you_mean(needed, table.column_names)}; rename one, or name that of labels with data.labels"
                )
        names: list[Any] = table.column(FILE_NAME).to_pylist()
        cells = table.column(column).to_pylist() if column else [None] * len(names)
        for row, (file, cell) in enumerate(zip(names, cells, strict=True)):
            about = f"{where}: row {row} (counted from 0, without the header)"
            if not isinstance(file, str) or not file:
                raise InputError(f"{about} has no {FILE_NAME}; fill it in, or remove the row")
            uri = place_below(join(self.path, folder) if folder else join(self.path), file, where)
            try:
                labels, counts = labels_in(cell, path)
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{about}: labels: {first_line(error)}; correct it, or name other labels with data.labels"
                ) from error
            yield ImageEntry(
                posixpath.normpath(posixpath.join(folder, file)), uri, labels, label_counts=counts
            )

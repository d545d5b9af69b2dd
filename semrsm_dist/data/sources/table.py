"""Images listed in a table."""

from __future__ import annotations

from typing import Literal

from semrsm_dist.data.entries import ImageEntry
from semrsm_dist.data.files import ListedSource
from semrsm_dist.data.locations import absolute
from semrsm_dist.data.table import folder_of, read_entries


class TableImages(ListedSource):
    """Images listed in a table, in the order of its rows.

    The table is a Parquet file (``.parquet``, ``.pq``), text with commas, semicolons or tabs between its columns
    (``.csv``, ``.tsv``), or one JSON object per line (``.jsonl``); text is UTF-8. A ``.txt`` file has one path per
    line, which is also the image's id, and no labels.

    Columns: `image_id`, unique; `uri`, a path or any URI that pyarrow's file systems open, relative ones being relative
    to the table's folder; and, optionally, `labels`, a list column, a list written as JSON, or text with ``|`` between
    the labels, empty for none; and `group`. Blanks around their names do not count. Further columns are reported and
    not used, unless they look like a misspelt name of one of these. `entries` raises InputError if the table
    cannot be read, lacks a column, is empty, repeats an id, or names a path outside its folder that is not allowed.

    Parameters
    ----------
    path : str or Path
        The table, or its URI.
    allow_outside : bool
        Take images that lie outside the table's folder, by their path or by a link. URIs of other file systems are
        taken in any case.
    """

    source: Literal["table"] = "table"

    @property
    def folder(self) -> str:
        """The folder of the table."""
        return folder_of(absolute(self.path))

    def entries(self) -> list[ImageEntry]:
        """Return the listed images in the order of the table."""
        return read_entries(self.path, allow_outside=self.allow_outside)

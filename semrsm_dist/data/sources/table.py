"""Images listed in a table."""

from __future__ import annotations

from typing import Literal

from semrsm_dist.data.entries import ImageEntry
from semrsm_dist.data.files import FileSource
from semrsm_dist.data.table import read_entries


class TableImages(FileSource):
    """Images listed in a table, in the order of its rows.

    The table is a Parquet file (``.parquet``, ``.pq``), text with commas, semicolons or tabs between its columns
    (``.csv``, ``.tsv``), or one JSON object per line (``.jsonl``); text is UTF-8. A ``.txt`` file has one path per
    line, which is also the image's id, and no labels.

    Columns: `image_id`, unique; `uri`, a path or any URI that pyarrow's file systems open, relative ones
    being relative to the table's folder; `labels`, a list column, a list written as JSON, or text with ``|``
    between the labels, empty for none; and, optionally, `group`. Further columns are ignored.

    Parameters
    ----------
    path : str or Path
        The table, or its URI.

    Raises
    ------
    InputError
        From `entries`, if the table cannot be read, lacks a column, is empty, or repeats an id.
    """

    source: Literal["table"] = "table"

    def entries(self) -> list[ImageEntry]:
        """Return the listed images in the order of the table."""
        return read_entries(self.path)

"""The experiments of a run: the tables and figures in its folder `evaluation`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from semrsm_dist.data.opening import require_file
from semrsm_dist.errors import first_line

METADATA = b"semrsm"
"""Key of the settings, as JSON, in the metadata of an experiment's table."""

MOST_ROWS = 200
"""Of a table that are shown."""


@dataclass(frozen=True)
class Evaluation:
    """What an experiment left: its table, settings and figure, or what is wrong with the table."""

    name: str
    columns: list[str]
    rows: list[list[Any]]
    n_rows: int
    settings: dict[str, Any]
    figure: bytes | None
    problem: str = ""


def read_evaluations(folder: Path) -> Iterator[Evaluation]:
    """Yield the experiments in a folder by name; one whose table cannot be read says why."""
    for path in sorted(folder.glob("*.parquet")):
        picture = path.with_suffix(".png")
        figure = picture.read_bytes() if picture.is_file() else None
        try:
            require_file(path)
            table = pyarrow.parquet.read_table(path)
            facts = json.loads((table.schema.metadata or {}).get(METADATA, b"{}"))
        except (OSError, ValueError, pa.ArrowException) as error:
            yield Evaluation(
                path.stem, [], [], 0, {}, figure, f"{path}: cannot be read ({first_line(error)})"
            )
            continue
        shown = table.slice(0, MOST_ROWS)
        rows = [list(row.values()) for row in shown.to_pylist()]
        settings = {name: value for name, value in facts.items() if name != "config"}
        yield Evaluation(path.stem, table.column_names, rows, table.num_rows, settings, figure)

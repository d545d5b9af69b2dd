"""What an experiment finds: a tidy table, a figure, and the words that go with them."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from semrsm_dist.plot.figures import new_figure
from semrsm_dist.store.npy import replacing
from semrsm_dist.store.paths import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CHARACTERS = 14  # of the title, on an inch

METADATA = b"semrsm"
"""Key of the settings, as JSON, in the metadata of the Parquet file."""


@dataclass(frozen=True, eq=False)
class Findings:
    """What the computation of an experiment returns.

    Attributes
    ----------
    table
        Tidy: one row a measured quantity, columns for what it depends on, counts and seeds included.
    draw
        Draws the table into an empty figure.
    text
        For people: the main numbers and what was left out.
    settings
        What else the numbers depend on, beside the configuration and the parameters, as JSON values.
    """

    table: pd.DataFrame
    draw: Callable[[Figure], None]
    text: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence(Findings):
    """The findings of one experiment, by its name; `settings` has the configuration and the parameters too.

    `about` says what the similarities are of, in a line: model, weights, matcher, classes of images.
    """

    experiment: str = ""
    about: str = ""

    def save(self, folder: Path) -> list[Path]:
        """Write the table (settings and words in the file's metadata) and the figure, each whole or not at all.

        Returns
        -------
        list of Path
            The Parquet file and the PNG file, named after the experiment.

        Raises
        ------
        StorageError
            If they cannot be written.
        """
        table, figure = (folder / f"{self.experiment}{suffix}" for suffix in (".parquet", ".png"))
        with writing(folder):
            for path, write in ((table, self._write_table), (figure, self._write_figure)):
                with replacing(path) as partial:
                    write(partial)
        return [table, figure]

    def _write_table(self, path: Path) -> None:
        import pyarrow as pa  # noqa: PLC0415 - needed here alone
        import pyarrow.parquet  # noqa: PLC0415

        facts = {
            **self.settings,
            "about": self.about,
            "text": self.text,
            "version": metadata.version("semrsm-dist"),
        }
        table = pa.Table.from_pandas(self.table, preserve_index=False)
        table = table.replace_schema_metadata(
            {**(table.schema.metadata or {}), METADATA: json.dumps(facts).encode()}
        )
        pyarrow.parquet.write_table(table, path, compression="zstd")

    def _write_figure(self, path: Path) -> None:
        figure = new_figure(layout="constrained")
        self.draw(figure)
        title = textwrap.fill(self.about, int(_CHARACTERS * figure.get_size_inches()[0]))
        figure.suptitle(title, fontsize=8, parse_math=False)
        figure.savefig(path, dpi=110, format="png")


def note_sample(table: pd.DataFrame) -> list[str]:
    """Return a note if measures of agreement by ranks are of a sample of the pairs (see `evaluation.correlation`)."""
    by_ranks = table["measure"].isin(["spearman", "kendall"])
    n_ranked = table.loc[by_ranks, "n_pairs"].max()
    n_pairs = table.loc[table["measure"] == "pearson", "n_pairs"].max()
    if not n_ranked < n_pairs:
        return []
    sample = f"a random sample of {n_ranked} of {n_pairs} pairs"
    return [f"rank correlations: of {sample}, standard error at most {math.sqrt(2 / n_ranked):.1g}"]

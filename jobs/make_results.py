"""Write the results book, docs/results, from the tables beside it, so that no number in it is typed by hand.

    python jobs/make_results.py --take FOLDER   # tables and figures of the runs below FOLDER, as far as they are there
    python jobs/make_results.py                 # the pages, from jobs/results/*.md

A template is Markdown with `{{ ... }}` for what comes from the tables:

- `{{ output("voc/retrieval") }}`: the command and what it printed;
- `{{ value("voc/retrieval", "f1", layer="bn2", method="semantic") }}`: a number of the one row with these entries,
  where None stands for an empty cell; `form=".2f"` changes its form;
- `{{ interval(...) }}`: the same with the ends of its interval.

Numbers with decimals that are nevertheless written out must be in the outputs of their page: `find_strangers` returns
the others.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES, BOOK = ROOT / "jobs/results", ROOT / "docs/results"
TABLES = BOOK / "tables"

RUNS = {
    "voc": "runs/real/voc",
    "imagenet": "runs/real/imagenet",
    "resolution": "runs/real/resolution",
    "voc-lite1": "runs/real/voc-lite1",
    "voc-lite2": "runs/real/voc-lite2",
    "imagenet-lite2": "runs/real/imagenet-lite2",
    "held-out": "runs/real/held-out",
    "held-out-tuned": "runs/real/held-out-tuned",
    "digits": "runs/digits",
}
"""Where the runs of each set of images are, below the folder that tables are taken from."""

COMMANDS = {
    "voc/retrieval": "retrieval jobs/real/voc.yaml --with transport=0.1 --with near_duplicates=0.68",
    "voc/objects": "objects jobs/real/voc.yaml --with boxes=photos/voc/boxes.csv --with near_duplicates=0.68",
    "voc/improvements": "improvements jobs/real/voc.yaml",
    "voc/kernels": "kernels jobs/real/voc.yaml",
    "voc/translation": "translation jobs/real/voc.yaml --with images=40 --with shifts=[0.0,0.125,0.3125]",
    "imagenet/output-similarity": "output-similarity jobs/real/imagenet.yaml",
    "voc/layers-lite2": "layers jobs/real/voc.yaml --set 'model.layers=[blocks.6, bn2]' --with variants=[] "
    "--with other=jobs/real/voc-lite2.yaml --out runs/real/voc/evaluation/layers-lite2",
    "voc/layers-pruned": "layers jobs/real/voc.yaml --set 'model.layers=[blocks.6, bn2]' "
    "--with variants=[pruned-0.5,pruned-0.9] --out runs/real/voc/evaluation/layers-pruned",
    "voc/layers-random": "layers jobs/real/voc.yaml --set 'model.layers=[blocks.6, bn2]' --with variants=[] "
    "--with other=jobs/real/voc-random.yaml --out runs/real/voc/evaluation/layers-random",
    "voc/retrieval-areas": "retrieval jobs/real/voc.yaml --set 'model.layers=[blocks.6, bn2]' "
    "--set data.path=runs/real/voc-areas.csv --set data.allow_outside=true --with weights=area "
    "--out runs/real/voc/evaluation/retrieval-areas",
    "voc/layers-lite1": "layers jobs/real/voc.yaml --set 'model.layers=[blocks.6, bn2]' --with variants=[] "
    "--with other=jobs/real/voc-lite1.yaml --out runs/real/voc/evaluation/layers-lite1",
    "voc-lite1/retrieval": "retrieval jobs/real/voc-lite1.yaml",
    "voc-lite2/retrieval": "retrieval jobs/real/voc-lite2.yaml",
    "voc-lite2/objects": "objects jobs/real/voc-lite2.yaml --with boxes=photos/voc/boxes.csv",
    "voc-lite2/improvements": "improvements jobs/real/voc-lite2.yaml",
    "imagenet-lite2/output-similarity": "output-similarity jobs/real/imagenet.yaml --set run=runs/real/imagenet-lite2 "
    "--set model.name=tf_efficientnet_lite2 --set 'model.layers=[blocks.6, bn2]'",
    "held-out/retrieval": "retrieval jobs/real/held-out.yaml",
    "held-out-tuned/retrieval": "retrieval jobs/real/held-out-tuned.yaml",
    "held-out/layers": "layers jobs/real/held-out.yaml --with variants=[pruned-0.5,pruned-0.9] "
    "--with other=jobs/real/held-out-tuned.yaml",
    "resolution/approximation": "approximation jobs/real/resolution.yaml --with n_rows=2 --with n_columns=6",
    "digits/retrieval": "retrieval",
    "digits/improvements": "improvements --set 'model.layers=[layer3, layer4]'",
    "digits/translation": "translation",
    "digits/conditions": "conditions",
    "digits/output-similarity": "output-similarity",
    "digits/layers": "layers",
    "digits/kernels": "kernels",
    "digits/approximation": "approximation",
}
"""What computes each table, after `semrsm evaluate`."""

NUMBER = re.compile(r"(?<![\w.@-])[+-]?\d*\.\d+(?![\w-])")
"""A number with decimals that stands alone. Whole numbers describe data, such as counts and sizes in pixels."""

CODE = re.compile(r"```.*?```|`[^`]*`|\{\{.*?\}\}|\{%.*?%\}|\]\([^)]*\)", re.DOTALL)


class Tables:
    """The tables of the book, and which of them a page has used."""

    def __init__(self, folder: Path = TABLES) -> None:
        self._folder = folder
        self.used: dict[str, str] = {}

    def facts(self, name: str) -> dict[str, Any]:
        """Return the words, the constant columns and what else is known of a table."""
        found: dict[str, Any] = json.loads((self._folder / f"{name}.json").read_text())
        self.used[name] = found["text"]
        return found

    def read(self, name: str) -> pd.DataFrame:
        """Return a table, its constant columns included."""
        table = pd.read_csv(self._folder / f"{name}.csv")
        return table.assign(**self.facts(name)["constant"])

    def row(self, name: str, entries: dict[str, Any]) -> pd.Series[Any]:
        """Return the only row with these entries.

        Raises
        ------
        LookupError
            If there is none, or more than one.
        """
        table = self.read(name)
        for column, wanted in entries.items():
            table = table[table[column].isna() if wanted is None else table[column] == wanted]
        if len(table) != 1:
            raise LookupError(f"{name}: {len(table)} rows with {entries}, not one")
        return table.iloc[0]

    def output(self, name: str) -> str:
        """Return the command of a table and what it printed."""
        command = f"semrsm evaluate {COMMANDS[name]}"
        return f"```\n{command}\n```\n\n```\n{self.facts(name)['text']}\n```"

    def value(self, name: str, column: str, *, form: str = ".3f", **entries: Any) -> str:
        """Return a number of a row."""
        return f"{self.row(name, entries)[column]:{form}}"

    def interval(self, name: str, column: str = "value", *, form: str = "+.3f", **entries: Any) -> str:
        """Return a number of a row with its interval."""
        row = self.row(name, entries)
        return f"{row[column]:{form}} [{row['low']:{form}}, {row['high']:{form}}]"


def render(template: Path, tables: Tables) -> str:
    """Return a page."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.globals.update(
        output=tables.output, value=tables.value, interval=tables.interval, rows=tables.read
    )
    return environment.from_string(template.read_text()).render()


def list_pages(templates: Path = TEMPLATES, book: Path = BOOK) -> Iterator[tuple[Path, Path]]:
    """Yield each template and its page."""
    for template in sorted(templates.glob("*.md")):
        yield template, book / template.name


def find_strangers(template: str, outputs: str) -> list[str]:
    """Return the numbers written in a template that are in none of the outputs, rounded or as a percentage."""
    known = [float(number) for number in re.findall(r"\d*\.\d+|\d+", outputs)]
    strangers = []
    for number in NUMBER.findall(CODE.sub("", template)):
        value, nearest = abs(float(number)), 0.51 * 10.0 ** -len(number.partition(".")[2])
        if not any(abs(scale * one - value) < nearest for one in known for scale in (1, 100)):
            strangers.append(number)
    return strangers


def take(folder: Path) -> list[str]:
    """Copy tables and figures of runs below a folder into the book; return the names of those that are there."""
    import pyarrow.parquet  # noqa: PLC0415 - for taking alone

    taken = []
    for name, command in COMMANDS.items():
        images, _, experiment = name.partition("/")
        place = folder / RUNS[images] / "evaluation"
        if "--out" in command:
            place, experiment = place / experiment, command.partition(" ")[0]
        source = place / f"{experiment}.parquet"
        if not source.exists():
            continue
        settings = json.loads(pyarrow.parquet.read_schema(source).metadata[b"semrsm"])
        write_table(name, pd.read_parquet(source), settings)
        shutil.copyfile(source.with_suffix(".png"), BOOK / f"{name.replace('/', '-')}.png")
        taken.append(name)
    return taken


def write_table(name: str, table: pd.DataFrame, settings: dict[str, Any], folder: Path = TABLES) -> None:
    """Write a table as text, and beside it what all its rows share and what the experiment said."""
    constant = {
        column: table[column].iloc[0]
        for column in table
        if table[column].nunique(dropna=False) == 1 and table[column].notna().all()
    }
    path = folder / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.drop(columns=list(constant)).to_csv(path, index=False, float_format="%.6g")
    facts = {
        "about": settings["about"],
        "constant": {
            column: getattr(value, "item", lambda v=value: v)() for column, value in constant.items()
        },
        "text": settings["text"],
        "version": settings["version"],
    }
    path.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")


def main() -> None:
    """Take tables, or write pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--take", type=Path, metavar="FOLDER", help="take the tables of the runs below this folder"
    )
    options = parser.parse_args()
    if options.take is not None:
        print("\n".join(take(options.take)))
        return
    for template, page in list_pages():
        page.write_text(render(template, Tables()))


if __name__ == "__main__":
    main()

"""Similarity matrices as NumPy, text, MATLAB and Parquet files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from semrsm_dist.errors import LimitError
from semrsm_dist.machine import available_memory
from semrsm_dist.results.export.selection import (
    SIMILARITY,
    ChosenMatrix,
    Selection,
    group_by,
    image_columns,
    write_facts,
    write_ids,
)
from semrsm_dist.results.reader import RunReader
from semrsm_dist.store.npy import replacing, save_npy

LARGEST_MAT = 2**31 - 1
"""Bytes of a variable that MATLAB reads from files of versions before 7.3."""

IN_MEMORY = 2.5
"""Copies of a matrix that writing a MATLAB file takes."""


def write_npy(selection: Selection, folder: Path) -> list[Path]:
    """Write `<layer>.<kind>.<kernel>.npy`, (N, M) float64, with ids and labels of rows and columns as text."""
    written = []
    for chosen in selection.matrices():
        path = folder / f"{chosen.name}.npy"
        with replacing(path) as partial, partial.open("wb") as file:
            save_npy(file, chosen.matrix.shape, "<f8", chosen.rows())
        written += [path, write_facts(path, chosen.describe(SIMILARITY))]
    return written + write_ids(selection.run, folder)


def write_csv(selection: Selection, folder: Path) -> list[Path]:
    """Write `<layer>.<kind>.<kernel>.csv`: ids in the first row and column, and numbers to the last digit."""
    run, written = selection.run, []
    names = {side: image_columns(run, side)["image"] for side in {run.record.row_side, "images"}}
    for chosen in selection.matrices():
        path, rows = folder / f"{chosen.name}.csv", iter(names[run.record.row_side])
        with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["", *names["images"]])
            for block in chosen.rows():
                table.writerows([next(rows), *values] for values in block.tolist())
        written += [path, write_facts(path, chosen.describe(SIMILARITY))]
    return written + write_ids(run, folder)


def write_mat(selection: Selection, folder: Path) -> list[Path]:
    """Write `<layer>.<kind>.<kernel>.mat`: `similarity`, ids and labels as cell arrays, and what it is."""
    from scipy.io import savemat  # noqa: PLC0415 - needed here alone

    run, matrices, written = selection.run, selection.matrices(), []
    _require_small([chosen.matrix.shape for chosen in matrices])
    for chosen in matrices:
        facts = {
            name: np.nan if value is None else value for name, value in chosen.describe(SIMILARITY).items()
        }
        content: dict[str, Any] = {**facts, "similarity": np.concatenate(list(chosen.rows()))}
        for suffix, side in (("i", run.record.row_side), ("j", "images")):
            for column, values in image_columns(run, side).items():
                content[f"{column}_{suffix}"] = np.array(values, object)[:, None]
        written.append(folder / f"{chosen.name}.mat")
        with replacing(written[-1]) as partial:
            savemat(partial, content, appendmat=False, do_compression=True, long_field_names=True)
    return written


def _require_small(shapes: list[tuple[int, int]]) -> None:
    """Refuse matrices that MATLAB's format or this machine's memory does not take, before anything is written."""
    for n_rows, n_columns in shapes:
        n_bytes = 8 * n_rows * n_columns
        if n_bytes > LARGEST_MAT:
            raise LimitError(
                f"a matrix of {n_rows:,} x {n_columns:,} takes {n_bytes / 2**30:.1f} GiB, but MATLAB files take at "
                "most 2 GiB for each: nothing was written; choose --to npy, csv, parquet or zarr"
            )
        needed, memory = IN_MEMORY * n_bytes, available_memory()
        if needed > memory:
            raise LimitError(
                f"a MATLAB file of {n_rows:,} x {n_columns:,} similarities takes {needed / 2**30:.1f} GiB of memory to "
                f"write, but there are {memory / 2**30:.1f} GiB: nothing was written; choose --to npy, csv, parquet or "
                "zarr"
            )


def write_parquet(selection: Selection, folder: Path) -> list[Path]:
    """Write `<layer>.<kernel>.pairs.parquet`, with a column for each kind, and the tables of images.

    There is a row for each pair, in a symmetric matrix for each pair of different images: `image_i`, `image_j`, the
    similarity of each kind and, with the semantic one, `gap`.
    """
    run = selection.run
    together = group_by(selection.matrices(), lambda chosen: f"{chosen.layer}.{chosen.kernel}")
    names = {
        side: pa.array(image_columns(run, side)["image"], pa.string())
        for side in {run.record.row_side, "images"}
    }
    written = []
    for name, kinds in together.items():
        written.append(folder / f"{name}.pairs.parquet")
        columns = [chosen.kind for chosen in kinds] + ["gap"] * any(one.kind == "semantic" for one in kinds)
        ids = pa.dictionary(pa.int32(), pa.string())
        schema = pa.schema({"image_i": ids, "image_j": ids} | dict.fromkeys(columns, pa.float64()))
        facts = kinds[0].describe(SIMILARITY) | {"kind": [chosen.kind for chosen in kinds]}
        schema = schema.with_metadata({"semrsm": json.dumps(facts)})
        write_table(written[-1], schema, _pair_rows(run, kinds, names, schema))
    return written + [_write_images(run, side, folder) for side in run.record.sides]


def _pair_rows(
    run: RunReader, kinds: list[ChosenMatrix], names: dict[str, pa.Array], schema: pa.Schema
) -> Iterator[pa.Table]:
    layout = kinds[0].matrix.layer.layout
    size, sides = kinds[0].matrix.layer.chunks.tile_size, (names[run.record.row_side], names["images"])
    for start in range(0, layout.n_rows, size):
        rows = slice(start, min(start + size, layout.n_rows))
        columns = slice(start if layout.symmetric else 0, layout.n_columns)
        i, j = np.arange(rows.start, rows.stop)[:, None], np.arange(columns.start, columns.stop)
        wanted = i < j if layout.symmetric else np.ones((i.size, j.size), bool)
        indices = (np.broadcast_to(each, wanted.shape)[wanted].astype(np.int32) for each in (i, j))
        values: list[NDArray[np.float64]] = [chosen.matrix.read((rows, columns))[wanted] for chosen in kinds]
        values += [
            chosen.matrix.read_gap((rows, columns))[wanted] for chosen in kinds if chosen.kind == "semantic"
        ]
        ids = [pa.DictionaryArray.from_arrays(at, side) for at, side in zip(indices, sides, strict=True)]
        yield pa.Table.from_arrays([*ids, *map(pa.array, values)], schema=schema)


def _write_images(run: RunReader, side: str, folder: Path) -> Path:
    """Write a table of a side's images: id, URI, labels and group."""
    manifest = run.manifest(side)
    table = pa.table(
        {
            "image": pa.array(manifest.image_ids(), pa.string()),
            "uri": pa.array([entry.uri for entry in manifest.readable], pa.string()),
            "labels": pa.array(map(list, manifest.labels()), pa.list_(pa.string())),
            "group": pa.array(manifest.groups(), pa.string()),
        }
    )
    path = folder / f"{side}.parquet"
    write_table(path, table.schema, iter([table]))
    return path


def write_table(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    """Write a Parquet file, table by table."""
    with (
        replacing(path) as partial,
        pyarrow.parquet.ParquetWriter(partial, schema, compression="zstd") as writer,
    ):
        for table in tables:
            writer.write_table(table)

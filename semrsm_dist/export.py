"""Similarity matrices for other programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.results import Run
from semrsm_dist.store.chunks import writing


def export_npy(
    run: Run,
    folder: str | Path,
    *,
    layers: Sequence[str] | None = None,
    kernel: str = "cosine",
    kind: str = "semantic",
) -> list[Path]:
    """Write one `.npy` file a layer, and the image ids of its rows and columns.

    Parameters
    ----------
    run
        The run.
    folder
        Where to; made if missing.
    layers
        Which layers; if None, all that the run's last session was asked for.
    kernel, kind
        As in `Run.similarity`.

    Returns
    -------
    list of Path
        The files written: `<layer>.<kind>.<kernel>.npy`, (N, M) float64, then `image_i.txt` and `image_j.txt`
        with one id a line.

    Raises
    ------
    ConfigError, IncompleteError
        As `Run.similarity`.
    StorageError
        If a file cannot be written.
    """
    folder = Path(folder)
    chosen = run.asked_layers if layers is None else list(layers)
    # All of them before the first is written, so that an unknown or unfinished layer leaves nothing behind.
    readers = [run.similarity_rows(layer, kernel, kind) for layer in chosen]
    sides = {"image_i": "images" if run.is_symmetric else "queries", "image_j": "images"}
    shape = (run.record["counts"][sides["image_i"]], run.record["counts"]["images"])
    written: list[Path] = []
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for layer, read_rows in zip(chosen, readers, strict=True):
            written.append(folder / f"{layer}.{kind}.{kernel}.npy")
            _write_npy(written[-1], shape, read_rows, run.chunk_side(layer))
        for dimension, side in sides.items():
            written.append(folder / f"{dimension}.txt")
            lines = "".join(f"{_one_line(name)}\n" for name in run.manifest(side).image_ids())
            written[-1].write_text(lines, encoding="utf-8")
    return written


def _write_npy(
    path: Path, shape: tuple[int, int], read_rows: Callable[[slice], NDArray[np.float64]], rows_at_once: int
) -> None:
    """Write a matrix by rows, and under its name only when it is whole.

    Not through a memory map: on a full disk that ends the process with a bus error.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            header = {"descr": "<f8", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, shape[0], rows_at_once):
                rows = slice(start, min(start + rows_at_once, shape[0]))
                file.write(np.ascontiguousarray(read_rows(rows), dtype="<f8").data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _one_line(image_id: str) -> str:
    """Return an id with line breaks written out, so that the lines of the file stay the rows of the matrix."""
    return image_id.replace("\r", "\\r").replace("\n", "\\n")

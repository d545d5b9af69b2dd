"""Similarity matrices for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from semrsm_dist.errors import StorageError
from semrsm_dist.results import Run

ROWS_AT_ONCE = 512


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
        Which layers; all if None.
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
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for layer in run.layers if layers is None else layers:
            matrix = run.similarity(layer, kernel, kind)
            path = folder / f"{layer}.{kind}.{kernel}.npy"
            target = np.lib.format.open_memmap(path, mode="w+", dtype=np.float64, shape=matrix.shape)
            for start in range(0, matrix.shape[0], ROWS_AT_ONCE):
                target[start : start + ROWS_AT_ONCE] = matrix[start : start + ROWS_AT_ONCE].values
            target.flush()
            written.append(path)
        for dimension, side in (
            ("image_i", "images" if run.is_symmetric else "queries"),
            ("image_j", "images"),
        ):
            path = folder / f"{dimension}.txt"
            path.write_text("".join(f"{name}\n" for name in run.manifest(side).image_ids()), encoding="utf-8")
            written.append(path)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"{folder}: cannot be written ({error.strerror}); make room or choose another folder with --out"
        ) from error
    return written

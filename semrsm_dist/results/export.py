"""Similarity matrices for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from semrsm_dist.errors import StorageError
from semrsm_dist.results.run import Run
from semrsm_dist.store.npy import write_npy
from semrsm_dist.store.record import Side


def export_npy(
    run: Run,
    folder: str | Path,
    *,
    layers: Sequence[str] | None = None,
    kernel: str = "cosine",
    kind: str = "semantic",
) -> list[Path]:
    """Write one `.npy` file per layer, and the image ids of its rows and columns.

    Parameters
    ----------
    run
        The run.
    folder
        Output folder; created if missing.
    layers
        Which layers; None means all that the run's last session requested.
    kernel, kind
        As in `Run.similarity`.

    Returns
    -------
    list of Path
        The files written: `<layer>.<kind>.<kernel>.npy`, (N, M) float64, then `image_i.txt` and `image_j.txt`
        with one id per line.

    Raises
    ------
    ConfigError, IncompleteError
        As `Run.similarity`.
    StorageError
        If a file cannot be written.
    """
    folder = Path(folder)
    chosen = run.requested_layers if layers is None else list(layers)
    # Open all before the first is written, so that an unknown or unfinished layer leaves nothing behind.
    readers = [run.similarity_rows(layer, kernel, kind) for layer in chosen]
    sides: dict[str, Side] = {"image_i": run.record.row_side, "image_j": "images"}
    shape = (run.record.counts[run.record.row_side], run.record.counts["images"])
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for layer, read_rows in zip(chosen, readers, strict=True):
            written.append(folder / f"{layer}.{kind}.{kernel}.npy")
            side = run.chunk_size(layer)
            rows = (slice(start, min(start + side, shape[0])) for start in range(0, shape[0], side))
            write_npy(written[-1], shape, "<f8", map(read_rows, rows))
        for dimension, images in sides.items():
            written.append(folder / f"{dimension}.txt")
            lines = "".join(f"{_one_line(name)}\n" for name in run.manifest(images).image_ids())
            written[-1].write_text(lines, encoding="utf-8")
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be written ({error.strerror or error}): make room or choose another folder with --out"
        ) from error
    return written


def _one_line(image_id: str) -> str:
    """Return an id with line breaks escaped, so that each line of the file is one row of the matrix."""
    return image_id.replace("\r", "\\r").replace("\n", "\\n")

"""Matrices for other programs: as NumPy files, or as plain Zarr."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from semrsm_dist.errors import StorageError
from semrsm_dist.results.graph import write_ids
from semrsm_dist.results.matrices import DerivedMatrix, LayerMatrices
from semrsm_dist.results.run import Run
from semrsm_dist.store.chunks import writing
from semrsm_dist.store.matrices import MatrixStore
from semrsm_dist.store.npy import write_npy
from semrsm_dist.store.tiles import KINDS, QUANTITIES


def export_npy(
    run: Run,
    folder: str | Path,
    *,
    layers: Sequence[str] | None = None,
    kernels: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
) -> list[Path]:
    """Write `.npy` files of a run's similarity matrices, and the ids and labels of their rows and columns.

    Parameters
    ----------
    run
        The run.
    folder
        Output folder; created if missing.
    layers
        Which layers; None means all that the run's last session requested.
    kernels
        Which kernels; None means those that the run's configuration names.
    kinds
        ``semantic``, ``spatio-semantic``; None means both.

    Returns
    -------
    list of Path
        The files written: `<layer>.<kind>.<kernel>.npy`, (N, M) float64; `image_i.txt` and `image_j.txt` with one id
        per line; and, where images have labels, `labels_i.txt` and `labels_j.txt` with those of an image joined by |
        (as a JSON list where a label contains |).

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
    names = run.kernels if kernels is None else kernels
    readers = {
        f"{layer}.{kind}.{kernel}": (run.chunk_size(layer), run.similarity_rows(layer, kernel, kind))
        for layer in chosen
        for kind in kinds or KINDS
        for kernel in names
    }
    shape = (run.record.counts[run.record.row_side], run.record.counts["images"])
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, (size, read_rows) in readers.items():
            written.append(folder / f"{name}.npy")
            rows = (slice(start, min(start + size, shape[0])) for start in range(0, shape[0], size))
            write_npy(written[-1], shape, "<f8", map(read_rows, rows))
        written += write_ids(run, folder)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be written ({error.strerror or error}): make room or choose another folder with --out"
        ) from error
    return written


def export_zarr(
    run: Run,
    folder: str | Path,
    *,
    layers: Sequence[str] | None = None,
    kernels: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
) -> list[Path]:
    """Write a run's matrices as plain Zarr, with the coordinates of rows and columns, for any reader of Zarr.

    Parameters
    ----------
    run, folder, layers, kernels, kinds
        As in `export_npy`.

    Returns
    -------
    list of Path
        The groups written, `rsm.zarr/<layer>`, each with `matched`, `identity`, `gap` and `<kind>_<kernel>`: (N, M)
        numbers in the type of the run's tiles.

    Raises
    ------
    ConfigError, IncompleteError, StorageError
        As `export_npy`.
    """
    names = run.kernels if kernels is None else kernels
    chosen = {
        layer: [run.kernel_matrix(layer, kernel, kind) for kernel in names for kind in kinds or KINDS]
        for layer in (run.requested_layers if layers is None else layers)
    }
    folder, groups = Path(folder), []
    for layer, derived in chosen.items():
        matrices, store = run.matrices(layer), MatrixStore(folder / "rsm.zarr", layer)
        every = [*map(matrices.matrix, QUANTITIES), *derived]
        make_matrices(store, matrices, every, run.record.id_of(layer))
        with writing(store.group):
            for chunk in matrices.chunks.tiles():
                for matrix in every:
                    write_chunk(store, matrix, chunk)
        store.finish(matrices.store.coordinates(), {"layer": layer}, run.record.id_of(layer))
        groups.append(folder / "rsm.zarr" / layer)
    return groups


def make_matrices(
    store: MatrixStore, layer: LayerMatrices, matrices: Sequence[DerivedMatrix], run: str
) -> None:
    """Make empty matrices, labelled with the id `run`, to be written by chunks in the type of the layer's tiles."""
    attributes = {matrix.name: matrix.attributes for matrix in matrices}
    shape = (layer.layout.n_rows, layer.layout.n_columns)
    store.make(attributes, shape, layer.chunks.tile_size, str(layer.store.dtype), run)


def write_chunk(store: MatrixStore, matrix: DerivedMatrix, chunk: tuple[int, int]) -> None:
    """Write a chunk of a matrix, and its mirror image in a symmetric one."""
    row, column = chunk
    layout = matrix.layer.chunks
    values = matrix.read((layout.rows(row), layout.columns(column)))
    store.write(matrix.name, chunk, values)
    if layout.symmetric and row != column:
        store.write(matrix.name, (column, row), values.T)

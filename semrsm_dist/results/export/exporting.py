"""Writing what a run has for other programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from semrsm_dist.errors import ConfigError, StorageError, require_known
from semrsm_dist.results.export import OF_MATRICES, OF_NEIGHBOURS
from semrsm_dist.results.export.dissimilarities import write_mne_rsa, write_rsatoolbox
from semrsm_dist.results.export.graph import write_atlas, write_csr, write_edges
from semrsm_dist.results.export.selection import Selection
from semrsm_dist.results.export.tables import write_csv, write_mat, write_npy, write_parquet
from semrsm_dist.results.export.whole_zarr import write_zarr
from semrsm_dist.results.reader import RunReader

WRITERS: dict[str, Callable[[Selection, Path], list[Path]]] = {
    "npy": write_npy,
    "csv": write_csv,
    "mat": write_mat,
    "parquet": write_parquet,
    "zarr": write_zarr,
    "rsatoolbox": write_rsatoolbox,
    "mne-rsa": write_mne_rsa,
    "edges": write_edges,
    "csr": write_csr,
    "atlas": write_atlas,
}


def export(
    run: RunReader,
    to: str = "npy",
    folder: str | Path | None = None,
    *,
    layers: Sequence[str] | None = None,
    kernels: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
) -> list[Path]:
    """Write what a run has for other programs; see `Run.export`."""
    require_known("format", to, WRITERS)
    path = run.directory.path
    if (to in OF_NEIGHBOURS) != (run.record.neighbours is not None):
        keeps, fitting = (
            ("matrices", OF_MATRICES) if run.record.neighbours is None else ("neighbours", OF_NEIGHBOURS)
        )
        raise ConfigError(
            f"{path}: this run keeps {keeps}, which are exported as {', '.join(fitting)}, not as {to}: choose one, "
            f"as in --to {next(iter(fitting))}"
        )
    if to in OF_NEIGHBOURS and kinds:
        kind = kinds if isinstance(kinds, str) else kinds[0]
        raise ConfigError(f"kind {kind}: neighbours are semantic; leave it out with {to}")
    if folder is None:
        if not isinstance(path, Path):
            raise ConfigError(
                f"{path}: files are not exported into an object store: choose a folder with --out"
            )
        folder = path / "export"
    folder = Path(folder)
    try:
        return WRITERS[to](Selection(run, layers, kernels, kinds), folder)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be written ({error.strerror or error}): make room or choose another folder with --out"
        ) from error

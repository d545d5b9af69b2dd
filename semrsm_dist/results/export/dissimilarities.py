"""Dissimilarities, 1 minus the similarity, for rsatoolbox and MNE-RSA.

Both take a symmetric matrix with zeros on its diagonal as the entries above it, row after row. Of a kernel k with
k(z, z) = 1, 1 - k is half of its squared distance: for cosine it is from 0 to 2, for rbf from 0 to 1. An inner product
has no such dissimilarity: how similar an image is to itself depends on its norm.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.errors import ConfigError, LimitError
from semrsm_dist.machine import available_memory
from semrsm_dist.results.export.selection import (
    DISSIMILARITY,
    ChosenMatrix,
    Selection,
    describe_matching,
    group_by,
    image_columns,
    write_facts,
    write_ids,
)
from semrsm_dist.results.reader import RunReader
from semrsm_dist.store.npy import replacing, save_npy

if TYPE_CHECKING:
    from rsatoolbox.rdm.rdms import RDMs

log = logging.getLogger(__name__)

NOT_LINEAR = (
    "inner products have no dissimilarity, because how similar an image is to itself depends on its norm"
)

OWN = ("quantity", "measure", "layer", "kind", "sigma", "sigma_error")
"""Descriptors of a single matrix; all others are of a run and kernel."""


def write_mne_rsa(selection: Selection, folder: Path) -> list[Path]:
    """Write `<layer>.<kind>.<kernel>.rdm.npy`, the condensed dissimilarities (N (N - 1) / 2,) float64."""
    written = []
    for chosen in _open(selection):
        path, n_images = folder / f"{chosen.name}.rdm.npy", chosen.matrix.shape[0]
        with replacing(path) as partial, partial.open("wb") as file:
            save_npy(file, (n_images * (n_images - 1) // 2,), "<f8", _dissimilarities(chosen))
        written += [path, write_facts(path, chosen.describe(DISSIMILARITY))]
    return written + write_ids(selection.run, folder)


def write_rsatoolbox(selection: Selection, folder: Path) -> list[Path]:
    """Write `<kernel>.rdms.hdf5`, which `rsatoolbox.rdm.load_rdm` reads: an RDM for each layer and kind.

    The file is written as rsatoolbox does, but part by part. What it reads as text is ASCII alone; other characters are
    written as Python escapes.
    """
    if find_spec("h5py") is None:
        raise ConfigError(
            "rsatoolbox's files need h5py, which is not installed: pip install h5py, or rsatoolbox"
        )
    h5py, written = importlib.import_module("h5py"), []
    for kernel, matrices in group_by(_open(selection), attrgetter("kernel")).items():
        written.append(folder / f"{kernel}.rdms.hdf5")
        content = _describe_rdms(selection.run, matrices)
        n_images = matrices[0].matrix.shape[0]
        with replacing(written[-1]) as partial, h5py.File(partial, "w") as file:
            file.attrs["dissimilarity_measure"] = content.pop("dissimilarity_measure")
            for name, descriptors in content.items():
                _write_descriptors(file.create_group(name), descriptors)
            shape = len(matrices), n_images * (n_images - 1) // 2
            values = file.create_dataset("dissimilarities", shape, "<f8")
            for row, chosen in enumerate(matrices):
                start = 0
                for part in _dissimilarities(chosen):
                    values[row, start : start + part.size] = part
                    start += part.size
    return written


def make_rdms(selection: Selection) -> RDMs:
    """Return `RDMs` of rsatoolbox of one kernel, in memory; see `Run.to_rsatoolbox`."""
    matrices = _open(selection)
    try:
        rdm = importlib.import_module("rsatoolbox.rdm")
    except ImportError as error:
        raise ConfigError(
            f"rsatoolbox cannot be used: {error}; install it: pip install rsatoolbox"
        ) from error
    _require_memory(len(matrices), matrices[0].matrix.shape[0])
    values = np.stack([np.concatenate(list(_dissimilarities(chosen))) for chosen in matrices])
    made: RDMs = rdm.RDMs(values, **_describe_rdms(selection.run, matrices))
    return made


def condense(selection: Selection) -> NDArray[np.float64]:
    """Return the dissimilarities of one matrix in condensed form, (N (N - 1) / 2,)."""
    (chosen,) = _open(selection)
    _require_memory(1, chosen.matrix.shape[0])
    return np.concatenate(list(_dissimilarities(chosen)))


def _open(selection: Selection) -> list[ChosenMatrix]:
    """Return the matrices that have dissimilarities.

    Raises ConfigError for a rectangular run, or if inner products were chosen, or are all that there is.
    """
    run, kernels = selection.run, selection.kernels
    if not run.is_symmetric:
        raise ConfigError(
            f"{run.directory.path}: rows are queries and columns are images, but dissimilarity matrices compare images "
            "with each other: export npy, csv, mat, parquet or zarr"
        )
    if kernels is None:
        of_run = selection.run_kernels
        kernels = [kernel for kernel in of_run if kernel != "linear"] or of_run
        if len(kernels) < len(of_run):
            log.warning("%s: kernel linear is left out: %s", run.directory.path, NOT_LINEAR)
    if "linear" in kernels:
        raise ConfigError(f"kernel linear: {NOT_LINEAR}: choose the kernel cosine or rbf")
    return replace(selection, kernels=kernels).matrices()


def _dissimilarities(chosen: ChosenMatrix) -> Iterator[NDArray[np.float64]]:
    return (1.0 - similarities for similarities in chosen.pairs())


def _describe_rdms(run: RunReader, matrices: Sequence[ChosenMatrix]) -> dict[str, Any]:
    """Return the descriptors of RDMs of one kernel, as rsatoolbox's class takes them."""
    facts = [chosen.describe(DISSIMILARITY) for chosen in matrices]
    of_rdms = {name: [one[name] for one in facts] for name in OWN if all(name in one for one in facts)}
    columns = image_columns(run, "images")
    if any(groups := run.manifest("images").groups()):
        columns["group"] = [group or "" for group in groups]
    return {
        "dissimilarity_measure": facts[0]["measure"],
        "descriptors": {"kernel": matrices[0].kernel, **describe_matching(run)},
        "rdm_descriptors": of_rdms,
        "pattern_descriptors": columns,
    }


def _write_descriptors(group: Any, descriptors: Mapping[str, Any]) -> None:
    """Write descriptors where rsatoolbox looks for them: one text as an attribute, all else as an array."""
    for name, value in descriptors.items():
        if isinstance(value, str):
            group.attrs[name] = value
        elif value is not None:
            array = np.asarray(value)
            if array.dtype.kind == "U":
                array = np.array([text.encode("ascii", "backslashreplace") for text in value])
            group[name] = array


def _require_memory(n_rdms: int, n_images: int) -> None:
    needed, memory = 2 * 8 * n_rdms * (n_images * (n_images - 1) // 2), available_memory()
    if needed > memory:
        raise LimitError(
            f"{n_rdms} dissimilarity matrices of {n_images:,} images take {needed / 2**30:.1f} GiB of memory, but "
            f"there are {memory / 2**30:.1f} GiB: choose fewer layers or kinds, or write files with semrsm export"
        )

"""What of a run is exported: matrices or neighbours that are all opened before the first file is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.data.entries import format_labels
from semrsm_dist.errors import ConfigError
from semrsm_dist.results.matrices import DerivedMatrix
from semrsm_dist.results.neighbours import LayerNeighbours
from semrsm_dist.results.reader import RunReader
from semrsm_dist.store.npy import replacing
from semrsm_dist.store.tiles import KINDS

SIMILARITY, DISSIMILARITY = "similarity", "dissimilarity"

_ESCAPED_BREAKS = {
    ord(character): character.encode("unicode_escape").decode()
    for character in "\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"
}
"""All that Python's `str.splitlines` breaks lines at."""


@dataclass(frozen=True)
class ChosenMatrix:
    """A similarity matrix of a layer."""

    run: RunReader
    layer: str
    kind: str
    kernel: str
    matrix: DerivedMatrix

    @property
    def name(self) -> str:
        """The beginning of the name of its file."""
        return f"{self.layer}.{self.kind}.{self.kernel}"

    def rows(self) -> Iterator[NDArray[np.float64]]:
        """Yield the matrix as blocks of whole rows, which are read well at once."""
        for rows, _ in _blocks(self.matrix):
            yield self.matrix.read((rows, slice(None)))

    def pairs(self, matrix: DerivedMatrix | None = None) -> Iterator[NDArray[np.float64]]:
        """Yield the entries right of the diagonal, row after row, as scipy's `squareform` has them.

        They are those of another `matrix` of the same layer, if it is given.
        """
        matrix = matrix or self.matrix
        for rows, is_right in _blocks(matrix):
            yield matrix.read((rows, slice(rows.start, None)))[is_right]

    def describe(self, quantity: str) -> dict[str, Any]:
        """Return what the numbers are, as JSON values."""
        measure = (
            f"1 - {self.kernel} similarity" if quantity == DISSIMILARITY else f"{self.kernel} similarity"
        )
        widths = {
            name: self.matrix.attributes[name]
            for name in ("sigma", "sigma_error")
            if name in self.matrix.attributes
        }
        return {
            "quantity": quantity,
            "measure": measure,
            "layer": self.layer,
            "kind": self.kind,
            "kernel": self.kernel,
            **widths,
            **describe_matching(self.run),
        }


def group_by(
    matrices: Iterable[ChosenMatrix], key: Callable[[ChosenMatrix], str]
) -> dict[str, list[ChosenMatrix]]:
    """Return matrices by what a key says of each, in their order."""
    together: dict[str, list[ChosenMatrix]] = {}
    for chosen in matrices:
        together.setdefault(key(chosen), []).append(chosen)
    return together


def _blocks(matrix: DerivedMatrix) -> Iterator[tuple[slice, NDArray[np.bool_]]]:
    """Yield rows that are read together, and which entries, from their first column on, are right of the diagonal."""
    (n_rows, n_columns), size = matrix.shape, matrix.layer.chunks.tile_size
    for start in range(0, n_rows, size):
        rows = slice(start, min(start + size, n_rows))
        yield rows, np.arange(n_columns - start) > np.arange(rows.stop - start)[:, None]


@dataclass(frozen=True)
class Selection:
    """Which layers, kernels and kinds of a run are exported."""

    run: RunReader
    layers: Sequence[str] | None = None
    """None means those that the last session requested."""
    kernels: Sequence[str] | None = None
    """None means those of its configuration."""
    kinds: Sequence[str] | None = None
    """None means both."""

    def __post_init__(self) -> None:
        """Take a single name for a list of one, and a repeated one once; raises ConfigError for an empty list."""
        for name in ("layers", "kernels", "kinds"):
            given = getattr(self, name)
            if given is None:
                continue
            names = [given] if isinstance(given, str) else list(dict.fromkeys(given))
            if not names:
                raise ConfigError(
                    f"{name}: an empty list leaves nothing to export: name some, or leave it out"
                )
            object.__setattr__(self, name, names)

    def matrices(self) -> list[ChosenMatrix]:
        """Open all matrices; raises ConfigError or IncompleteError as `Run.similarity` does."""
        return [
            ChosenMatrix(self.run, layer, kind, kernel, self.run.kernel_matrix(layer, kernel, kind))
            for layer in self._layers
            for kind in (KINDS if self.kinds is None else self.kinds)
            for kernel in (self.run_kernels if self.kernels is None else self.kernels)
        ]

    def neighbours(self) -> dict[str, LayerNeighbours]:
        """Open the neighbours of all layers, by the beginning of the names of their files; by default for cosine.

        Raises ConfigError or IncompleteError as `Run.neighbours` does.
        """
        return {
            f"{layer}.{kernel}": self.run.layer_neighbours(layer, kernel)
            for layer in self._layers
            for kernel in (["cosine"] if self.kernels is None else self.kernels)
        }

    @property
    def run_kernels(self) -> Sequence[str]:
        """The kernels of the run's configuration; raises ConfigError if it has none."""
        if not self.run.kernels:
            raise ConfigError(
                f"{self.run.directory.path}: the configuration of this run names no kernels: choose one, as in "
                "--kernel cosine"
            )
        return self.run.kernels

    @property
    def _layers(self) -> Sequence[str]:
        return self.run.requested_layers if self.layers is None else self.layers


def describe_matching(run: RunReader) -> dict[str, Any]:
    """Return the run's name, its matcher and the matcher's parameters, such as the tolerance."""
    matching = {name: value for name, value in run.record.matching.items() if name != "version"}
    return {"run": run.directory.path.name, **matching}


def image_columns(run: RunReader, side: str) -> dict[str, list[str]]:
    """Return the ids of a side's images, and their labels joined by | if there are any."""
    manifest = run.manifest(side)
    columns = {"image": manifest.image_ids(), "labels": list(map(format_labels, manifest.labels()))}
    return {name: values for name, values in columns.items() if any(values)}


def write_ids(run: RunReader, folder: Path) -> list[Path]:
    """Write the ids of rows and columns, and their labels if there are any, one image per line."""
    written = []
    for suffix, side in (("i", run.record.row_side), ("j", "images")):
        for column, values in image_columns(run, side).items():
            written.append(folder / f"{column}_{suffix}.txt")
            lines = "".join(f"{_one_line(value)}\n" for value in values)
            with replacing(written[-1]) as partial:
                partial.write_text(lines, encoding="utf-8")
    return written


def write_facts(path: Path, facts: Mapping[str, Any]) -> Path:
    """Write what is in a file beside it, as JSON, and return the path."""
    path = path.with_name(f"{path.name.removesuffix(path.suffix)}.json")
    with replacing(path) as partial:
        partial.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _one_line(text: str) -> str:
    """Return a text with line breaks escaped, so that each line of the file is one row of the matrix."""
    return text.translate(_ESCAPED_BREAKS)

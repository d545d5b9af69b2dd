"""Files that are there whole or not at all, and arrays written to `.npy` files part by part, in bounded memory."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from semrsm_dist.store.paths import writing


def write_npy(path: Path, shape: tuple[int, ...], dtype: DTypeLike, parts: Iterable[NDArray[Any]]) -> None:
    """Write an array from its parts along the first axis, in order; the file gets its name only when it is whole.

    Not through a memory map: on a full disk that ends the process with a bus error.

    Raises
    ------
    StorageError
        If it cannot be written.
    ValueError
        If the parts do not make up the shape.
    """
    with writing(path), replacing(path) as partial, partial.open("wb") as file:
        save_npy(file, shape, dtype, parts)


def save_npy(file: BinaryIO, shape: tuple[int, ...], dtype: DTypeLike, parts: Iterable[NDArray[Any]]) -> None:
    """Write what `write_npy` writes into an open file; errors of the file system are raised as they are."""
    kind, n_rows = np.dtype(dtype), 0
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for part in parts:
        if part.shape[1:] != shape[1:]:
            raise ValueError(f"a part of shape {part.shape} does not fit into an array of shape {shape}")
        n_rows += len(part)
        file.write(np.ascontiguousarray(part, dtype=kind).data)
    if n_rows != shape[0]:
        raise ValueError(f"the parts make up {n_rows} of {shape[0]} rows")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a file to write, which replaces `path` when it is whole; its folder is made if missing."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)

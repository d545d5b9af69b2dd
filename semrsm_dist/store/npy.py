"""Arrays written to `.npy` files part by part, in bounded memory."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from semrsm_dist.store.chunks import writing


def write_npy(path: Path, shape: tuple[int, ...], dtype: DTypeLike, parts: Iterable[NDArray[Any]]) -> None:
    """Write an array; the file gets its name only when it is whole.

    Not through a memory map: on a full disk that ends the process with a bus error.

    Parameters
    ----------
    path
        The file; one of this name is replaced.
    shape, dtype
        Of the array.
    parts
        Its parts along the first axis, in order.

    Raises
    ------
    StorageError
        If it cannot be written.
    ValueError
        If the parts do not make up the shape.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    kind, n_rows = np.dtype(dtype), 0
    try:
        with writing(path), partial.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for part in parts:
                if part.shape[1:] != shape[1:]:
                    raise ValueError(
                        f"a part of shape {part.shape} does not fit into an array of shape {shape}"
                    )
                n_rows += len(part)
                file.write(np.ascontiguousarray(part, dtype=kind).data)
        if n_rows != shape[0]:
            raise ValueError(f"the parts make up {n_rows} of {shape[0]} rows")
        with writing(path):
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)

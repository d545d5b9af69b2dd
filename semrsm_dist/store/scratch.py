"""Arrays in files that are gone when the work is done: for numbers that do not fit in memory."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.store.chunks import writing

IN_MEMORY = 1 << 22
"""Numbers of an array that is not worth a file."""


@contextlib.contextmanager
def scratch_arrays(
    folder: Path, *, in_memory: int = IN_MEMORY
) -> Iterator[Callable[[int], NDArray[np.float64]]]:
    """Give a function that makes one-dimensional float64 arrays, large ones in files below a folder.

    The files have no name any more once they are mapped: the system frees them with the arrays, even after a kill.

    Parameters
    ----------
    folder
        On a disk with room; made if it is not there.
    in_memory
        Numbers up to which an array is made in memory.

    Raises
    ------
    StorageError
        In the block, if there is no room: writing to a mapped file on a full disk would end the process.
    """
    names = itertools.count()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(prefix="scratch-", dir=folder)
    with place as path:

        def allocate(length: int) -> NDArray[np.float64]:
            if length <= in_memory:
                return np.empty(length)
            file = Path(path) / str(next(names))
            with writing(file), file.open("wb+") as handle:
                os.posix_fallocate(handle.fileno(), 0, 8 * length)
                mapped = np.memmap(handle, np.float64, "r+", shape=(length,))
                file.unlink()
            return mapped

        yield allocate

"""One way to compile: without the interpreter lock, cached on disk, cached results never stale."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])


@functools.cache
def _sources_digest(folder: Path) -> bytes:
    """Return a digest of every source file of a room of the package."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.digest()


def compiled(function: Function) -> Function:
    """Compile `function` with numba on its first call; threads run it in parallel.

    The machine code is cached next to the source, or in the user's cache directory where the
    installation is read-only, or not at all where neither can be written.
    """
    try:
        dispatcher = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError as error:  # numba found no writable cache directory
        logger.debug("%s is compiled without a cache: %s", function.__name__, error)
        return cast(Function, numba.njit(nogil=True, error_model="numpy")(function))
    # numba looks only at the file of the function itself, not at those of the functions it calls:
    # without this, a change there would leave old machine code in use.
    index: Any = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if hasattr(index, "_source_stamp"):
        index._source_stamp = _sources_digest(Path(function.__code__.co_filename).parent)
    return cast(Function, dispatcher)

"""One way to compile: without the interpreter lock, cached on disk, cached results never stale."""

from __future__ import annotations

import functools
import hashlib
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core.caching import IndexDataCacheFile

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
    cache: Any = getattr(dispatcher, "_cache", None)
    if hasattr(cache, "_cache_file"):
        digest = _sources_digest(Path(function.__code__.co_filename).parent)
        make_index: Any = _Index  # numba has no annotations
        cache._cache_file = make_index(cache._cache_path, cache._impl.filename_base, digest)
    return cast(Function, dispatcher)


def inlined(function: Function) -> Function:
    """Copy `function` into the compiled functions that call it, before they are compiled.

    A call passes every field of every array in its arguments, hundreds for two images: for the steps of a pair, more
    work than many of them. Where the code is large and the arguments few, `compiled` takes less time to compile.
    """
    return cast(Function, numba.njit(nogil=True, error_model="numpy", inline="always")(function))


class _Index(IndexDataCacheFile):
    """An index of cached machine code that an earlier version of the sources may have written."""

    def _load_index(self) -> Any:
        try:
            return super()._load_index()  # type: ignore[no-untyped-call]
        except (AttributeError, ImportError, pickle.UnpicklingError, EOFError):
            # Its signatures are pickled before its stamp: a type that was renamed since cannot be read.
            return {}

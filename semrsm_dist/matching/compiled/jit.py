"""One way to compile: without the interpreter lock, once for all processes of a machine, cached results never stale."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import logging
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core.caching import IndexDataCacheFile
from numba.core.compiler_lock import global_compiler_lock

logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])

PATIENCE = 300.0
"""Seconds to wait for another process that compiles the same function, which may have been stopped meanwhile."""

_held: set[Path] = set()


ROOM = Path(__file__).parents[1]
"""The room `matching`: all that compiled code calls lies in it, beside the folder of the caller."""


@functools.cache
def _sources_digest(folder: Path) -> bytes:
    """Return a digest of every source file that a function of this folder may be compiled from."""
    digest = hashlib.sha256()
    for path in sorted({*ROOM.rglob("*.py"), *folder.glob("*.py")}):
        name = path.relative_to(ROOM) if path.is_relative_to(ROOM) else path.name
        digest.update(str(name).encode() + b"\0" + path.read_bytes())
    return digest.digest()


def compiled(function: Function) -> Function:
    """Compile `function` with numba on its first call; threads run it in parallel.

    The machine code is cached next to the source, or in the user's cache directory where the
    installation is read-only, or not at all where neither can be written. Of processes that start together, one
    compiles a function, and the others wait and read what it has cached.
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
        lock = Path(cache._cache_path) / f"{cache._impl.filename_base}.lock"
        in_turn = functools.partial(_compile_in_turn, dispatcher.compile, lock)
        dispatcher.compile = in_turn  # type: ignore[method-assign]
    return cast(Function, dispatcher)


def _compile_in_turn(compile_here: Callable[[Any], Any], lock: Path, signature: Any) -> Any:
    """Call numba's `compile`, which looks into the cache first, while no other process does for this function.

    Functions wait in the order of their calls, which has no cycle, so no two processes wait for each other.
    """
    # Numba's own lock first, which its `compile` takes too: no two threads wait crosswise.
    with global_compiler_lock, _turn(lock):
        return compile_here(signature)


@contextlib.contextmanager
def _turn(lock: Path) -> Iterator[None]:
    """Hold a lock file; where none can be had, or not in time, do without: that costs time, not correctness."""
    if lock in _held:  # another signature of the same function, needed for the first
        yield
        return
    try:
        file = lock.open("a")
    except OSError as error:
        logger.debug("compiled without waiting for other processes: %s", error)
        yield
        return
    with file:
        _wait_for(file.fileno(), lock)
        _held.add(lock)
        try:
            yield
        finally:
            _held.discard(lock)


def _wait_for(descriptor: int, lock: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        except OSError as error:  # a file system without locks
            logger.debug("%s: compiled without waiting for other processes: %s", lock, error)
            return
        else:
            return
    logger.debug("%s: another process has held it for %.0f s; compiled here as well", lock, PATIENCE)


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

"""Machine code on disk: never stale, compiled once for all processes of a machine, recompiled if damaged.

All use of what numba keeps private is in this file; `semrsm_dist.matching.compiled.jit` does without it where a numba
has changed it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import IndexDataCacheFile
from numba.core.compiler_lock import global_compiler_lock

from semrsm_dist.machine import user_cache_folder

logger = logging.getLogger(__name__)
_warn_once = functools.cache(logger.warning)

PATIENCE = 300.0
"""Seconds to wait for another process that compiles the same function, which may have been stopped meanwhile."""

ROOM = Path(__file__).parents[1]
"""The room `matching`: all that compiled code calls lies in it, beside the folder of the caller."""

# What unpickling raises for bytes that are cut off or damaged, or for types that were renamed since.
_UNREADABLE = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    MemoryError,
)

_held: set[Path] = set()


def share_cache(dispatcher: Any, source: str) -> None:
    """Make what `numba.njit(cache=True)` returns for a function of a file follow this module's rules.

    Raises AttributeError if this numba keeps its cache in another way.
    """
    cache = dispatcher._cache
    if not hasattr(cache, "_cache_file"):  # numba's switch NUMBA_DISABLE_JIT or NUMBA_DISABLE_CACHING
        return
    folder, name = _choose_folder(Path(source), Path(cache._cache_path)), cache._impl.filename_base
    # numba looks only at the file of the function itself, not at those of the functions it calls:
    # without this, a change there would leave old machine code in use.
    make_index: Any = _Index  # numba has no annotations
    cache._cache_file = make_index(str(folder), name, _sources_digest(Path(source).parent))
    dispatcher.compile = functools.partial(_compile_in_turn, dispatcher.compile, folder / f"{name}.lock")


def _choose_folder(source: Path, usual: Path) -> Path:
    """Return where code of a source file is kept: as numba has it, but of an installed file in the user's cache.

    Files beside an installed one would outlive it, as pip removes only what it has installed. To Python, the folders
    that are left are a namespace package, which hides a checkout that is installed in place of the package.
    """
    settings: Any = numba.config
    if settings.CACHE_DIR or not {"site-packages", "dist-packages"} & set(source.parts):
        return usual
    place = hashlib.sha256(str(source.parent).encode()).hexdigest()[:16]
    try:
        folder = user_cache_folder() / "compiled" / f"{source.parent.name}-{place}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a home that cannot be written, or none
        return usual
    return folder if os.access(folder, os.W_OK) else usual


class _Index(IndexDataCacheFile):
    """Cached machine code that an earlier version of the sources may have written, or that may be damaged."""

    def load(self, key: Any) -> Any:
        data = super().load(key)  # type: ignore[no-untyped-call]
        if data is None:
            _warn_once(
                "compiling the matching for this processor: up to half a minute on a quiet machine; it is kept for "
                "the next time"
            )
        return data

    def save(self, key: Any, data: Any) -> None:
        try:
            super().save(key, data)  # type: ignore[no-untyped-call]
        except OSError as error:
            _warn_once(
                "%s: compiled code cannot be kept, and is compiled again by the next process", error.strerror
            )

    def _load_index(self) -> Any:
        try:
            return super()._load_index()  # type: ignore[no-untyped-call]
        except _UNREADABLE:
            return {}

    def _load_data(self, name: str) -> Any:
        try:
            return super()._load_data(name)  # type: ignore[no-untyped-call]
        except _UNREADABLE as error:
            logger.debug("%s: damaged machine code is compiled again: %s", name, error)
            raise OSError from error  # as if it were not there


@functools.cache
def _sources_digest(folder: Path) -> bytes:
    """Return a digest of every source file that a function of this folder may be compiled from."""
    digest = hashlib.sha256()
    for path in sorted({*ROOM.rglob("*.py"), *folder.glob("*.py")}):
        name = path.relative_to(ROOM) if path.is_relative_to(ROOM) else path.name
        digest.update(str(name).encode() + b"\0" + path.read_bytes())
    return digest.digest()


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

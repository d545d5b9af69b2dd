"""Where the bytes of a run lie, and what is done with them there.

The rest of this room joins paths with `/`, looks with `exists` and `is_file`, and reads with `read_bytes`. It does all
else by the functions below, so that nothing depends on the kind of storage. They raise OSError unless they say more.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias, cast

import zarr
from zarr.storage import LocalStore, StoreLike

from semrsm_dist.errors import StorageError
from semrsm_dist.store.labels import LabellingStore
from semrsm_dist.store.locks import DriverLock, FileLock

log = logging.getLogger(__name__)

RunPath: TypeAlias = Path
"""A file or folder of a run."""


class StoredFile(NamedTuple):
    """A file below a folder: its path from there, its bytes, and when it was written, in seconds since the epoch."""

    name: str
    n_bytes: int
    written: float


def as_run_path(location: RunPath | str) -> RunPath:
    """Return a path that is given as such or as text."""
    return Path(location)


def make_folder(folder: RunPath) -> None:
    """Make a folder and those above it, or find that files can be put there."""
    folder.mkdir(parents=True, exist_ok=True)


def list_names(folder: RunPath) -> list[str]:
    """Return the names of the files and folders in a folder, sorted; none if it is not there."""
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def list_files(folder: RunPath) -> Iterator[str]:
    """Yield the files below a folder, each as its path from there with `/`; none if it is not there."""
    for prefix, entry in _walk(folder):
        yield prefix + entry.name


def look_up_files(folder: RunPath) -> Iterator[StoredFile]:
    """Yield what `list_files` lists, with sizes and times."""
    for prefix, entry in _walk(folder):
        with contextlib.suppress(FileNotFoundError):  # it may be removed meanwhile
            stat = entry.stat()
            yield StoredFile(prefix + entry.name, stat.st_size, stat.st_mtime)


def write_atomically(path: RunPath, content: bytes, *, durably: bool = True) -> None:
    """Replace a file so that a reader or a crash sees the old or the new content, never a part.

    Parameters
    ----------
    path, content
        The file, and what will be in it.
    durably
        Wait until a crash of the machine cannot undo it.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        make_way(path)
        with temporary.open("wb") as handle:
            handle.write(content)
            if durably:
                handle.flush()
                os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}); what was computed so far is kept: make room or "
            "make it writable, then start the same command"
        ) from error


def append_line(path: RunPath, line: bytes, most: int) -> None:
    """Add a line to a file, whose oldest half goes once it is larger than `most` bytes.

    A last line that a kill cut short is ended before.
    """
    make_way(path)
    with path.open("ab+") as file:
        if file.tell() and not _ends_a_line(file):
            line = b"\n" + line
        file.write(line + b"\n")
        if file.tell() > most:
            file.seek(-most // 2, os.SEEK_END)
            file.readline()  # a part of one
            write_atomically(path, file.read())


def time_written(path: RunPath) -> float | None:
    """Return when a file was written, in seconds since the epoch; None if it is not there."""
    return path.stat().st_mtime if path.is_file() else None


def make_way(path: RunPath, *, for_folder: bool = False) -> None:
    """Move what is in the place of a file, or `for_folder` of a folder, aside if it is not one."""
    if path.is_file() if for_folder else path.is_dir():
        names = (f"{path.name}.aside-{number}" for number in itertools.count(1))
        aside = next(place for place in map(path.with_name, names) if not place.exists())
        path.rename(aside)
        log.warning(
            "%s: there was a %s in its place, which is %s now",
            path,
            "file" if for_folder else "folder",
            aside.name,
        )


def remove_file(path: RunPath) -> None:
    """Remove a file, if it is there."""
    path.unlink(missing_ok=True)


def remove_folder(folder: RunPath) -> None:
    """Remove a folder with all that is in it."""
    shutil.rmtree(folder)


def remove_partial_files(folder: RunPath) -> None:
    """Remove what writers that were killed, Zarr's and our own, have left below a folder."""
    for pattern in ("*.partial", "zarr.json.tmp[0-9]*"):
        for path in folder.rglob(pattern):
            if not path.is_dir():  # as that of a layer of such a name is
                path.unlink(missing_ok=True)


def free_bytes(folder: RunPath) -> int | None:
    """Return the room that is left where a folder is or would be; None if there is no limit."""
    place = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    return shutil.disk_usage(place).free


def driver_lock(path: RunPath) -> DriverLock:
    """Return the lock that keeps the drivers of a run apart, which is a file of this name."""
    return FileLock(path)


def zarr_store(path: RunPath) -> StoreLike:
    """Return what Zarr opens as the group or array of this path."""
    return path


def path_of(array: zarr.Array[Any]) -> RunPath:
    """Return the path of an array."""
    store = array.store_path.store
    if isinstance(store, LabellingStore):
        store = store.wrapped
    return cast("LocalStore", store).root / array.store_path.path


def _walk(folder: str | Path, prefix: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the files below a folder, each with the path of its own folder from there.

    Raises
    ------
    StorageError
        If the file system cannot list them.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    yield from _walk(entry.path, f"{prefix}{entry.name}/")
                elif entry.is_file():
                    yield prefix, entry
    except (FileNotFoundError, NotADirectoryError):
        return
    except StorageError:  # of a folder in it
        raise
    except OSError as error:
        raise StorageError(
            f"{error.filename or folder}: cannot be listed ({error.strerror or error}), so what is finished is not "
            "known; nothing was changed: check the disk and its permissions, then start the same command"
        ) from error


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"

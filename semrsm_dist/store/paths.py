"""Where the bytes of a run lie, and what is done with them there.

The rest of this room joins paths with `/`, and does all else by the functions below, so that nothing depends on the
kind of storage. They raise OSError unless they say more.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias, cast

import zarr
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, StoreLike

from semrsm_dist.data import opening
from semrsm_dist.errors import StorageError, unreadable
from semrsm_dist.fields import check_run_uri
from semrsm_dist.store.chunk_labels import LabellingStore
from semrsm_dist.store.lease import Lease
from semrsm_dist.store.locks import DriverLock, FileLock
from semrsm_dist.store.objects import ObjectPath, ZarrFolder

log = logging.getLogger(__name__)

RunPath: TypeAlias = Path | ObjectPath
"""A file or folder of a run, in a file system or in an object store, where a folder is a prefix."""


class StoredFile(NamedTuple):
    """A file below a folder: its path from there, its bytes, and when it was written, in seconds since the epoch."""

    name: str
    n_bytes: int
    written: float


def as_run_path(location: RunPath | str) -> RunPath:
    """Return a path that is given as such or as text, which may be the URI of a folder in an object store.

    Raises ConfigError if the URI is of no such folder, or holds what may be secret.
    """
    if isinstance(location, str) and "://" in location:
        return ObjectPath(check_run_uri(location))
    return Path(location) if isinstance(location, str) else location


def make_folder(folder: RunPath) -> None:
    """Make a folder and those above it, or find that files can be put there."""
    if isinstance(folder, ObjectPath):
        folder.list_names()  # there are no folders, but there may be no such bucket, or no access
    else:
        folder.mkdir(parents=True, exist_ok=True)


def is_file(path: RunPath) -> bool:
    """Return whether there is a file, or a link to one.

    Raises UnreadableFileError if the file system does not tell: what cannot be looked up is not missing.
    """
    return path.is_file() if isinstance(path, ObjectPath) else stat.S_ISREG(_mode_of(path))


def is_folder(path: RunPath) -> bool:
    """Return whether there is a folder, or a link to one; errors as in `is_file`."""
    return path.is_dir() if isinstance(path, ObjectPath) else stat.S_ISDIR(_mode_of(path))


def exists(path: RunPath) -> bool:
    """Return whether there is anything, links followed; errors as in `is_file`."""
    return path.exists() if isinstance(path, ObjectPath) else bool(_mode_of(path))


def may_read(path: RunPath) -> bool:
    """Return whether this process has the permission to read a file; of an object, only reading tells."""
    if isinstance(path, ObjectPath):
        return True
    return os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids)


def read_file(path: RunPath) -> bytes:
    """Return the content of a file; of what is in its place otherwise, such as a pipe, nothing is opened."""
    return path.read_bytes() if isinstance(path, ObjectPath) else opening.read_file(path)


def list_names(folder: RunPath) -> list[str]:
    """Return the names of the files and folders in a folder, sorted; none if it is not there."""
    if isinstance(folder, ObjectPath):
        return folder.list_names()
    return sorted(entry.name for entry in folder.iterdir()) if is_folder(folder) else []


def list_files(folder: RunPath) -> Iterator[str]:
    """Yield the files below a folder, each as its path from there with `/`; none if it is not there."""
    if isinstance(folder, ObjectPath):
        yield from (name for name, _, _ in folder.list_objects())
    else:
        yield from (prefix + entry.name for prefix, entry in _walk(folder))


def look_up_files(folder: RunPath) -> Iterator[StoredFile]:
    """Yield what `list_files` lists, with sizes and times."""
    if isinstance(folder, ObjectPath):
        for name, n_bytes, written in folder.list_objects():
            yield StoredFile(name, n_bytes, written.timestamp())
        return
    for prefix, entry in _walk(folder):
        with contextlib.suppress(FileNotFoundError):  # it may be removed meanwhile
            facts = entry.stat()
            yield StoredFile(prefix + entry.name, facts.st_size, facts.st_mtime)


def look_up_file(path: RunPath) -> StoredFile | None:
    """Return the name, size and time of one file; None if it is not there."""
    if isinstance(path, ObjectPath):
        found = path.look_up()
        return None if found is None else StoredFile(path.name, found[0], found[1].timestamp())
    try:
        facts = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return StoredFile(path.name, facts.st_size, facts.st_mtime)


def write_atomically(path: RunPath, content: bytes, *, durably: bool = True) -> None:
    """Replace a file so that a reader or a crash sees the old or the new content, never a part.

    With `durably`, wait until a crash of the machine cannot undo it. Raises StorageError if it cannot be written.
    """
    with writing(path):
        if isinstance(path, ObjectPath):
            path.write(content)
        else:
            make_way(path)
            _write_and_rename(path, content, durably=durably)


@contextlib.contextmanager
def writing(path: RunPath) -> Iterator[None]:
    """Turn errors of a full or read-only file system in this block into one that names `path`.

    Raises StorageError for any OSError that is not one already.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}); what was computed so far is kept: make room or "
            "make it writable, then repeat the command"
        ) from error


def append_line(path: RunPath, line: bytes, most: int) -> None:
    """Add a line to a file, whose oldest half goes once it is larger than `most` bytes.

    A last line that a kill cut short is ended before.
    """
    if isinstance(path, ObjectPath):
        before = read_file(path) if exists(path) else b""
        path.write(_keep_end(before, most - len(line)) + line + b"\n")
        return
    make_way(path, in_place=True)
    with path.open("ab+") as file:
        if file.tell() and not _ends_a_line(file):
            line = b"\n" + line
        file.write(line + b"\n")
        if file.tell() > most:
            file.seek(-most // 2, os.SEEK_END)
            file.readline()  # a part of one
            write_atomically(path, file.read())


def make_way(path: RunPath, *, for_folder: bool = False, in_place: bool = False) -> None:
    """Move what is in the place of a file, or `for_folder` of a folder, aside if it is not one.

    A link to one is one, but not for a file that is written `in_place`: what the link leads to is not of the run.
    """
    if isinstance(path, ObjectPath) or not os.path.lexists(path):
        return  # an object and a prefix can have the same name
    kinds = {"link": path.is_symlink(), "file": path.is_file(), "folder": path.is_dir()}
    if kinds["folder" if for_folder else "file"] and not (in_place and kinds["link"]):
        return
    names = (f"{path.name}.aside-{number}" for number in itertools.count(1))
    aside = next(place for place in map(path.with_name, names) if not os.path.lexists(place))
    path.rename(aside)
    kind = next((kind for kind, is_it in kinds.items() if is_it), "device or pipe")
    log.warning("%s: there was a %s in its place, which is %s now", path, kind, aside.name)


def remove_file(path: RunPath) -> None:
    """Remove a file, if it is there; a folder in its place is moved aside."""
    if isinstance(path, ObjectPath):
        path.remove()
    else:
        make_way(path)
        path.unlink(missing_ok=True)


def remove_folder(folder: RunPath) -> None:
    """Remove a folder with all that is in it."""
    if isinstance(folder, ObjectPath):
        folder.remove_all()
    else:
        shutil.rmtree(folder)


def remove_partial_files(folder: RunPath) -> None:
    """Remove what writers that were killed, Zarr's and our own, have left below a folder."""
    if isinstance(folder, ObjectPath):
        return  # an object is there as a whole or not at all
    for name in list_files(folder):
        file = name.rpartition("/")[2]
        if file.endswith(".partial") or fnmatchcase(file, "zarr.json.tmp[0-9]*"):
            (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def temporary_folder(beside: RunPath, prefix: str) -> Iterator[tuple[RunPath, Path]]:
    """Yield a folder in another, and one for local files, which may be the same; both are removed in the end."""
    if isinstance(beside, ObjectPath):
        folder = beside / f"{prefix}{uuid.uuid4().hex}"
        with tempfile.TemporaryDirectory(prefix=prefix) as place:
            try:
                yield folder, Path(place)
            finally:
                remove_folder(folder)
    else:
        with tempfile.TemporaryDirectory(prefix=prefix, dir=beside) as place:
            yield Path(place), Path(place)


def nearest_folder(path: RunPath) -> RunPath:
    """Return the nearest folder above a path that is there."""
    if isinstance(path, ObjectPath):
        return path.parent
    return next(folder for folder in path.absolute().parents if folder.is_dir())


def free_bytes(folder: RunPath) -> int | None:
    """Return the room that is left where a folder is or would be; None if there is no limit."""
    if isinstance(folder, ObjectPath):
        return None
    place = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    return shutil.disk_usage(place).free


def driver_lock(path: RunPath) -> DriverLock:
    """Return the lock that keeps the drivers of a run apart, which is a file of this name."""
    return Lease(path) if isinstance(path, ObjectPath) else FileLock(path)


def zarr_store(path: RunPath) -> StoreLike:
    """Return what Zarr opens as the group or array of this path."""
    return path.zarr_store() if isinstance(path, ObjectPath) else FolderStore(path)


class FolderStore(LocalStore):
    """Zarr's store of a folder, in which nothing but files is opened."""

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """As in Zarr."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):  # None in Zarr
            opening.require_file(self.root / key)
        return await super().get(key, prototype, byte_range)


def path_of(array: zarr.Array[Any]) -> RunPath:
    """Return the path of an array."""
    store, name = array.store_path.store, array.store_path.path
    if isinstance(store, LabellingStore):
        store = store.wrapped
    if isinstance(store, ZarrFolder):
        return store.folder / name if name else store.folder
    return cast("LocalStore", store).root / name


def _mode_of(path: Path) -> int:
    """Return the type and mode of what is in a place, links followed; 0 if there is nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        if error.errno in opening.NO_SUCH_NAME:
            return 0
        raise unreadable(path, error, "cannot be looked up") from error


def _walk(folder: str | Path, prefix: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the files below a folder, each with the path of its own folder from there.

    Raises UnreadableFileError if the file system cannot list them.
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
        place = error.filename or folder
        raise unreadable(place, error, "cannot be listed", "what is finished is not known") from error


def _write_and_rename(path: Path, content: bytes, *, durably: bool) -> None:
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        with temporary.open("wb") as handle:
            handle.write(content)
            if durably:
                handle.flush()
                os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _keep_end(lines: bytes, most: int) -> bytes:
    """Return whole lines from the end of these, half of `most` bytes, if they are more than that."""
    return lines if len(lines) <= most else lines[-most // 2 :].partition(b"\n")[2]


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"

"""Paths and URIs: what file system they are of, and how they are joined."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from pyarrow import fs

from semrsm_dist.errors import InputError, StorageError

REMOTE = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
"""Schemes of the remote file systems that pyarrow knows."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_OPTIONS = re.compile(r"\?\w+=[^/]*$")  # of a file system, such as ?region=eu-west-1


def is_uri(location: str) -> bool:
    """Return whether a location is written as ``scheme://...`` rather than as a plain path."""
    return _SCHEME.match(location) is not None


def locate(location: str) -> tuple[fs.FileSystem, str]:
    """Return pyarrow's file system for a path or URI, and the path within it.

    Raises
    ------
    InputError
        If the URI names a file system that pyarrow does not know.
    """
    if not is_uri(location):
        return _local(), str(Path(location).absolute())
    scheme, _, rest = location.partition("://")
    host, slash, path = rest.partition("/")
    if scheme == "file":
        return _local(), unquote(slash + path)
    # The path is cut off and joined by hand: pyarrow's URI parser refuses spaces and other characters of keys.
    path, options = split_options(path, is_remote=True)
    system, root = _remote(f"{scheme}://{host}/{options}")
    return system, f"{root.rstrip('/')}/{path}"


def split_options(location: str, *, is_remote: bool | None = None) -> tuple[str, str]:
    """Return a location without the options of a file system that end a URI, and the options.

    >>> split_options("s3://bucket/images?region=eu-west-1")
    ('s3://bucket/images', '?region=eu-west-1')
    """
    found = _OPTIONS.search(location) if (is_uri(location) if is_remote is None else is_remote) else None
    return (location[: found.start()], found.group()) if found else (location, "")


def exists(location: str | Path) -> bool:
    """Return whether there is a file or folder at a location.

    Raises
    ------
    InputError
        If it is a URI of an unknown file system.
    StorageError
        If the storage fails.
    """
    system, path = locate(str(location))
    try:
        return bool(system.get_file_info(path).type != fs.FileType.NotFound)
    except OSError as error:
        raise StorageError(
            f"{location}: cannot be looked up: {error}; grant access, or check the network"
        ) from error


def file_of(path: Path) -> Path:
    """Return the file that a path leads into, as `features.pt/layer4` does; or the path itself."""
    return next((parent for parent in path.parents if parent.is_file()), path)


def join(folder: str | Path, *parts: str) -> str:
    """Return a location below a folder, which may be a URI, the same in any working directory.

    >>> join("s3://bucket/images/?region=eu-west-1", "a", "0.png")
    's3://bucket/images/a/0.png?region=eu-west-1'
    """
    return below(absolute(folder), *parts)


def below(root: str, *parts: str) -> str:
    """Return `join` of a location that is absolute already."""
    place, options = split_options(root)
    return ("/".join((place.rstrip("/"), *parts)) or "/") + options


def absolute(location: str | Path) -> str:
    """Return a location that means the same in any working directory: an absolute path, or a remote URI."""
    text = str(location)
    if text.startswith("file://"):
        return locate(text)[1]
    return text if is_uri(text) else str(Path(text).expanduser().absolute())


@lru_cache(maxsize=1)
def _local() -> fs.FileSystem:
    return fs.LocalFileSystem()


@lru_cache(maxsize=16)
def _remote(root: str) -> tuple[fs.FileSystem, str]:
    try:
        system, path = fs.FileSystem.from_uri(root)
    except (ValueError, NotImplementedError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise InputError(
            f"the location {root!r} cannot be opened: {error}. Give a path, or a URI of a file system that pyarrow "
            f"knows (file://, s3://, gs://, abfs://, hdfs://)"
        ) from error
    return system, path

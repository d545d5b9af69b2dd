"""Paths and URIs: what file system they are of, and how they are joined."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from pyarrow import NativeFile, fs

from semrsm_dist.data.opening import NO_SUCH_NAME, NotAFileError, require_file
from semrsm_dist.errors import InputError, StorageError

REMOTE = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
"""Schemes of the remote file systems that pyarrow knows."""

ABOUT_THE_FILE = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, NotAFileError)
"""Errors of one missing or protected file; any other OSError is a failing storage, and worth a retry."""

_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_REGION",
    **dict.fromkeys(("gs", "gcs"), "GOOGLE_APPLICATION_CREDENTIALS"),
    **dict.fromkeys(("abfs", "abfss"), "AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET"),
}
_RETRY_SECONDS = 60
"""How long pyarrow may try Google's storage, by default a quarter of an hour; S3 gives up within two minutes."""

_PIECE_BYTES = 2**22
"""What is read at a time where the size is bounded: nearly every image is one piece, which is not copied."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_OPTIONS = re.compile(r"\?\w+=[^/]*$")  # of a file system, such as ?region=eu-west-1


def is_uri(location: str) -> bool:
    """Return whether a location is written as ``scheme://...`` rather than as a plain path."""
    return _SCHEME.match(location) is not None


def locate(location: str) -> tuple[fs.FileSystem, str]:
    """Return pyarrow's file system for a path or URI, and the path within it.

    Raises InputError if the URI names a file system that pyarrow does not know.
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


def locate_file(location: str) -> tuple[fs.FileSystem, str]:
    """As `locate`, for a file that is opened next: a local one must be a file, as `require_file` has it."""
    system, path = locate(location)
    if system is _local():
        require_file(path)
    return system, path


def split_options(location: str, *, is_remote: bool | None = None) -> tuple[str, str]:
    """Return a location without the options of a file system that end a URI, and the options.

    >>> split_options("s3://bucket/images?region=eu-west-1")
    ('s3://bucket/images', '?region=eu-west-1')
    """
    found = _OPTIONS.search(location) if (is_uri(location) if is_remote is None else is_remote) else None
    return (location[: found.start()], found.group()) if found else (location, "")


def exists(location: str | Path) -> bool:
    """Return whether there is a file or folder at a location; errors as in `look_up`."""
    return bool(look_up(str(location)).type != fs.FileType.NotFound)


def is_folder(location: str) -> bool:
    """Return whether there is a folder at a location; errors as in `look_up`."""
    return bool(look_up(location).type == fs.FileType.Directory)


def look_up(location: str) -> fs.FileInfo:
    """Return what is at a location: its type, size and modification time.

    Raises
    ------
    InputError
        If it is a URI of an unknown file system.
    FileNotFoundError, PermissionError, NotADirectoryError
        If that is because of the location.
    StorageError
        If the storage fails.
    """
    system, path = locate(location)
    with storage_errors(location):
        return system.get_file_info(path)


def read_bytes(location: str, most: int | None = None) -> bytes:
    """Return the content of a file, or little more than `most` bytes: a longer result says that the file is larger.

    Raises
    ------
    InputError
        If it is a URI of an unknown file system.
    FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, NotAFileError
        If there is no file to read.
    StorageError
        If the storage fails.
    """
    with storage_errors(location):
        system, path = locate_file(location)
        try:
            with system.open_input_stream(path, compression=None) as stream:
                return bytes(stream.read()) if most is None else _read_up_to(stream, most)
        except ABOUT_THE_FILE:
            raise
        except OSError as error:
            if system.get_file_info(path).type == fs.FileType.Directory:
                raise IsADirectoryError(f"{location} is a folder") from error
            raise


def read_range(location: str, offset: int, n_bytes: int) -> bytes:
    """Return a part of a file, shorter where the file ends before; errors as in `read_bytes`."""
    with open_file(location) as file:
        file.seek(offset)
        return bytes(file.read(n_bytes))


@contextmanager
def open_file(location: str) -> Iterator[NativeFile]:
    """Open a file for reading parts of it; errors, also of the block, as in `read_bytes`."""
    with storage_errors(location):
        system, path = locate_file(location)
        with system.open_input_file(path) as file:
            yield file


def _read_up_to(stream: NativeFile, most: int) -> bytes:
    """Return the content, or somewhat more than `most` bytes of it, whatever size the stream claims to have."""
    pieces, n_bytes = [], 0
    while n_bytes <= most and (piece := stream.read(_PIECE_BYTES)):
        pieces.append(piece)
        n_bytes += len(piece)
    return b"".join(pieces)


@contextmanager
def storage_errors(location: str) -> Iterator[None]:
    """Report an error of the operating system or of a remote service, unless it is about the one file.

    Raises StorageError with the remedy for this kind of storage.
    """
    try:
        yield
    except (StorageError, *ABOUT_THE_FILE):
        raise
    except OSError as error:
        if error.errno in NO_SUCH_NAME:
            raise NotAFileError(error.errno, os.strerror(error.errno), location) from error
        raise StorageError(
            f"{location}: the storage failed: {error}. This says nothing about the file; {_remedy(location)} and repeat"
        ) from error


def file_of(path: Path) -> Path:
    """Return the file that a path leads into, as `features.pt/layer4` does; or the path itself."""
    return next((parent for parent in path.parents if parent.is_file()), path)


def _remedy(location: str) -> str:
    variables = _CREDENTIALS.get(location.partition("://")[0].lower())
    if variables is None:
        return "check the disk or the network"
    return f"check the network, the name of the bucket and the credentials in the environment ({variables}),"


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


def is_written_below(location: str, root: str) -> bool:
    """Return whether an absolute location is `root` or lies below it, as both are written; links are not followed."""
    (place, options), (folder, expected) = split_options(location), split_options(root)
    place, folder = posixpath.normpath(place), posixpath.normpath(folder)
    return options == expected and (place == folder or place.startswith(f"{folder.rstrip('/')}/"))


def lies_in(location: str, folder: str) -> bool:
    """Return whether a path or URI lies in a folder, links followed."""
    if is_uri(folder) or is_uri(location):
        return f"{location}/".startswith(f"{split_options(folder)[0].rstrip('/')}/")
    return Path(location).resolve().is_relative_to(Path(folder).resolve())


def leads_out(path: str, folder: str) -> bool:
    """Return whether a local path does not lie in a folder, links followed."""
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


@lru_cache(maxsize=1)
def _local() -> fs.FileSystem:
    return fs.LocalFileSystem()


@lru_cache(maxsize=16)
def _remote(root: str) -> tuple[fs.FileSystem, str]:
    uri = root
    if root.startswith(("gs://", "gcs://")) and "retry_limit_seconds=" not in root:
        uri += f"{'&' if '?' in root else '?'}retry_limit_seconds={_RETRY_SECONDS}"
    try:
        with storage_errors(root):  # S3 looks for the region of a bucket
            system, path = fs.FileSystem.from_uri(uri)
    except (ValueError, NotImplementedError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise InputError(
            f"the location {root!r} cannot be opened: {error}. Give a path, or a URI of a file system that pyarrow "
            f"knows (file://, s3://, gs://, abfs://, hdfs://)"
        ) from error
    return system, path

"""Images that are files: on a local disk, or in anything that pyarrow's file systems reach."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from pyarrow import fs

from semrsm_dist.data.decode import decode_with_mode
from semrsm_dist.data.entries import ImageEntry, LoadedImage, UnreadableImageError
from semrsm_dist.data.source import ImageSource
from semrsm_dist.errors import InputError, StorageError
from semrsm_dist.fields import Location

REMOTE = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
"""Schemes of the remote file systems that pyarrow knows."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_OPTIONS = re.compile(r"\?\w+=[^/]*$")  # of a file system, such as ?region=eu-west-1

# What one image's absence or permissions explain; any other OSError is the storage failing, and worth a retry.
_ABOUT_THE_FILE = (FileNotFoundError, PermissionError, NotADirectoryError)


class FileSource(ImageSource):
    """Base of the sources whose entries name files: what they share is how these are read.

    Parameters
    ----------
    path
        Where the images or the list of them lie: a path, or a URI.
    """

    path: Location

    def load(self, entry: ImageEntry) -> LoadedImage:
        """Return the decoded RGB image together with the hash of the file, both from one read."""
        data = self._content(entry)
        image, mode = decode_with_mode(data, _name(entry))
        return LoadedImage(image, mode, hashlib.sha256(data).hexdigest(), len(data))

    def stamp(self, entry: ImageEntry) -> tuple[int, int] | None:
        """Return (size in bytes, modification time in ns) of the file, or None if it has none."""
        system, path = locate(entry.uri)
        try:
            info = system.get_file_info(path)
        except (*_ABOUT_THE_FILE, ValueError):
            return None
        except OSError as error:
            raise _storage_failure(entry, error) from error
        if info.type != fs.FileType.File or info.mtime_ns is None:
            return None
        return int(info.size), int(info.mtime_ns)

    def _content(self, entry: ImageEntry) -> bytes:
        system, path = locate(entry.uri)
        try:
            with system.open_input_stream(path, compression=None) as stream:
                return bytes(stream.read())
        except _ABOUT_THE_FILE as error:
            raise UnreadableImageError(_name(entry), _why(error)) from error
        except ValueError as error:  # pyarrow's ArrowInvalid: a key that the file system cannot have
            raise UnreadableImageError(_name(entry), f"there can be no such file: {error}") from error
        except OSError as error:
            if system.get_file_info(path).type == fs.FileType.Directory:
                raise UnreadableImageError(_name(entry), "it is a folder") from error
            raise _storage_failure(entry, error) from error


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


def _name(entry: ImageEntry) -> str:
    return entry.image_id if entry.uri.endswith(entry.image_id) else f"{entry.image_id} ({entry.uri})"


def _why(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return (
        "reading it is not permitted"
        if isinstance(error, PermissionError)
        else "a part of its path is no folder"
    )


def _storage_failure(entry: ImageEntry, error: OSError) -> StorageError:
    return StorageError(
        f"the storage failed while reading image {_name(entry)!r}: {error}. This says nothing about the image; "
        f"check the disk or the network and repeat"
    )

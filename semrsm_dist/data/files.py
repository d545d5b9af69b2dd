"""Sources whose images are files: on a local disk, or in anything that pyarrow's file systems reach."""

from __future__ import annotations

import hashlib

from pyarrow import fs

from semrsm_dist.data.decode import decode_with_mode
from semrsm_dist.data.entries import ImageEntry, LoadedImage, UnreadableImageError
from semrsm_dist.data.locations import locate
from semrsm_dist.data.source import ImageSource
from semrsm_dist.errors import StorageError
from semrsm_dist.fields import Location

# Errors of one missing or protected image; any other OSError is a failing storage, and worth a retry.
_ABOUT_THE_FILE = (FileNotFoundError, PermissionError, NotADirectoryError)


class FileSource(ImageSource):
    """Base of the sources whose entries name files, which are all read in the same way.

    Parameters
    ----------
    path
        Where the images or the list of them lie: a path, or a URI.
    """

    path: Location

    def load(self, entry: ImageEntry) -> LoadedImage:
        """Return the decoded RGB image together with the hash of the file, both from one read."""
        data = self._content(entry)
        image, mode, remark = decode_with_mode(data, _name(entry))
        return LoadedImage(image, mode, hashlib.sha256(data).hexdigest(), len(data), remark)

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


def _name(entry: ImageEntry) -> str:
    return entry.image_id if entry.uri.endswith(entry.image_id) else f"{entry.image_id} ({entry.uri})"


def _why(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return (
        "reading it is not permitted"
        if isinstance(error, PermissionError)
        else "a part of its path is not a folder"
    )


def _storage_failure(entry: ImageEntry, error: OSError) -> StorageError:
    return StorageError(
        f"the storage failed while reading image {_name(entry)!r}: {error}. This says nothing about the image; "
        f"check the disk or the network and repeat"
    )

"""Sources whose images are files: on a local disk, or in anything that pyarrow's file systems reach."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated

import pyarrow as pa
from pyarrow import fs
from pydantic import ByteSize, Field

from semrsm_dist.data.decode import decode_with_mode
from semrsm_dist.data.entries import ImageEntry, Least, LoadedImage, UnreadableImageError
from semrsm_dist.data.locations import ABOUT_THE_FILE, absolute, is_uri, leads_out, look_up, read_bytes
from semrsm_dist.data.source import ImageSource
from semrsm_dist.errors import reason_of
from semrsm_dist.fields import Location

MAX_IMAGE_BYTES = ByteSize(256 * 2**20)
"""89 million pixels, from which on Pillow warns."""

FILE_FACTOR = 4
"""Bytes of a file that may hold an image of one byte: 16-bit colours with transparency take 8/3, texts come on top."""

_CAUSES: dict[type[OSError], str] = {
    FileNotFoundError: "there is no such file",
    PermissionError: "reading it is not permitted",
    NotADirectoryError: "a part of its path is not a folder",
    IsADirectoryError: "it is a folder",
}


def describe_cause(error: OSError) -> str:
    """Return in words why a file cannot be read, of an error of `ABOUT_THE_FILE`."""
    return _CAUSES.get(type(error)) or reason_of(error)


class FileSource(ImageSource):
    """Base of the sources whose entries name files, which are all read in the same way."""

    path: Location
    """Where the images or the list of them lie: a path, or a URI."""
    max_image_bytes: Annotated[ByteSize, Field(ge=1)] = MAX_IMAGE_BYTES
    """An image that takes more than this as 8-bit RGB, three bytes per pixel, is unreadable: it is not decoded. While
    an image is decoded, it takes up to about four times as much; a file of more bytes than that is unreadable, too."""

    @property
    def has_drafts(self) -> bool:
        """Whether images are those of the files; a subclass that makes others of them, such as parts, has no drafts."""
        return type(self).load is FileSource.load

    def load(self, entry: ImageEntry) -> LoadedImage:
        """Return the decoded RGB image together with the hash of the file, both from one read."""
        data, name = self.content(entry)
        return decode_with_mode(data, name, max_bytes=self.max_image_bytes)

    def load_draft(self, entry: ImageEntry, least: Least) -> LoadedImage:
        """Return the same, but a large JPEG at a part of its size; see `decode_with_mode`."""
        if not self.has_drafts:
            return self.load(entry)
        data, name = self.content(entry)
        return decode_with_mode(data, name, max_bytes=self.max_image_bytes, least=least)

    def content(self, entry: ImageEntry) -> tuple[bytes, str]:
        """Return the content of an image's file, and the name of the image in messages; errors as in `load`."""
        name = entry.image_id if entry.uri.endswith(entry.image_id) else f"{entry.image_id} ({entry.uri})"
        most = FILE_FACTOR * self.max_image_bytes
        try:
            data = read_bytes(entry.uri, most)
        except ABOUT_THE_FILE as error:
            raise UnreadableImageError(name, describe_cause(error)) from error
        except pa.ArrowInvalid as error:  # a key that the file system cannot have
            raise UnreadableImageError(name, f"there can be no such file: {error}") from error
        if len(data) > most:
            raise UnreadableImageError(
                name, f"its file has more than {most} bytes, {FILE_FACTOR} times the limit max_image_bytes"
            )
        return data, name

    def stamp(self, entry: ImageEntry) -> tuple[int, int] | None:
        """Return (size in bytes, modification time in ns) of the file, or None if it has none."""
        try:
            info = look_up(entry.uri)
        except (*ABOUT_THE_FILE, pa.ArrowInvalid):
            return None
        if info.type != fs.FileType.File or info.mtime_ns is None:
            return None
        return int(info.size), int(info.mtime_ns)


class ListedSource(FileSource):
    """Base of the sources whose images are named by a file: by a table, or by annotations."""

    allow_outside: bool = False
    """Take images that lie outside `folder`, by their path or by a link."""

    @property
    @abstractmethod
    def folder(self) -> str:
        """The absolute location below which the images must lie."""

    def content(self, entry: ImageEntry) -> tuple[bytes, str]:
        """Return the content of an image's file, and the image's name; a link out of the folder is unreadable."""
        folder, place = self.folder, absolute(entry.uri)
        if not self.allow_outside and not is_uri(place) and (is_uri(folder) or leads_out(place, folder)):
            cause = f"{entry.uri!r} lies or links outside {folder!r}, and allow_outside is not set"
            raise UnreadableImageError(entry.image_id, cause)
        return super().content(entry)

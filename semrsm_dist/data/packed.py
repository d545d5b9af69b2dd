"""Sources whose images are parts of larger files, and are read from there without being unpacked."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import ClassVar

from pyarrow import fs

from semrsm_dist.data.annotations import annotation_errors, list_below
from semrsm_dist.data.entries import ImageEntry, UnreadableImageError
from semrsm_dist.data.files import FILE_FACTOR, FileSource, describe_cause
from semrsm_dist.data.locations import (
    ABOUT_THE_FILE,
    absolute,
    below,
    is_folder,
    is_written_below,
    lies_in,
    locate_file,
    look_up,
)
from semrsm_dist.errors import InputError, MissingInputError, shorten

_MARK = "#"


class PackedSource(FileSource):
    """Base of the sources whose images are parts of files; the URI of an image is that of its file, and the part.

    An image is taken for unchanged if size and modification time of its file are.

    Parameters
    ----------
    path
        The folder that holds the files, at any depth, or one of them; or its URI.
    files
        Which files of a folder to take: a pattern with ``*`` and ``?`` for their paths below it.
    """

    endings: ClassVar[tuple[str, ...]]
    """What the names of such files end in."""

    files: str = "*"

    @abstractmethod
    def read_part(self, location: str, part: str, most: int) -> bytes:
        """Return the content of an image, but little more than `most` bytes: a longer result says that it is larger.

        Raises
        ------
        ValueError
            Saying why it cannot be read, in a clause.
        OSError, StorageError
            As `read_bytes`.
        """

    def content(self, entry: ImageEntry) -> tuple[bytes, str]:
        """Return the content of an image's part of its file, and the name of the image in messages."""
        location, part = _split_uri(entry.uri)
        most = FILE_FACTOR * self.max_image_bytes
        if not is_written_below(location, absolute(self.path)):
            raise UnreadableImageError(entry.image_id, f"its file {location!r} is none of {str(self.path)!r}")
        try:
            data = self.read_part(location, part, most)
        except ABOUT_THE_FILE as error:
            raise UnreadableImageError(entry.image_id, f"{location}: {describe_cause(error)}") from error
        except ValueError as error:  # of Arrow, too
            raise UnreadableImageError(entry.image_id, str(error)) from error
        if len(data) > most:
            raise UnreadableImageError(
                entry.image_id,
                f"it has more than {most} bytes, {FILE_FACTOR} times the limit max_image_bytes",
            )
        return data, entry.image_id

    def stamp(self, entry: ImageEntry) -> tuple[int, int] | None:
        """Return (size in bytes, modification time in ns) of the image's file, or None if it has none."""
        return super().stamp(replace(entry, uri=_split_uri(entry.uri)[0]))

    def would_list(self, location: str) -> bool:
        """Return whether a directory lies in the folder."""
        return lies_in(location, str(self.path))

    def list_packs(self) -> dict[str, str]:
        """Return the location of each file by its path below the folder without its ending, sorted.

        Raises InputError if there are none.
        """
        root, kinds = absolute(self.path), " or ".join(self.endings)
        if not is_folder(root):
            if look_up(root).type == fs.FileType.NotFound:
                raise MissingInputError(f"there is no folder or file {root!r}: check the path")
            with annotation_errors(root, "name a folder or a file"):
                locate_file(root)
            return {PurePosixPath(root).stem: root}
        there = list_below(root, "check the path")
        found = [name for name in there if fnmatchcase(name, self.files)]
        taken = [name for name in found if name.endswith(self.endings)]
        if not taken:
            others = shorten(found or there) or "nothing"
            raise MissingInputError(
                f"{root}: holds no file that ends in {kinds} and matches {self.files!r}, only {others}; check path and "
                f"files, or choose another source"
            )
        names = {name: name[: -len(next(filter(name.endswith, self.endings)))] for name in taken}
        if len(set(names.values())) < len(names):
            raise InputError(
                f"{root}: files differ in their endings alone, so ids of images would be repeated; choose some with "
                "data.files, a pattern for their names"
            )
        return {short: below(root, name) for name, short in names.items()}


def part_uri(location: str, part: str) -> str:
    """Return the URI of an image: of its file, and the part, which is text without ``#``."""
    return f"{location}{_MARK}{part}"


def _split_uri(uri: str) -> tuple[str, str]:
    location, _, part = uri.rpartition(_MARK)
    return location, part


def parse_numbers(part: str) -> tuple[int, int]:
    """Return the two numbers of a part written as ``1+2``; raises ValueError if it is not written so."""
    first, _, second = part.partition("+")
    if not (first.isdecimal() and second.isdecimal()):
        raise ValueError(f"{part!r} is not a part of a file")
    return int(first), int(second)

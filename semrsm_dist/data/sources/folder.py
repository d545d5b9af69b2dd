"""A folder of images, one sub-folder per class."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Literal

from semrsm_dist.data.entries import ImageEntry
from semrsm_dist.data.files import FileSource
from semrsm_dist.data.listing import extensions, list_images
from semrsm_dist.data.locations import below, join, lies_in
from semrsm_dist.errors import InputError, MissingInputError


class FolderImages(FileSource):
    """All images below a folder, sorted by their path.

    The label of an image is the sub-folder directly below `path` that holds it, at any depth; images directly in `path`
    have none. The image id is the path below the folder, with forward slashes. Files are taken by their ending, if
    Pillow decodes such images, and by their content if they have no ending; a warning counts the others. Names that
    start with a dot are skipped. Symbolic links are followed. `entries` raises InputError if there is no such
    folder or no image in it.

    Parameters
    ----------
    path : str or Path
        A folder, or the URI of one (``s3://bucket/prefix``).
    """

    source: Literal["folder"] = "folder"

    def entries(self) -> list[ImageEntry]:
        """Return the images, sorted by image id."""
        root = join(self.path)
        images = list_images(root)
        if not images:
            raise MissingInputError(
                f"no images in {str(self.path)!r}: give the folder that holds the images or the class folders. Taken "
                f"are files without an ending that hold an image, and those that end in "
                f"{', '.join(sorted(extensions()))} (in either case)"
            )
        return [_entry(root, name) for name in images]

    def would_list(self, location: str) -> bool:
        """Return whether a directory lies in the folder."""
        return lies_in(location, str(self.path))


def _entry(root: str, name: str) -> ImageEntry:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"the file name {name!r} in {root!r} is not valid Unicode, so no table can hold it. Rename the file"
        ) from None
    parts = PurePosixPath(name).parts
    return ImageEntry(name, below(root, name), (parts[0],) if len(parts) > 1 else ())

"""The files below a folder, and which of them are images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pyarrow import fs

from semrsm_dist.data.files import is_uri, locate
from semrsm_dist.errors import InputError

EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)


def is_image(name: str) -> bool:
    """Return whether a file below a folder is one of its images, by its extension."""
    path = PurePosixPath(name)
    return path.suffix.lower() in EXTENSIONS and not any(part.startswith(".") for part in path.parts)


def list_files(root: str) -> Iterator[str]:
    """Yield the files below a folder, at any depth, by their paths with forward slashes; links are followed.

    Parameters
    ----------
    root
        An absolute path, or a URI.

    Raises
    ------
    InputError
        If there is no such folder, or a part of it cannot be listed.
    """
    return _list_remote(root) if is_uri(root) else _list_local(Path(root))


def _list_local(root: Path) -> Iterator[str]:
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise InputError(f"the image folder {str(root)!r} {what}; give the path of a folder of images")
    ancestors = {root.resolve()}

    def walk(folder: Path, ancestors: set[Path]) -> Iterator[str]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except PermissionError as error:
            raise InputError(
                f"the folder {str(folder)!r} cannot be listed: permission denied. Its images would be missing; grant "
                f"access or move it away"
            ) from error
        for entry in entries:
            # A dangling link is an image that cannot be read; pipes and sockets are no images.
            if entry.is_file() or (entry.is_symlink() and not entry.is_dir()):
                yield Path(entry.path).relative_to(root).as_posix()
            elif (
                entry.is_dir() and (target := Path(entry.path).resolve()) not in ancestors
            ):  # circles end here
                yield from walk(Path(entry.path), ancestors | {target})

    yield from walk(root, ancestors)


def _list_remote(root: str) -> Iterator[str]:
    system, path = locate(root)
    try:
        found = system.get_file_info(fs.FileSelector(path, recursive=True))
    except FileNotFoundError as error:
        raise InputError(
            f"the image folder {root!r} does not exist; give the URI of a folder of images"
        ) from error
    for info in found:
        if info.type == fs.FileType.File:
            yield str(info.path).removeprefix(path).lstrip("/")

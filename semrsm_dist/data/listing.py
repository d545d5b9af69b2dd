"""The files below a folder, and which of them are images."""

from __future__ import annotations

import io
import logging
import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
from PIL import Image, UnidentifiedImageError
from pyarrow import fs

from semrsm_dist.data.decode import formats
from semrsm_dist.data.locations import below, is_uri, locate, open_file, storage_errors
from semrsm_dist.data.opening import NotAFileError
from semrsm_dist.errors import InputError, MissingInputError, counted, printable_name, shorten

_logger = logging.getLogger(__name__)

_LOOKS_AT_ONCE = 16  # files, perhaps far away


@lru_cache(maxsize=1)
def extensions() -> frozenset[str]:
    """Return the endings of files that Pillow decodes, in lower case: ``.png``, ``.jpeg``, ``.jfif``, ``.avif``, ..."""
    known = Image.registered_extensions().items()
    return frozenset(ending for ending, kind in known if kind in formats())


def is_image(name: str) -> bool:
    """Return whether a file below a folder is one of its images, by its ending; hidden files are not."""
    return _ending(name) in extensions() and not _is_hidden(name)


def list_images(root: str) -> list[str]:
    """Return the images below a folder, sorted: by their ending, and by their content where there is no ending.

    A warning counts the other files, hidden ones apart.

    Raises
    ------
    InputError
        If there is no such folder, or a part of it cannot be listed.
    StorageError
        If the storage fails.
    """
    endings = {name: _ending(name) for name in list_files(root) if not _is_hidden(name)}
    unnamed = [name for name, ending in endings.items() if not ending]
    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as threads:
        holds = threads.map(lambda name: _holds_image(below(root, name)), unnamed)
        found = {name for name, is_one in zip(unnamed, holds, strict=True) if is_one}
    images = sorted(name for name, ending in endings.items() if ending in extensions() or name in found)
    others = Counter(endings.values()) - Counter(endings[name] for name in images)
    if images and others:
        _logger.warning(
            "%s: skipped %s that Pillow does not read: %s",
            printable_name(root),
            counted(others.total(), "file"),
            shorten((f"{ending or 'no ending'} ({count})" for ending, count in others.most_common()), 10),
        )
    return images


def _ending(name: str) -> str:
    return posixpath.splitext(name)[1].lower().rstrip(".")


def _is_hidden(name: str) -> bool:
    return "/." in f"/{name}"


def _holds_image(location: str) -> bool:
    try:
        with open_file(location) as file:
            return _opens(file)
    except PermissionError:
        return True  # which the scan reports
    except (FileNotFoundError, NotAFileError):
        return False


def _opens(file: pa.NativeFile) -> bool:
    try:
        # Buffered, as Pillow reads lines of what may be text, which Arrow's files cannot.
        with Image.open(io.BufferedReader(file), formats=formats()):
            return True
    except Image.DecompressionBombError:
        return True  # which the scan reports
    except UnidentifiedImageError:
        return False


def list_files(root: str) -> Iterator[str]:
    """Yield the files below a folder, at any depth, by their paths with forward slashes; links are followed.

    Raises InputError if there is no such folder, or a part of it cannot be listed.
    """
    return _list_remote(root) if is_uri(root) else _list_local(Path(root))


def _list_local(root: Path) -> Iterator[str]:
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise MissingInputError(f"the image folder {str(root)!r} {what}; give the path of a folder of images")
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
            # A link that leads nowhere or a pipe with the name of an image is an image that cannot be read.
            is_folder = Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()
            if not is_folder:
                yield Path(entry.path).relative_to(root).as_posix()
            elif (target := Path(entry.path).resolve()) not in ancestors:  # circles end here
                yield from walk(Path(entry.path), ancestors | {target})

    yield from walk(root, ancestors)


def _list_remote(root: str) -> Iterator[str]:
    system, path = locate(root)
    try:
        with storage_errors(root):
            found = system.get_file_info(fs.FileSelector(path, recursive=True))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingInputError(
            f"the image folder {root!r} does not exist; give the URI of a folder of images"
        ) from error
    for info in found:
        if info.type == fs.FileType.File:
            yield str(info.path).removeprefix(path).lstrip("/")

"""Shared by the readers of annotated data sets: required files, listings, seeded samples."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from semrsm_dist.data.listing import list_files
from semrsm_dist.data.locations import ABOUT_THE_FILE, below, is_folder, read_bytes
from semrsm_dist.data.opening import NotAFileError
from semrsm_dist.errors import (
    InputError,
    MissingInputError,
    StorageError,
    counted,
    printable_name,
    reason_of,
    shorten,
)

_logger = logging.getLogger(__name__)


def list_below(folder: str, remedy: str) -> list[str]:
    """Return the files below a folder at any depth, as sorted paths with forward slashes.

    Raises InputError if there is no such folder; `remedy` says what to put there.
    """
    if not is_folder(folder):
        raise MissingInputError(f"there is no folder {folder!r}: {remedy}")
    return sorted(list_files(folder))


def read_annotation(location: str, remedy: str, most: int | None = None) -> bytes:
    """Return the content of an annotation file; with `most`, little more than this many bytes of it.

    Raises
    ------
    InputError
        There is no such file; `remedy` says what to put there.
    StorageError
        The storage fails, or reading is not permitted.
    """
    with annotation_errors(location, remedy):
        return read_bytes(location, most)


@contextmanager
def annotation_errors(location: str, remedy: str) -> Iterator[None]:
    """Report a file that is missing or protected; errors as in `read_annotation`."""
    try:
        yield
    except PermissionError as error:
        raise StorageError(f"{location}: cannot be read ({reason_of(error)}); grant access") from error
    except NotAFileError as error:
        raise InputError(f"{location}: {reason_of(error)}, so it was not opened: {remedy}") from error
    except ABOUT_THE_FILE as error:
        raise MissingInputError(f"there is no file {location!r}: {remedy}") from error


def read_lines(location: str, remedy: str) -> list[str]:
    """Return the non-empty lines of a text file; errors as in `read_annotation`."""
    try:
        text = read_annotation(location, remedy).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{location}: is not text ({error}); get the file again") from error
    return [line for line in text.splitlines() if line.strip()]


def read_json(location: str, remedy: str) -> Mapping[str, Any]:
    """Return the object that a JSON file holds; errors as in `read_annotation`, and for anything but an object."""
    return parse_json(read_annotation(location, remedy), location)


def parse_json(
    content: bytes, location: str, *, pairs_hook: Callable[[list[tuple[str, Any]]], object] | None = None
) -> Mapping[str, Any]:
    """Return the object that the content of a JSON file holds; `location` is the file, for messages.

    `pairs_hook` returns what to keep of an object, from its keys and values, as soon as it has been read. Raises
    InputError if the content is not JSON, or holds anything but an object.
    """
    try:
        document = json.loads(content, object_pairs_hook=pairs_hook)
    except (ValueError, RecursionError) as error:  # of JSON, its depth and the encoding
        raise InputError(f"{location}: not complete JSON ({error}); get the file again") from error
    if not isinstance(document, dict):
        raise InputError(
            f"{location}: holds a {type(document).__name__}, not an object with keys; get the file again"
        )
    return document


def place_below(folder: str, name: str, where: str) -> str:
    """Return the location of a file that an annotation file names.

    Raises InputError if it would lie outside the folder, or no file can have such a name; `where` is the annotation
    file.
    """
    if "\0" in name:
        raise InputError(
            f"{where}: {printable_name(name)!r} is no name that a file can have; correct the file, or get it again"
        )
    if ".." in PurePosixPath(name).parts or name.startswith("/"):
        raise InputError(
            f"{where}: {name!r} leads out of the folder of images {folder!r}; nothing was read: correct the file, or "
            "get it anew from its source"
        )
    return below(folder, name)


def draw_sample(names: Iterable[str], sample: int | None, seed: int) -> list[str]:
    """Draw a random sample of different names, and return it sorted; all names if there are fewer, or for None.

    Whether a name is drawn depends on the seed and on the names alone, not on their order; a smaller sample is part of
    a larger one of the same seed.
    """
    names = sorted(names)
    if sample is None or sample >= len(names):
        return names
    return sorted(sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())[:sample])


def warn_unlabelled(source: str, names: Sequence[str]) -> None:
    """Warn of images that have no annotations; they are kept, without labels."""
    if names:
        _logger.warning(
            "%s: no annotations of %s, kept without labels: %s",
            source,
            counted(len(names), "image"),
            shorten(names),
        )

"""What a data source provides of its images: entries, and pixels with content hashes."""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from semrsm_dist.errors import InputError, printable, shorten

if TYPE_CHECKING:
    from PIL import Image

Least: TypeAlias = Callable[[tuple[int, int]], tuple[int, int]]
"""Returns, for the width and height of an image, the least that are needed of them."""


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One image of a data set, before anything of it has been read.

    Attributes
    ----------
    image_id : str
        Unique within the data set; names the image in results and messages.
    uri : str
        Where it is: an absolute path, or a URI that its source understands.
    labels : tuple of str
        What it shows; empty if unknown.
    group : str or None
        Images of one group are near-duplicates (frames of one video); retrieval can exclude them.
    label_counts : tuple of int or None
        How many objects have each of the labels; None if unknown.
    label_areas : tuple of float or None
        The area of these objects as a share of the image's, from 0 to 1: where they overlap, it counts for each of
        them, but never beyond 1. None if unknown.

    Raises
    ------
    TypeError
        If one of them is of another type, or there are not as many counts or areas as labels.
    """

    image_id: str
    uri: str
    labels: tuple[str, ...] = ()
    group: str | None = None
    label_counts: tuple[int, ...] | None = None
    label_areas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        texts = (self.image_id, self.uri, *(self.labels or ()), self.group or "")
        if not isinstance(self.labels, tuple) or not all(isinstance(text, str) for text in texts):
            raise TypeError(
                f"{self!r}: image_id and uri must be str, labels a tuple of str, group str or None"
            )
        for numbers in (self.label_counts, self.label_areas):
            if numbers is not None and (
                not isinstance(numbers, tuple)
                or len(numbers) != len(self.labels)
                or not all(isinstance(number, int | float) for number in numbers)
            ):
                raise TypeError(
                    f"{self!r}: label_counts and label_areas must be tuples with one number for each label, or None"
                )


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """A decoded image, with what is known from reading its content once.

    Attributes
    ----------
    image : PIL.Image.Image
        RGB, decoded.
    mode : str
        Pillow's mode before the conversion to RGB, such as ``"L"``, ``"CMYK"`` or ``"I;16"``.
    sha256 : str
        Hash of the content, in hexadecimal digits.
    n_bytes : int
        Size of the content that was hashed.
    remark : str or None
        What the user should know about the image although it can be read.
    full_size : (int, int) or None
        Width and height of the whole image, if `image` is a draft of it: see `ImageSource.load_draft`.

    Raises
    ------
    TypeError
        If the image is not RGB, or the hash is not text.
    """

    image: Image.Image
    mode: str
    sha256: str
    n_bytes: int
    remark: str | None = None
    full_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if getattr(self.image, "mode", None) != "RGB" or not isinstance(self.sha256, str):
            raise TypeError(f"{self!r}: image must be a Pillow image of mode RGB, sha256 a str")


def smallest(size: tuple[int, int]) -> tuple[int, int]:
    """Return 1 x 1, as `Least` of an image of which only facts are wanted: a draft shows as well what is damaged."""
    return 1, 1


class UnreadableImageError(InputError):
    """One image cannot be opened or decoded; `name` is the image, `cause` what is wrong with it."""

    def __init__(self, name: str, cause: str) -> None:
        super().__init__(name, cause)  # both as args, so that the error survives pickling between processes
        self.name = name
        self.cause = cause

    def __str__(self) -> str:
        return printable(
            f"image {self.name!r} cannot be read: {self.cause}. It has no features: replace or remove it, or leave out "
            "such images with unreadable: skip"
        )


def check_unique_ids(image_ids: Iterable[str], source: str) -> None:
    """Raise `InputError` naming the ids that occur more than once in `source`."""
    repeated = [name for name, count in Counter(image_ids).items() if count > 1]
    if repeated:
        raise InputError(
            f"{source}: {len(repeated)} image id{' occurs' if len(repeated) == 1 else 's occur'} more than once "
            f"({shorten(map(repr, repeated))}); rows of the result could not be distinguished. Give every image an id "
            "of its own"
        )


# --- labels as text ------------------------------------------------------------------------------------

_JOINED = re.compile(r"""['"]\s+['"]""")
"""Texts without a comma between them, as NumPy writes arrays: Python would join them."""


def format_labels(labels: Sequence[str]) -> str:
    """Return labels as one text that `parse_labels` reads: joined by ``|``, or as JSON if that could be misread.

    >>> format_labels(("cat", "odd"))
    'cat|odd'
    >>> format_labels(("cat|odd",))
    '["cat|odd"]'
    """
    joined = "|".join(labels)
    is_plain = not joined.lstrip().startswith(("[", "{", '"')) and parse_labels(joined) == tuple(labels)
    return joined if is_plain else json.dumps(list(labels), ensure_ascii=False)


def parse_labels(text: str) -> tuple[str, ...]:
    """Return the labels in a text: with ``|`` between them, or written as JSON or as a list of Python.

    Raises ValueError if the text begins as JSON does, with a bracket, a brace or a quotation mark, but is neither a
    list of labels nor one label in quotation marks.
    """
    text = text.strip()
    if not text.startswith(("[", "{", '"')):
        return clean_labels(text.split("|"))
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None if _JOINED.search(text) else _evaluate(text)
    if not isinstance(found, list | str):
        raise ValueError(f"{text[:80]!r} is no list of labels")  # noqa: TRY004 - the table is at fault
    return clean_labels([found] if isinstance(found, str) else found)


def _evaluate(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def clean_labels(values: Iterable[object]) -> tuple[str, ...]:
    """Return labels without the blanks around them; missing (None or NaN) and blank ones are left out.

    Raises ValueError if one is neither text nor a number.
    """
    labels = []
    for value in values:
        if not isinstance(value, str | int | float | None):
            raise ValueError(f"{value!r} is neither text nor a number")  # noqa: TRY004 - the table is at fault
        labels.append("" if value is None or is_nan(value) else str(value).strip())
    return tuple(label for label in labels if label)


def is_nan(value: object) -> bool:
    """Return whether a value is the number that stands for a missing one."""
    return isinstance(value, float) and math.isnan(value)

"""What a data source provides of its images: entries, and pixels with content hashes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from semrsm_dist.errors import InputError, printable

if TYPE_CHECKING:
    from PIL import Image


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
    """

    image_id: str
    uri: str
    labels: tuple[str, ...] = ()
    group: str | None = None


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
    """

    image: Image.Image
    mode: str
    sha256: str
    n_bytes: int
    remark: str | None = None


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
        shown = ", ".join(repr(name) for name in repeated[:5]) + (", ..." if len(repeated) > 5 else "")
        raise InputError(
            f"{source}: {len(repeated)} image_id(s) occur more than once ({shown}); rows of the result could not "
            f"be distinguished. Give every image an id of its own"
        )

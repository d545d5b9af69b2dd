"""The interface of data sources: sections of the configuration that read themselves.

A run's `data` and `queries` each name a source. One that offers images derives from `ImageSource` and needs `entries`
and `load`. The package itself calls them by `list_entries` and `load_image`, which check what comes back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, ClassVar

from semrsm_dist.data.entries import ImageEntry, Least, LoadedImage, check_unique_ids
from semrsm_dist.data.objects import ObjectBox
from semrsm_dist.errors import ConfigError, InputError, SemrsmError, StorageError, printable_name
from semrsm_dist.fields import Section

if TYPE_CHECKING:
    from PIL import Image

ENTRY_POINTS = "semrsm_dist.data_sources"
"""The group of the entry points of data sources."""


class DataSource(Section, ABC):
    """Base of all data sources: their fields are the keys of the section.

    A run knows its images by the hashes in its manifest. So a field that only chooses among files (a path, a split, a
    sample) is not marked `AffectsResult`; one that makes other images out of the same files is, since a file that has
    not changed is not hashed again.

    Attributes
    ----------
    source : str
        The name of the source; each class narrows it to a literal that is also its default.
    """

    source: str

    def check(self) -> None:
        """Look whether what this section names is there, without reading images or features.

        Raises
        ------
        InputError
            Naming what is not there.
        """


class ImageSource(DataSource):
    """A source of images: cheap to construct and picklable, since it travels to the workers."""

    generated: ClassVar[bool] = False
    """Whether the images are computed in less time than it takes to hand them to a worker."""

    @abstractmethod
    def entries(self) -> Iterable[ImageEntry]:
        """Return all images in a fixed order with unique ids.

        Raises
        ------
        InputError
            If there are none, or what lists them cannot be used.
        """

    @abstractmethod
    def load(self, entry: ImageEntry) -> LoadedImage:
        """Return the decoded RGB image and the hash of the content, both from one read.

        Raises
        ------
        UnreadableImageError
            Naming the image and the cause.
        StorageError
            If the storage fails, which says nothing about the image.
        """

    @property
    def has_drafts(self) -> bool:
        """Whether `load_draft` does more than `load`."""
        return False

    def load_draft(self, entry: ImageEntry, least: Least) -> LoadedImage:
        """Return the same as `load`, but perhaps the image at a part of its size, if that takes less time.

        `least` returns the least width and height for those of the whole image.
        """
        return self.load(entry)

    def boxes(self) -> Iterable[ObjectBox] | None:
        """Return the boxes around the objects of the images of `entries`, or None if the source knows none.

        Raises
        ------
        InputError
            As `entries`.
        """
        return None

    def check(self) -> None:
        """List the images; errors as in `list_entries`."""
        list_entries(self)

    def read(self, entry: ImageEntry) -> Image.Image:
        """Return the decoded RGB image; errors as in `load_image`."""
        return load_image(self, entry).image

    def stamp(self, entry: ImageEntry) -> tuple[int, int] | None:
        """Return (size in bytes, modification time in ns) without reading, or None where an image has none."""
        return None

    def would_list(self, location: str) -> bool:
        """Return whether image files below a path or URI, such as a run's figures, would be listed as images."""
        return False


def list_entries(source: ImageSource) -> list[ImageEntry]:
    """Return the images of a source, in its order.

    Raises
    ------
    InputError
        As in `ImageSource.entries`, if ids are repeated, or text is not valid Unicode.
    ConfigError, StorageError
        As in `calling`.
    """
    with calling(source, "entries"):
        entries = list(source.entries())
        strange = [entry for entry in entries if not isinstance(entry, ImageEntry)]
        if strange:
            raise TypeError(f"it returned {strange[0]!r}, which is not an ImageEntry")
    check_unique_ids((entry.image_id for entry in entries), f"data source {source.source!r}")
    for entry in entries:
        _require_unicode(entry)
    return entries


def list_boxes(source: ImageSource) -> list[ObjectBox] | None:
    """Return the boxes around the objects of a source's images, None if it knows none; errors as in `list_entries`."""
    with calling(source, "boxes"):
        found = source.boxes()
        return None if found is None else [ObjectBox(*box) for box in found]


def _require_unicode(entry: ImageEntry) -> None:
    """Raise InputError for text with half a character, as JSON can have it: no table can hold it."""
    try:
        "".join((entry.image_id, entry.uri, *entry.labels, entry.group or "")).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"image {printable_name(entry.image_id)!r}: its id, location, labels or group are not valid Unicode "
            f"({error.reason}), so no table can hold them; correct what names them"
        ) from error


def load_image(source: ImageSource, entry: ImageEntry, least: Least | None = None) -> LoadedImage:
    """Return an image of a source, or with `least` a draft of it: see `ImageSource.load_draft`.

    Raises
    ------
    UnreadableImageError, StorageError
        As in `ImageSource.load`.
    ConfigError, StorageError
        As in `calling`.
    """
    with calling(source, "load", entry):
        loaded = source.load(entry) if least is None else source.load_draft(entry, least)
        if not isinstance(loaded, LoadedImage):
            raise TypeError(f"it returned {loaded!r}, which is not a LoadedImage")
    return loaded


@contextmanager
def calling(source: ImageSource, method: str, entry: ImageEntry | None = None) -> Iterator[None]:
    """Report what goes wrong in a method of a source of another distribution.

    Raises
    ------
    StorageError
        For an error of the operating system.
    ConfigError
        For any other exception that no method of a source may raise: with the class, its distribution and the remedy.
    """
    try:
        yield
    except (SemrsmError, MemoryError):
        raise
    except Exception as error:
        if type(source).__module__.startswith("semrsm_dist."):
            raise  # a defect of this package, which keeps its traceback
        about = f" of image {entry.image_id!r}" if entry else ""
        home = f"data source {source.source!r} ({_home(source)})"
        found = f"{home}: {method}{about} raised {type(error).__name__}: {error}"
        if isinstance(error, OSError) and error.errno is not None:
            raise StorageError(
                f"{found}. The image may well be good: check the disk or the network and repeat"
            ) from error
        raise ConfigError(
            f"{found}. Nothing of it can be used: correct or update the distribution, or choose another source. "
            "(A source raises InputError for what it cannot list, and UnreadableImageError for one bad image.)"
        ) from error


def _home(source: ImageSource) -> str:
    kind = type(source)
    owners = {
        f" of the distribution {point.dist.name} {point.dist.version}"
        for point in metadata.entry_points(group=ENTRY_POINTS)
        if point.dist and point.module == kind.__module__
    }
    return f"{kind.__module__}:{kind.__qualname__}{''.join(sorted(owners)[:1])}"

"""The interface of data sources: sections of the configuration that read themselves.

A run's `data` and `queries` each name a source. One that offers images derives from `ImageSource` and needs `entries`
and `load`; a source of ready-made features derives from `DataSource` alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from semrsm_dist.fields import Section

if TYPE_CHECKING:
    from PIL import Image

    from semrsm_dist.data.entries import ImageEntry, LoadedImage


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
    def entries(self) -> list[ImageEntry]:
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

    def check(self) -> None:
        """List the images; errors as in `entries`."""
        self.entries()

    def read(self, entry: ImageEntry) -> Image.Image:
        """Return the decoded RGB image; errors as in `load`."""
        return self.load(entry).image

    def stamp(self, entry: ImageEntry) -> tuple[int, int] | None:
        """Return (size in bytes, modification time in ns) without reading, or None where an image has none."""
        return None

    def would_list(self, path: Path) -> bool:
        """Return whether image files below `path`, such as a run's figures, would be listed as images."""
        return False

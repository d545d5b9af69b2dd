"""Bases of the sources whose images and annotations may lie apart, and of those in the format of COCO."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from semrsm_dist.data.annotations import draw_sample
from semrsm_dist.data.coco_format import (
    Annotation,
    CocoDocument,
    box_of,
    name_categories,
    named_objects,
    tally_objects,
)
from semrsm_dist.data.entries import ImageEntry
from semrsm_dist.data.files import ListedSource
from semrsm_dist.data.locations import absolute, exists, join
from semrsm_dist.data.objects import ObjectBox
from semrsm_dist.errors import InputError
from semrsm_dist.fields import Count, Location, Seed


class AnnotatedSource(ListedSource):
    """Base of data sets with a file of annotations.

    Parameters
    ----------
    path
        Folder with all that belongs to the data set, or its URI.
    annotations, images
        The annotation file and the folder of images, if they are elsewhere.
    sample, seed
        Size and seed of a random sample, see `draw_sample`; None takes all.
    allow_outside
        Take images that are links out of the folder of images.
    """

    annotations: Location | None = None
    images: Location | None = None
    sample: Count | None = None
    seed: Seed = 0

    @property
    def folder(self) -> str:
        """The folder of images."""
        return join(self.images) if self.images else self._image_folder()

    @abstractmethod
    def _image_folder(self) -> str:
        """Return the location of the images in the data set's own layout."""

    def _find(self, given: Location | None, *names: str) -> str:
        """Return the location of a file that has one of several names, the first if none is there."""
        if given:
            return absolute(given)
        places = [join(self.path, name) for name in names]
        return places[0] if len(places) == 1 else next(filter(exists, places), places[0])


class CocoFormatSource(AnnotatedSource):
    """Base of data sets in the format of COCO, in the order of the images' ids; see `AnnotatedSource`."""

    def entries(self) -> list[ImageEntry]:
        """Return the images of the split."""
        document = self._document()
        tally = tally_objects(
            document, named_objects(document, self._objects(document), self._names(document))
        )
        return [tally.describe(self._entry(document, name)) for name in self._draw(document)]

    def boxes(self) -> list[ObjectBox]:
        """Return the boxes around the objects that give the images of the split their labels."""
        document = self._document(with_boxes=True)
        drawn = set(self._draw(document))
        return [
            box_of(document, one)
            for one, _ in named_objects(document, self._objects(document), self._names(document))
            if str(one.image_id) in drawn
        ]

    @abstractmethod
    def _document(self, *, with_boxes: bool = False) -> CocoDocument:
        """Return what is needed of the annotation file."""

    @abstractmethod
    def _entry(self, document: CocoDocument, name: str) -> ImageEntry:
        """Return an image as the file lists it, without labels."""

    def _images(self, document: CocoDocument) -> Mapping[str, Mapping[str, Any]]:
        """Return the images of the split by id."""
        if not document.images:
            raise InputError(
                f"{document.where}: lists no images, so there is nothing to do; give another file"
            )
        return document.images

    def _objects(self, document: CocoDocument) -> Iterable[Annotation]:
        """Return the annotations that count."""
        return document.annotations

    def _names(self, document: CocoDocument) -> dict[object, str]:
        """Return the names of the categories by id."""
        return name_categories(document)

    def _draw(self, document: CocoDocument) -> list[str]:
        """Return the ids of the images that are taken: numbers in their order, before all others."""
        return sorted(draw_sample(self._images(document), self.sample, self.seed), key=_by_number)


def _by_number(name: str) -> tuple[bool, int, str]:
    is_number = name.isascii() and name.isdigit()
    digits = name.lstrip("0") if is_number else ""
    return not is_number, len(digits), digits or name

"""Pascal VOC: photographs with objects of 20 classes, and whatever else is annotated in its format.

Everingham et al., The Pascal Visual Object Classes Challenge, IJCV 2010 and 2015.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import PurePosixPath
from typing import Literal
from xml.etree import ElementTree

from semrsm_dist.data.annotations import (
    draw_sample,
    list_below,
    place_below,
    read_annotation,
    read_lines,
    warn_unlabelled,
)
from semrsm_dist.data.entries import ImageEntry, check_unique_ids
from semrsm_dist.data.files import ListedSource
from semrsm_dist.data.locations import absolute, exists, is_folder, join
from semrsm_dist.data.objects import Corners, ObjectBox, ObjectTally, box_area
from semrsm_dist.errors import InputError, MissingInputError, counted, shorten
from semrsm_dist.fields import Count, Seed

_logger = logging.getLogger(__name__)

IMAGES, ANNOTATIONS, SPLITS = "JPEGImages", "Annotations", "ImageSets/Main"
MAX_ANNOTATION_BYTES = 2**24
"""Of an annotation: those of Pascal VOC take about a thousandth."""

_MARKED = re.compile(r"\S+\s+(-1|0|1)")
_READ_AT_ONCE = 16  # small files, perhaps on remote storage


class VocImages(ListedSource):
    """The images of a split of Pascal VOC, sorted by name; the labels are the classes of their objects.

    The area of an object is that of its box. Parts of objects (head, hand, foot) are not objects. Images without an
    annotation file, such as the test images from 2008 on, stay, without labels, and a warning names them. So do those
    of which nothing is annotated. Images that are listed but not there are unreadable. `entries` raises
    InputError if a folder or list is missing, or an annotation is not of this format.

    Parameters
    ----------
    path
        Folder with ``JPEGImages/``, ``Annotations/`` and ``ImageSets/Main/``, such as ``VOCdevkit/VOC2007``; or its
        URI.
    split
        A list in ``ImageSets/Main``, such as "train", "val", "trainval" or "test"; None takes every annotated image.
    difficult, truncated
        Whether objects that are marked so count.
    sample, seed
        Size and seed of a random sample, see `draw_sample`; None takes all.
    allow_outside
        Take images that are links out of ``JPEGImages``.
    """

    source: Literal["voc"] = "voc"
    split: str | None = "trainval"
    difficult: bool = True
    truncated: bool = True
    sample: Count | None = None
    seed: Seed = 0

    @property
    def folder(self) -> str:
        """The folder of images."""
        return join(self.path, IMAGES)

    def entries(self) -> list[ImageEntry]:
        """Return the images of the split."""
        drawn = self._draw()
        warn_unlabelled(
            f"Pascal VOC {self.split or ''}".rstrip(), [name for name, has in drawn.items() if not has]
        )
        with ThreadPoolExecutor(_READ_AT_ONCE) as threads:
            entries = list(threads.map(self._entry, drawn, drawn.values()))
        unknown = [entry.image_id for entry in entries if entry.labels and entry.label_areas is None]
        if unknown:
            _logger.warning(
                "%s: the areas of labels are unknown in %s (%s), whose annotations have no size or no box, or a "
                "box that ends before it begins",
                join(self.path, ANNOTATIONS),
                counted(len(unknown), "image"),
                shorten(unknown),
            )
        return entries

    def boxes(self) -> list[ObjectBox]:
        """Return the boxes of the objects that count, of the images of the split."""
        annotated = [name for name, has in self._draw().items() if has]
        with ThreadPoolExecutor(_READ_AT_ONCE) as threads:
            return list(chain.from_iterable(threads.map(self._read_boxes, annotated)))

    def _draw(self) -> dict[str, bool]:
        """Return the names of the images that are taken, and whether each is annotated."""
        annotated = {file.removesuffix(".xml") for file in self._list(ANNOTATIONS) if file.endswith(".xml")}
        drawn = draw_sample(self._names(annotated), self.sample, self.seed)
        return {name: name in annotated for name in drawn}

    def _names(self, annotated: Collection[str]) -> Collection[str]:
        """Return the names of the images of the split, without an ending."""
        where = join(self.path, ANNOTATIONS if self.split is None else f"{SPLITS}/{self.split}.txt")
        names = annotated if self.split is None else list(self._read_split(where, annotated))
        if not names:
            raise MissingInputError(f"{where}: lists no images: {self._remedy()}")
        check_unique_ids(names, where)
        return names

    def _read_split(self, where: str, annotated: Collection[str]) -> Iterator[str]:
        if not exists(where):
            there = sorted(file.removesuffix(".txt") for file in self._list(SPLITS))
            raise MissingInputError(
                f"there is no list {where!r}, but {shorten(there, 8) or 'no other either'}: choose one with --set "
                f"data.split=NAME, take every annotated image with --set data.split=null, or {self._remedy()}"
            )
        for number, line in enumerate(read_lines(where, self._remedy()), start=1):
            name = line.strip()
            if _MARKED.fullmatch(name) and name not in annotated:
                raise InputError(
                    f"{where}: entry {number}: {name!r} is a name and a mark, as in the list of one class, where marks "
                    "say which images are of it; choose a list of names alone, such as train, val or trainval"
                )
            yield name

    def _list(self, folder: str) -> list[str]:
        """Return the files of a folder, which may be missing where the images are not annotated or not split."""
        where = join(self.path, folder)
        if not is_folder(join(self.path, IMAGES)):
            raise MissingInputError(f"there is no folder {join(self.path, IMAGES)!r}: {self._remedy()}")
        return list_below(where, self._remedy()) if is_folder(where) else []

    def _entry(self, name: str, is_annotated: bool) -> ImageEntry:
        where = self._annotation(name)
        if not is_annotated:
            return ImageEntry(name, place_below(self.folder, f"{name}.jpg", where))
        root = _parse(read_annotation(where, self._remedy(), MAX_ANNOTATION_BYTES), where)
        tally = ObjectTally()
        for label, thing in self._objects(root, where):
            tally.add(name, label, box_area(*_box(thing, root)))
        uri = place_below(self.folder, _file_name(root, name), where)
        return tally.describe(ImageEntry(name, uri))

    def _read_boxes(self, name: str) -> list[ObjectBox]:
        where = self._annotation(name)
        root = _parse(read_annotation(where, self._remedy(), MAX_ANNOTATION_BYTES), where)
        return [ObjectBox.within(name, *_box(thing, root)) for _, thing in self._objects(root, where)]

    def _annotation(self, name: str) -> str:
        return place_below(join(self.path, ANNOTATIONS), f"{name}.xml", join(self.path, SPLITS))

    def _objects(self, root: ElementTree.Element, where: str) -> Iterator[tuple[str, ElementTree.Element]]:
        """Yield the objects that count, with their labels."""
        for number, thing in enumerate(root.iterfind("object"), start=1):
            label = (thing.findtext("name") or "").strip()
            if not label:
                raise InputError(f"{where}: object {number} has no name; correct the file, or get it again")
            if (self.difficult or not _flag(thing, "difficult")) and (
                self.truncated or not _flag(thing, "truncated")
            ):
                yield label, thing

    def _remedy(self) -> str:
        return (
            "unpack an archive of Pascal VOC, such as VOCtrainval_06-Nov-2007.tar (host.robots.ox.ac.uk/pascal/VOC), "
            f"and give the folder of its year, such as VOCdevkit/VOC2007; this was {absolute(self.path)}"
        )


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a document type, without which no entities can be declared that expand to more than they take."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it declares a document type, which may hide entities")


def _parse(content: bytes, where: str) -> ElementTree.Element:
    """Return the root of an annotation."""
    if len(content) > MAX_ANNOTATION_BYTES:
        raise InputError(
            f"{where}: has more than {MAX_ANNOTATION_BYTES} bytes, so it is no annotation of an image; remove it"
        )
    try:
        root: ElementTree.Element = ElementTree.fromstring(
            content, ElementTree.XMLParser(target=_NoDoctype())
        )
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last of an unknown encoding
        raise InputError(
            f"{where}: is not an annotation in XML ({error}); correct the file, or get it again"
        ) from error
    if root.tag != "annotation":
        raise InputError(f"{where}: holds <{root.tag}>, not <annotation>; correct the file, or get it again")
    return root


def _file_name(root: ElementTree.Element, name: str) -> str:
    """Return the name of the image's file; some programs leave it out, or its ending."""
    given = (root.findtext("filename") or "").strip() or name
    return given if PurePosixPath(given).suffix else f"{given}.jpg"


def _flag(thing: ElementTree.Element, name: str) -> bool:
    return (thing.findtext(name) or "").strip() in ("1", "true", "True", "yes")


def _box(thing: ElementTree.Element, root: ElementTree.Element) -> tuple[Corners, float, float]:
    """Return a box, whose first and last pixels, counted from 1, belong to it, and the size of the image."""
    left, top, right, bottom = (_number(thing, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
    width, height = (_number(root, f"size/{name}") for name in ("width", "height"))
    return (left - 1, top - 1, right, bottom), width, height


def _number(element: ElementTree.Element, path: str) -> float:
    try:
        return float(element.findtext(path) or "nan")
    except ValueError:
        return float("nan")

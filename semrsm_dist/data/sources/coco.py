"""COCO: everyday scenes with objects of 80 categories, and whatever else is annotated in its format.

Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from semrsm_dist.data.annotated import CocoFormatSource
from semrsm_dist.data.annotations import place_below
from semrsm_dist.data.coco_format import Annotation, CocoDocument, read_document
from semrsm_dist.data.entries import ImageEntry
from semrsm_dist.data.locations import absolute, join


class CocoImages(CocoFormatSource):
    """The images that an annotation file of COCO lists, sorted by id; the labels are the categories of their objects.

    The area of an object is that of its outline or, where the file does not say it, of its box. Images of which nothing
    is annotated stay, without labels. Images that are listed but not there are unreadable. Outlines and masks are not
    kept: reading `instances_train2017.json` (450 MB) takes about 1.2 GB of memory. `entries` raises InputError if a
    file is missing or is not of this format, ids are repeated, or annotations are of images that it does not list.

    Parameters
    ----------
    path
        Folder with ``annotations/instances_{split}.json`` and the images in ``{split}/``; or its URI.
    split
        Such as "val2017" or "train2017".
    crowds
        Whether the annotation of a crowd, which stands for an unknown number of objects, counts, as one object.
    annotations, images, sample, seed, allow_outside
        See `AnnotatedSource`.
    """

    source: Literal["coco"] = "coco"
    split: str = "val2017"
    crowds: bool = True

    def _image_folder(self) -> str:
        return join(self.path, self.split)

    def _document(self, *, with_boxes: bool = False) -> CocoDocument:
        where = self._find(self.annotations, f"annotations/instances_{self.split}.json")
        return read_document(where, self._remedy(), image_keys=("file_name",), with_boxes=with_boxes)

    def _entry(self, document: CocoDocument, name: str) -> ImageEntry:
        file = str(document.images[name]["file_name"])
        return ImageEntry(name, place_below(self.folder, file, document.where))

    def _objects(self, document: CocoDocument) -> Iterable[Annotation]:
        return (one for one in document.annotations if self.crowds or not one.is_crowd)

    def _remedy(self) -> str:
        return (
            f"unpack annotations_trainval2017.zip and val2017.zip (cocodataset.org) into {absolute(self.path)}, or say "
            "where they are with --set data.path=FOLDER, or data.annotations=FILE and data.images=FOLDER"
        )

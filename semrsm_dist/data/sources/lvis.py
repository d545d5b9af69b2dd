"""LVIS: images of COCO with objects of 1 203 categories, many of them rare.

Gupta et al., LVIS: A Dataset for Large Vocabulary Instance Segmentation, CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import Field

from semrsm_dist.data.annotated import CocoFormatSource
from semrsm_dist.data.annotations import place_below
from semrsm_dist.data.coco_format import Annotation, CocoDocument, read_document
from semrsm_dist.data.entries import ImageEntry
from semrsm_dist.data.locations import absolute, join
from semrsm_dist.errors import InputError, shorten

Frequency = Literal["r", "c", "f"]


class LvisImages(CocoFormatSource):
    """The images that an annotation file of LVIS lists, sorted by id; the labels are the categories of their objects.

    Of each image, LVIS annotates only some categories, so a missing label does not say that there is no such object.
    Images of which nothing is annotated stay, without labels. Images that are listed but not there are unreadable.
    `entries` raises InputError if a file is missing or is not of this format, ids are repeated, or annotations are
    of images that it does not list.

    Parameters
    ----------
    path
        Folder with ``lvis_v1_{split}.json``, and with COCO's folders ``train2017/`` and ``val2017/``: either split has
        images of both. Or its URI.
    split
        "train" or "val".
    frequencies
        Which categories are labels, by the number of training images that have them: "r" (rare, at most 10), "c"
        (common, at most 100) or "f" (frequent).
    annotations, images, sample, seed, allow_outside
        See `AnnotatedSource`; `images` is the folder with COCO's folders.
    """

    source: Literal["lvis"] = "lvis"
    split: Literal["train", "val"] = "val"
    frequencies: Annotated[tuple[Frequency, ...], Field(min_length=1)] = ("r", "c", "f")

    def _image_folder(self) -> str:
        return join(self.path)

    def _document(self, *, with_boxes: bool = False) -> CocoDocument:
        where = self._find(self.annotations, f"lvis_v1_{self.split}.json")
        return read_document(where, self._remedy(), with_boxes=with_boxes)

    def _entry(self, document: CocoDocument, name: str) -> ImageEntry:
        return ImageEntry(name, place_below(self.folder, _file_name(document, name), document.where))

    def _objects(self, document: CocoDocument) -> Iterable[Annotation]:
        ignored = set(self._ignored(document))
        return (one for one in document.annotations if one.category_id not in ignored)

    def _ignored(self, document: CocoDocument) -> list[object]:
        """Return the ids of the categories of other frequencies."""
        if set(self.frequencies) == {"r", "c", "f"}:
            return []
        unknown = [
            category["name"]
            for category in document.categories
            if category.get("frequency") not in get_args(Frequency)
        ]
        if unknown:
            raise InputError(
                f"{document.where}: {len(unknown)} categories have no frequency r, c or f ({shorten(unknown)}) and "
                "cannot be chosen by it; get the file again, or remove data.frequencies"
            )
        return [
            category["id"]
            for category in document.categories
            if category["frequency"] not in self.frequencies
        ]

    def _remedy(self) -> str:
        return (
            f"unpack lvis_v1_{self.split}.json.zip (lvisdataset.org) and COCO's train2017.zip and val2017.zip "
            f"(cocodataset.org) into {absolute(self.path)}, or say where they are with --set data.path=FOLDER, or "
            "data.annotations=FILE and data.images=FOLDER"
        )


def _file_name(document: CocoDocument, name: str) -> str:
    """Return the path of an image below COCO's folder: the address where it was published ends in it."""
    image = document.images[name]
    address = image.get("coco_url")
    try:
        parts = PurePosixPath(urlsplit(address).path).parts if isinstance(address, str) else ()
    except ValueError as error:
        raise InputError(
            f"{document.where}: image {name}: coco_url is {address!r}, which is no address ({error}); get the file "
            "again"
        ) from error
    if len(parts) > 2:
        return "/".join(parts[-2:])
    if image.get("file_name"):
        return str(image["file_name"])
    raise InputError(
        f"{document.where}: image {name} has neither coco_url nor file_name, so its file is unknown; get the file again"
    )

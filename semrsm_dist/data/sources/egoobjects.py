"""EgoObjects: frames of videos seen from the head, labelled with the objects in them.

Zhu et al., EgoObjects, ICCV 2023. Frames of one `group_id` show the same scene: near-duplicates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from semrsm_dist.data.annotated import CocoFormatSource
from semrsm_dist.data.annotations import place_below, read_json
from semrsm_dist.data.coco_format import CocoDocument, names_by_id, read_document, take_list
from semrsm_dist.data.entries import ImageEntry
from semrsm_dist.data.locations import absolute, join
from semrsm_dist.errors import InputError
from semrsm_dist.fields import Location

# Split -> file of annotations, and the value of `subset` that its images must have.
SPLITS: dict[str, tuple[str, str | None]] = {
    "train": ("train", None),
    "eval": ("eval", None),
    "val": ("eval", "val"),
    "test": ("eval", "test"),
}


class EgoObjectsImages(CocoFormatSource):
    """The images that an annotation file of EgoObjects lists, sorted by id; the label set is the categories present.

    Images of which nothing is annotated stay, without labels. Objects without a category, of which there are some, add
    no label; nor do those of a category without a name, which a warning names. Images that are listed but not there are
    unreadable. `entries` raises InputError if a file is missing or is not of this format, or annotations are of
    images it does not list.

    Parameters
    ----------
    path
        Folder with ``EgoObjectsV1_unified_{train,eval,metadata}.json`` and the images in ``images/``; or its URI.
    split
        "train", "eval", or the parts "val" and "test" of "eval".
    metadata
        The file with the categories' names, if it is elsewhere.
    annotations, images, sample, seed, allow_outside
        See `AnnotatedSource`.
    """

    source: Literal["egoobjects"] = "egoobjects"
    split: Literal["train", "eval", "val", "test"] = "eval"
    metadata: Location | None = None

    def _image_folder(self) -> str:
        return join(self.path, "images")

    def _document(self, *, with_boxes: bool = False) -> CocoDocument:
        where = self._find(self.annotations, _file(SPLITS[self.split][0]))
        return read_document(
            where, self._remedy(), image_keys=("url",), needs_category=False, with_boxes=with_boxes
        )

    def _images(self, document: CocoDocument) -> Mapping[str, Mapping[str, Any]]:
        subset = SPLITS[self.split][1]
        images = {
            name: image
            for name, image in document.images.items()
            if subset is None or image.get("subset") == subset
        }
        if not images:
            raise InputError(
                f"{document.where}: no images of the split {self.split!r}; choose one of {', '.join(SPLITS)}"
            )
        return images

    def _entry(self, document: CocoDocument, name: str) -> ImageEntry:
        image = document.images[name]
        group = None if image.get("group_id") is None else str(image["group_id"])
        return ImageEntry(name, place_below(self.folder, str(image["url"]), document.where), group=group)

    def _names(self, document: CocoDocument) -> dict[object, str]:
        """Return category id -> name: from the annotation file, or from the metadata where that has none."""
        found = list(document.categories)
        where = document.where
        if not found:
            where = self._find(self.metadata, _file("metadata"))
            metadata = read_json(where, f"the annotations hold no names of categories; {self._remedy()}")
            for key in ("cat_det_cats", "categories"):
                if metadata.get(key):
                    found += take_list(metadata, key, ("id", "name"), where)
        if not found:
            raise InputError(f"{where}: names no categories, so no image has a label; {self._remedy()}")
        return names_by_id(found)

    def _remedy(self) -> str:
        return (
            "put EgoObjectsV1_unified_train.json, _eval.json, _metadata.json and the folder images/ of EgoObjects "
            f"(github.com/facebookresearch/EgoObjects) into {absolute(self.path)}, or say where they are with "
            "--set data.path=FOLDER"
        )


def _file(name: str) -> str:
    return f"EgoObjectsV1_unified_{name}.json"

"""EgoObjects: frames of videos seen from the head, labelled with the objects in them.

Zhu et al., EgoObjects, ICCV 2023. Frames of one `group_id` show the same scene: near-duplicates.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from semrsm_dist.data.annotations import draw_sample, place_below, read_json, shorten
from semrsm_dist.data.entries import ImageEntry, check_unique_ids
from semrsm_dist.data.files import ListedSource
from semrsm_dist.data.locations import absolute, join
from semrsm_dist.errors import InputError
from semrsm_dist.fields import Count, Location, Seed

_logger = logging.getLogger(__name__)

# Split -> file of annotations, and the value of `subset` that its images must have.
SPLITS: dict[str, tuple[str, str | None]] = {
    "train": ("train", None),
    "eval": ("eval", None),
    "val": ("eval", "val"),
    "test": ("eval", "test"),
}


class EgoObjectsImages(ListedSource):
    """The images that an annotation file of EgoObjects lists, sorted by id; the label set is the categories present.

    Images of which nothing is annotated stay, without labels. Objects without a category, of which there are
    some, add no label; nor do those of a category without a name, which a warning names. Images that are listed but
    not there are unreadable.

    Parameters
    ----------
    path
        Folder with ``EgoObjectsV1_unified_{train,eval,metadata}.json`` and the images in ``images/``; or its URI.
    split
        "train", "eval", or the parts "val" and "test" of "eval".
    annotations, metadata, images
        The annotation file, the file with the categories' names, and the folder of images, if they are elsewhere.
    sample, seed
        Size and seed of a random sample, see `draw_sample`; None takes all.
    allow_outside
        Take images that are links out of the folder of images.

    Raises
    ------
    InputError
        From `entries`: a file is missing or is not of this format, or annotations are of images it does not list.
    """

    source: Literal["egoobjects"] = "egoobjects"
    split: Literal["train", "eval", "val", "test"] = "eval"
    annotations: Location | None = None
    metadata: Location | None = None
    images: Location | None = None
    sample: Count | None = None
    seed: Seed = 0

    @property
    def folder(self) -> str:
        """The folder of images."""
        return join(self.images) if self.images else join(self.path, "images")

    def entries(self) -> list[ImageEntry]:
        """Return the images of the split."""
        file, subset = SPLITS[self.split]
        where = self._file(self.annotations, file)
        document = read_json(where, self._remedy())
        listed = _entries(document, "images", ("id", "url"), where)
        check_unique_ids((str(image["id"]) for image in listed), where)
        images = {
            str(image["id"]): image for image in listed if subset is None or image.get("subset") == subset
        }
        if not images:
            raise InputError(
                f"{where}: no images of the split {self.split!r}; choose one of {', '.join(SPLITS)}"
            )
        objects = _entries(document, "annotations", ("image_id",), where)
        _require_listed(objects, {str(image["id"]) for image in listed}, where)
        labels = _labels_by_image(objects, self._names(document), where)
        folder = self.folder
        return [
            ImageEntry(
                name,
                place_below(folder, str(images[name]["url"]), where),
                tuple(sorted(labels.get(name, ()))),
                None if images[name].get("group_id") is None else str(images[name]["group_id"]),
            )
            for name in draw_sample(images, self.sample, self.seed)
        ]

    def _names(self, document: Mapping[str, Any]) -> dict[Any, str]:
        """Return category id -> name: from the annotation file, or from the metadata where that has none."""
        where = self._file(self.annotations, SPLITS[self.split][0])
        found = _entries(document, "categories", ("id", "name"), where) if document.get("categories") else []
        if not found:
            where = self._file(self.metadata, "metadata")
            metadata = read_json(where, f"the annotations hold no names of categories; {self._remedy()}")
            for key in ("cat_det_cats", "categories"):
                if metadata.get(key):
                    found += _entries(metadata, key, ("id", "name"), where)
        if not found:
            raise InputError(f"{where}: names no categories, so no image has a label; {self._remedy()}")
        return {category["id"]: str(category["name"]) for category in found}

    def _file(self, given: Location | None, name: str) -> str:
        return absolute(given) if given else join(self.path, f"EgoObjectsV1_unified_{name}.json")

    def _remedy(self) -> str:
        return (
            "put EgoObjectsV1_unified_train.json, _eval.json, _metadata.json and the folder images/ of EgoObjects "
            f"(github.com/facebookresearch/EgoObjects) into {absolute(self.path)}, or say where they are with "
            "--set data.path=FOLDER"
        )


def _entries(
    document: Mapping[str, Any], key: str, needed: Sequence[str], where: str
) -> list[dict[str, Any]]:
    """Return a list of a JSON file, each entry of which must have the needed keys."""
    entries = document.get(key)
    if not isinstance(entries, list):
        raise InputError(
            f"{where}: has no list {key!r}, so it is not an annotation file of EgoObjects; get it again"
        )
    for index, entry in enumerate(entries):
        missing = [name for name in needed if not isinstance(entry, dict) or entry.get(name) is None]
        if missing:
            raise InputError(f"{where}: {key}[{index}] lacks {', '.join(missing)}; get the file again")
    return entries


def _require_listed(objects: Sequence[Mapping[str, Any]], images: Collection[str], where: str) -> None:
    strays = [str(thing["image_id"]) for thing in objects if str(thing["image_id"]) not in images]
    if strays:
        raise InputError(
            f"{where}: {len(strays)} annotations are of {len(set(strays))} images that it does not list "
            f"({shorten(dict.fromkeys(strays))}), so it is not complete; get the file again"
        )


def _labels_by_image(
    objects: Sequence[Mapping[str, Any]], names: Mapping[Any, str], where: str
) -> dict[str, set[str]]:
    labels: dict[str, set[str]] = defaultdict(set)
    nameless: list[Any] = []
    for thing in objects:
        category = thing.get("category_id")
        if category in names:
            labels[str(thing["image_id"])].add(names[category])
        elif category is not None:
            nameless.append(category)
    if nameless:
        _logger.warning(
            "%s: %d annotations are of %d categories without a name (%s) and add no label",
            where,
            len(nameless),
            len(set(nameless)),
            shorten(dict.fromkeys(nameless)),
        )
    return labels

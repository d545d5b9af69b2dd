"""EgoObjects: frames of videos seen from the head, labelled with the objects in them.

Zhu et al., EgoObjects, ICCV 2023. Frames of one `group_id` show the same scene: near-duplicates.
"""

from __future__ import annotations

from typing import Literal

from semrsm_dist.data.annotations import draw_sample, place_below, read_json
from semrsm_dist.data.coco_format import CocoDocument, names_by_id, read_document, take_list, tally_objects
from semrsm_dist.data.entries import ImageEntry
from semrsm_dist.data.files import ListedSource
from semrsm_dist.data.locations import absolute, join
from semrsm_dist.errors import InputError
from semrsm_dist.fields import Count, Location, Seed

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
        document = read_document(where, self._remedy(), image_keys=("url",), needs_category=False)
        images = {
            name: image
            for name, image in document.images.items()
            if subset is None or image.get("subset") == subset
        }
        if not images:
            raise InputError(
                f"{where}: no images of the split {self.split!r}; choose one of {', '.join(SPLITS)}"
            )
        tally = tally_objects(document, self._names(document))
        folder = self.folder
        return [
            tally.describe(
                ImageEntry(
                    name,
                    place_below(folder, str(images[name]["url"]), where),
                    group=None if images[name].get("group_id") is None else str(images[name]["group_id"]),
                )
            )
            for name in draw_sample(images, self.sample, self.seed)
        ]

    def _names(self, document: CocoDocument) -> dict[object, str]:
        """Return category id -> name: from the annotation file, or from the metadata where that has none."""
        found = list(document.categories)
        where = self._file(self.annotations, SPLITS[self.split][0])
        if not found:
            where = self._file(self.metadata, "metadata")
            metadata = read_json(where, f"the annotations hold no names of categories; {self._remedy()}")
            for key in ("cat_det_cats", "categories"):
                if metadata.get(key):
                    found += take_list(metadata, key, ("id", "name"), where)
        if not found:
            raise InputError(f"{where}: names no categories, so no image has a label; {self._remedy()}")
        return names_by_id(found)

    def _file(self, given: Location | None, name: str) -> str:
        return absolute(given) if given else join(self.path, f"EgoObjectsV1_unified_{name}.json")

    def _remedy(self) -> str:
        return (
            "put EgoObjectsV1_unified_train.json, _eval.json, _metadata.json and the folder images/ of EgoObjects "
            f"(github.com/facebookresearch/EgoObjects) into {absolute(self.path)}, or say where they are with "
            "--set data.path=FOLDER"
        )

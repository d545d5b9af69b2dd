"""COCO: everyday scenes with objects of 80 categories, and whatever else is annotated in its format.

Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014.
"""

from __future__ import annotations

from typing import Literal

from semrsm_dist.data.annotations import draw_sample, place_below
from semrsm_dist.data.coco_format import name_categories, read_document, tally_objects
from semrsm_dist.data.entries import ImageEntry
from semrsm_dist.data.files import ListedSource
from semrsm_dist.data.locations import absolute, join
from semrsm_dist.errors import InputError
from semrsm_dist.fields import Count, Location, Seed


class CocoImages(ListedSource):
    """The images that an annotation file of COCO lists, sorted by id; the labels are the categories of their objects.

    The area of an object is that of its outline or, where the file does not say it, of its box. Images of which nothing
    is annotated stay, without labels. Images that are listed but not there are unreadable. Outlines and masks are
    not kept: reading `instances_train2017.json` (450 MB) takes about 1.2 GB of memory.

    Parameters
    ----------
    path
        Folder with ``annotations/instances_{split}.json`` and the images in ``{split}/``; or its URI.
    split
        Such as "val2017" or "train2017".
    annotations, images
        The annotation file and the folder of images, if they are elsewhere.
    crowds
        Whether the annotation of a crowd, which stands for an unknown number of objects, counts, as one object.
    sample, seed
        Size and seed of a random sample, see `draw_sample`; None takes all.
    allow_outside
        Take images that are links out of the folder of images.

    Raises
    ------
    InputError
        From `entries`: a file is missing or is not of this format, ids are repeated, or annotations are of images
        that it does not list.
    """

    source: Literal["coco"] = "coco"
    split: str = "val2017"
    annotations: Location | None = None
    images: Location | None = None
    crowds: bool = True
    sample: Count | None = None
    seed: Seed = 0

    @property
    def folder(self) -> str:
        """The folder of images."""
        return join(self.images) if self.images else join(self.path, self.split)

    def entries(self) -> list[ImageEntry]:
        """Return the images of the split."""
        where = (
            absolute(self.annotations)
            if self.annotations
            else join(self.path, "annotations", f"instances_{self.split}.json")
        )
        document = read_document(where, self._remedy(), image_keys=("file_name",))
        if not document.images:
            raise InputError(f"{where}: lists no images, so there is nothing to do; give another file")
        tally = tally_objects(document, name_categories(document), crowds=self.crowds)
        folder = self.folder
        return [
            tally.describe(
                ImageEntry(name, place_below(folder, str(document.images[name]["file_name"]), where))
            )
            for name in draw_sample(document.images, self.sample, self.seed)
        ]

    def _remedy(self) -> str:
        return (
            f"unpack annotations_trainval2017.zip and val2017.zip (cocodataset.org) into {absolute(self.path)}, or say "
            "where they are with --set data.path=FOLDER, or data.annotations=FILE and data.images=FOLDER"
        )

"""Cityscapes: street scenes with a polygon around everything in them.

Cordts et al., The Cityscapes Dataset, CVPR 2016. A sequence is one drive through a city.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any, Literal

from semrsm_dist.data.annotations import (
    draw_sample,
    list_below,
    read_json,
    warn_unlabelled,
)
from semrsm_dist.data.entries import ImageEntry
from semrsm_dist.data.files import FileSource
from semrsm_dist.data.locations import absolute, join
from semrsm_dist.errors import InputError, MissingInputError, did_you_mean
from semrsm_dist.fields import Count, Seed

IMAGE, POLYGONS = "_leftImg8bit.png", "_gtFine_polygons.json"
NO_OBJECTS = ("ego vehicle", "out of roi", "rectification border", "unlabeled")
"""Labels of regions without content, or of the car with the camera, which are in nearly every image."""

LABELS = frozenset(
    {
        *NO_OBJECTS,
        *("static", "dynamic", "ground", "road", "sidewalk", "parking", "rail track"),
        *("building", "wall", "fence", "guard rail", "bridge", "tunnel"),
        *("pole", "polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky"),
        *("person", "rider", "car", "truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
        "license plate",
    }
)
_GROUP = "group"
_READ_AT_ONCE = 16  # small files, perhaps on remote storage


class CityscapesImages(FileSource):
    """Left images of Cityscapes, sorted by name; the label set is what the fine annotations mark in them.

    The group of an image is its city and sequence. Deleted polygons count for nothing; a label such as `cargroup` is
    that of the things in the group. Images without a file of polygons are kept, without labels, and a warning names
    them; polygons without their image make an unreadable image. `entries` raises InputError if a folder is missing
    or empty, or a file of polygons is not of this format.

    Parameters
    ----------
    path
        Folder with ``leftImg8bit/{split}/{city}/`` and ``gtFine/{split}/{city}/``, or its URI.
    split
        "train", "val" or "test" (whose annotations are not public).
    ignore
        Labels to leave out.
    sample, seed
        Size and seed of a random sample, see `draw_sample`; None takes all.
    """

    source: Literal["cityscapes"] = "cityscapes"
    split: Literal["train", "val", "test"] = "val"
    ignore: tuple[str, ...] = NO_OBJECTS
    sample: Count | None = None
    seed: Seed = 0

    def entries(self) -> list[ImageEntry]:
        """Return the images of the split."""
        images, polygons = self._frames("leftImg8bit", IMAGE), self._frames("gtFine", POLYGONS)
        names = {PurePosixPath(frame).name: frame for frame in (*images, *polygons)}
        if not names:
            raise MissingInputError(
                f"no images {'*' + IMAGE!r} below {join(self.path, 'leftImg8bit', self.split)!r}: {self._remedy()}"
            )
        drawn = [names[name] for name in draw_sample(names, self.sample, self.seed)]
        warn_unlabelled(f"Cityscapes {self.split}", [frame for frame in drawn if frame not in polygons])
        with ThreadPoolExecutor(_READ_AT_ONCE) as threads:
            labels = threads.map(lambda frame: self._labels(frame) if frame in polygons else (), drawn)
            return [self._record(frame, found) for frame, found in zip(drawn, labels, strict=True)]

    def _frames(self, kind: str, ending: str) -> set[str]:
        """Return ``{city}/{city}_{sequence}_{frame}`` of the files of a kind."""
        files = list_below(join(self.path, kind, self.split), self._remedy())
        return {file.removesuffix(ending) for file in files if file.endswith(ending)}

    def _record(self, frame: str, labels: tuple[str, ...]) -> ImageEntry:
        name = PurePosixPath(frame).name
        uri = join(self.path, "leftImg8bit", self.split, frame + IMAGE)
        return ImageEntry(name, uri, labels, group=name.rpartition("_")[0] or None)

    def _labels(self, frame: str) -> tuple[str, ...]:
        where = join(self.path, "gtFine", self.split, frame + POLYGONS)
        objects = read_json(where, self._remedy()).get("objects")
        if not isinstance(objects, list):
            raise InputError(f"{where}: has no list 'objects', so it holds no polygons; get the file again")
        found = {
            _label(thing, where)
            for thing in objects
            if not (isinstance(thing, Mapping) and thing.get("deleted"))
        }
        return tuple(sorted(found.difference(self.ignore)))

    def _remedy(self) -> str:
        return (
            "put leftImg8bit/ and gtFine/ of Cityscapes (leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip "
            f"from cityscapes-dataset.com, unpacked) into {absolute(self.path)}, or say where they are with "
            "--set data.path=FOLDER"
        )


def _label(thing: Any, where: str) -> str:
    label = thing.get("label") if isinstance(thing, Mapping) else None
    if label in LABELS:
        return str(label)
    single = str(label).removesuffix(_GROUP)
    if single in LABELS:
        return single
    raise InputError(
        f"{where}: {label!r} is no Cityscapes label{did_you_mean(str(label), LABELS) or '.'} Correct the file, or "
        "get it again"
    )

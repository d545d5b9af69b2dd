"""Open Images: photographs with boxes around objects of 600 classes.

Kuznetsova et al., The Open Images Dataset V4, IJCV 2020.
"""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from semrsm_dist.data.annotations import (
    annotation_errors,
    draw_sample,
    list_below,
    read_annotation,
    shorten,
    warn_unlabelled,
)
from semrsm_dist.data.entries import ImageEntry, check_unique_ids
from semrsm_dist.data.files import ListedSource
from semrsm_dist.data.listing import is_image
from semrsm_dist.data.locations import absolute, below, exists, join, locate, storage_errors
from semrsm_dist.data.objects import ObjectTally
from semrsm_dist.errors import InputError, MissingInputError, counted, first_line
from semrsm_dist.fields import Count, Location, Seed

_logger = logging.getLogger(__name__)

BOXES = ("{split}-annotations-bbox.csv", "oidv6-{split}-annotations-bbox.csv")
CLASSES = ("oidv7-class-descriptions-boxable.csv", "class-descriptions-boxable.csv")
_BORDERS = ("XMin", "XMax", "YMin", "YMax")


class OpenImages(ListedSource):
    """The images of a split of Open Images that are there, sorted by id; the labels are the classes of their boxes.

    Few have all images of Open Images, so the folder of images says which there are. Those without boxes stay, without
    labels, and a warning names them. The file of boxes is read piece by piece.

    Parameters
    ----------
    path
        Folder with ``{split}-annotations-bbox.csv`` (or ``oidv6-...``), ``class-descriptions-boxable.csv`` (or
        ``oidv7-...``), and the images in ``{split}/``; or its URI.
    split
        "train", "validation" or "test".
    annotations, classes, images
        The boxes, the names of the classes, and the folder of images, if they are elsewhere.
    sample, seed
        Size and seed of a random sample, see `draw_sample`; None takes all.
    allow_outside
        Take images that are links out of the folder of images.

    Raises
    ------
    InputError
        From `entries`: a file is missing or is not of this format, or no image has a box.
    """

    source: Literal["open-images"] = "open-images"
    split: Literal["train", "validation", "test"] = "validation"
    annotations: Location | None = None
    classes: Location | None = None
    images: Location | None = None
    sample: Count | None = None
    seed: Seed = 0

    @property
    def folder(self) -> str:
        """The folder of images."""
        return join(self.images) if self.images else join(self.path, self.split)

    def entries(self) -> list[ImageEntry]:
        """Return the images of the split that are there."""
        folder, where = self.folder, self._find(self.annotations, BOXES)
        paths = [file for file in list_below(folder, self._remedy()) if is_image(file)]
        if not paths:
            raise MissingInputError(f"no images in {folder!r}: {self._remedy()}")
        check_unique_ids((PurePosixPath(path).stem for path in paths), folder)
        files = {PurePosixPath(path).stem: path for path in paths}
        drawn = draw_sample(files, self.sample, self.seed)
        names = _read_classes(self._find(self.classes, CLASSES), self._remedy())
        tally = _tally_boxes(where, drawn, names, self._remedy())
        entries = [tally.describe(ImageEntry(name, below(folder, files[name]))) for name in drawn]
        unlabelled = [entry.image_id for entry in entries if not entry.labels]
        if len(unlabelled) == len(entries):
            raise InputError(
                f"{where}: has no box in any of the {len(entries)} images in {folder!r}, so none would have a label; "
                f"if {self.split!r} is not their split, choose another with --set data.split=NAME"
            )
        warn_unlabelled(f"Open Images {self.split}", unlabelled)
        return entries

    def _find(self, given: Location | None, names: Iterable[str]) -> str:
        """Return the location of a file that has had different names, the first one if none is there."""
        if given:
            return absolute(given)
        places = [join(self.path, name.format(split=self.split)) for name in names]
        return next((place for place in places if exists(place)), places[0])

    def _remedy(self) -> str:
        boxes, classes = BOXES[0].format(split=self.split), CLASSES[0]
        return (
            f"put {boxes} and {classes} (storage.googleapis.com/openimages) into {absolute(self.path)}, and the images "
            f"into its folder {self.split}, or say where they are with --set data.path=FOLDER, or "
            "data.annotations=FILE, data.classes=FILE and data.images=FOLDER"
        )


def _read_classes(where: str, remedy: str) -> dict[str, str]:
    """Return the id of a class -> its name; later editions have a header."""
    try:
        text = read_annotation(where, remedy).decode("utf-8-sig")
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        rows = [[cell.strip() for cell in row] for row in lines if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{where}: is not a table of classes ({error}); get the file again") from error
    if rows and rows[0] == ["LabelName", "DisplayName"]:
        rows = rows[1:]
    if not rows or any(len(row) != 2 or not all(row) for row in rows):
        raise InputError(
            f"{where}: must hold the id and the name of a class in each line, such as /m/0k4j,Car; get the file again"
        )
    names = {label: name for label, name in rows}  # noqa: C416 - rows are lists
    ambiguous = [label for label, name in rows if names[label] != name]
    if ambiguous:
        raise InputError(
            f"{where}: gives {len(ambiguous)} classes another name further down ({shorten(ambiguous)}), and which one "
            "is meant is not known; get the file again"
        )
    return names


def _tally_boxes(where: str, images: Collection[str], names: Mapping[str, str], remedy: str) -> ObjectTally:
    """Count the boxes of some images, reading the file piece by piece."""
    tally, nameless = ObjectTally(), Counter[str]()
    wanted = pa.array(images, pa.string())
    for batch in _read_batches(where, remedy):
        table = batch.filter(pc.is_in(batch["ImageID"], value_set=wanted))
        table = table.append_column("area", pa.array(_areas(table)))
        for row in (
            table.group_by(["ImageID", "LabelName"])
            .aggregate([("area", "sum"), ("area", "count")])
            .to_pylist()
        ):
            if row["LabelName"] in names:
                tally.add(row["ImageID"], names[row["LabelName"]], row["area_sum"], row["area_count"])
            else:
                nameless[str(row["LabelName"])] += row["area_count"]
    if nameless:
        _logger.warning(
            "%s: no label from %s of classes without a name (%s)",
            where,
            counted(nameless.total(), "object"),
            shorten(nameless),
        )
    return tally


def _read_batches(where: str, remedy: str) -> Iterable[pa.Table]:
    system, path = locate(where)
    options = pyarrow.csv.ConvertOptions(
        include_columns=["ImageID", "LabelName", *_BORDERS],
        column_types={
            "ImageID": pa.string(),
            "LabelName": pa.string(),
            **dict.fromkeys(_BORDERS, pa.float64()),
        },
    )
    try:
        with (
            annotation_errors(where, remedy),
            storage_errors(where),
            system.open_input_stream(path) as stream,
            pyarrow.csv.open_csv(stream, convert_options=options) as batches,
        ):
            for batch in batches:
                yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, KeyError) as error:
        raise InputError(
            f"{where}: is not a table of boxes with the columns ImageID, LabelName, {', '.join(_BORDERS)} "
            f"({first_line(error)}); get the file again"
        ) from error


def _areas(table: pa.Table) -> NDArray[np.float64]:
    """Return the areas of boxes as shares of their images.

    NaN, unknown, if a box ends before it begins or lies outside of its image, as boxes in pixels do.
    """
    borders = [table[name].to_numpy() for name in _BORDERS]
    left, right, top, bottom = (np.clip(border, 0.0, 1.0) for border in borders)
    areas = (right - left) * (bottom - top)
    inside = (borders[0] < 1) & (borders[2] < 1) & (borders[1] > 0) & (borders[3] > 0)
    return np.where((right >= left) & (bottom >= top) & inside, areas, np.nan)

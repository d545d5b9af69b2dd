"""Open Images: photographs with boxes around objects of 600 classes.

Kuznetsova et al., The Open Images Dataset V4, IJCV 2020.
"""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from semrsm_dist.data.annotated import AnnotatedSource
from semrsm_dist.data.annotations import (
    annotation_errors,
    draw_sample,
    list_below,
    read_annotation,
    warn_unlabelled,
)
from semrsm_dist.data.entries import ImageEntry, check_unique_ids
from semrsm_dist.data.listing import is_image
from semrsm_dist.data.locations import absolute, below, join, locate_file, storage_errors
from semrsm_dist.data.objects import ObjectBox, ObjectTally
from semrsm_dist.errors import InputError, MissingInputError, counted, first_line, shorten
from semrsm_dist.fields import Location

_logger = logging.getLogger(__name__)

BOXES = ("{split}-annotations-bbox.csv", "oidv6-{split}-annotations-bbox.csv")
CLASSES = ("oidv7-class-descriptions-boxable.csv", "class-descriptions-boxable.csv")
_BORDERS = ("XMin", "XMax", "YMin", "YMax")


class OpenImages(AnnotatedSource):
    """The images of a split of Open Images that are there, sorted by id; the labels are the classes of their boxes.

    Few have all images of Open Images, so the folder of images says which there are. Those without boxes stay, without
    labels, and a warning names them. The file of boxes is read piece by piece. `entries` raises InputError if a file
    is missing or is not of this format, or no image has a box.

    Parameters
    ----------
    path
        Folder with ``{split}-annotations-bbox.csv`` (or ``oidv6-...``), ``class-descriptions-boxable.csv`` (or
        ``oidv7-...``), and the images in ``{split}/``; or its URI.
    split
        "train", "validation" or "test".
    classes
        The names of the classes, if they are elsewhere.
    annotations, images, sample, seed, allow_outside
        See `AnnotatedSource`.
    """

    source: Literal["open-images"] = "open-images"
    split: Literal["train", "validation", "test"] = "validation"
    classes: Location | None = None

    def _image_folder(self) -> str:
        return join(self.path, self.split)

    def entries(self) -> list[ImageEntry]:
        """Return the images of the split that are there."""
        files, where = self._draw(), self._boxes_file()
        tally = _tally_boxes(where, files, self._names(), self._remedy())
        entries = [tally.describe(ImageEntry(name, below(self.folder, file))) for name, file in files.items()]
        unlabelled = [entry.image_id for entry in entries if not entry.labels]
        if len(unlabelled) == len(entries):
            raise InputError(
                f"{where}: has no box in any of the {len(entries)} images in {self.folder!r}, so none would have a "
                f"label; if {self.split!r} is not their split, choose another with --set data.split=NAME"
            )
        warn_unlabelled(f"Open Images {self.split}", unlabelled)
        return entries

    def boxes(self) -> Iterator[ObjectBox]:
        """Yield the boxes of the images of the split that are there."""
        names = self._names()
        for table in _select_boxes(self._boxes_file(), self._draw(), self._remedy()):
            labels, images = table["LabelName"].to_pylist(), table["ImageID"].to_pylist()
            for image, label, *corners in zip(images, labels, *_corners(table), strict=True):
                if label in names:
                    yield ObjectBox(image, *map(float, corners))

    def _draw(self) -> dict[str, str]:
        """Return the files of the images that are taken, by id."""
        folder = self.folder
        paths = [file for file in list_below(folder, self._remedy()) if is_image(file)]
        if not paths:
            raise MissingInputError(f"no images in {folder!r}: {self._remedy()}")
        check_unique_ids((PurePosixPath(path).stem for path in paths), folder)
        files = {PurePosixPath(path).stem: path for path in paths}
        return {name: files[name] for name in draw_sample(files, self.sample, self.seed)}

    def _boxes_file(self) -> str:
        return self._find(self.annotations, *(name.format(split=self.split) for name in BOXES))

    def _names(self) -> dict[str, str]:
        return _read_classes(self._find(self.classes, *CLASSES), self._remedy())

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
    for boxes in _select_boxes(where, images, remedy):
        left, top, right, bottom = _corners(boxes)
        table = boxes.append_column("area", pa.array((right - left) * (bottom - top)))
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


def _select_boxes(where: str, images: Collection[str], remedy: str) -> Iterator[pa.Table]:
    """Yield the boxes of some images, piece by piece."""
    wanted = pa.array(list(images), pa.string())
    for batch in _read_batches(where, remedy):
        yield batch.filter(pc.is_in(batch["ImageID"], value_set=wanted))


def _read_batches(where: str, remedy: str) -> Iterable[pa.Table]:
    options = pyarrow.csv.ConvertOptions(
        include_columns=["ImageID", "LabelName", *_BORDERS],
        column_types={
            "ImageID": pa.string(),
            "LabelName": pa.string(),
            **dict.fromkeys(_BORDERS, pa.float64()),
        },
    )
    try:
        with annotation_errors(where, remedy), storage_errors(where):
            system, path = locate_file(where)
            with (
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


def _corners(table: pa.Table) -> list[NDArray[np.float64]]:
    """Return left, upper, right and lower borders of the parts of boxes that lie in their images, as shares of these.

    NaN, unknown, if a box ends before it begins or lies outside of its image, as boxes in pixels do.
    """
    left, right, top, bottom = (table[name].to_numpy() for name in _BORDERS)
    known = (right >= left) & (bottom >= top) & (left < 1) & (top < 1) & (right > 0) & (bottom > 0)
    return [np.where(known, np.clip(border, 0.0, 1.0), np.nan) for border in (left, top, right, bottom)]

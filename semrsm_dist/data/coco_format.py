"""Annotation files in the format of COCO: lists of images, of annotated objects and of categories, in one JSON file.

Outlines and masks are dropped while the file is being read, object by object, so that they are never in memory
together. The file is, once as bytes and once as text: at most twice its size, and 0.3 kB for each object.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from semrsm_dist.data.annotations import parse_json, read_annotation
from semrsm_dist.data.entries import check_unique_ids
from semrsm_dist.data.objects import ObjectBox, ObjectTally
from semrsm_dist.errors import InputError, counted, shorten

_logger = logging.getLogger(__name__)


class Annotation(NamedTuple):
    """One annotated object; area in square pixels, box as left, top, width and height in pixels, None if unknown."""

    id: object
    image_id: object
    category_id: object
    area: float | None
    is_crowd: bool
    box: tuple[float, ...] | None = None


@dataclass(frozen=True)
class CocoDocument:
    """What is needed of an annotation file."""

    where: str
    images: Mapping[str, Mapping[str, Any]]
    """As they are in the file, by id."""
    annotations: Sequence[Annotation]
    """In the order of the file."""
    categories: Sequence[Mapping[str, Any]]
    """As they are in the file; empty if it has none."""


def read_document(
    where: str,
    remedy: str,
    *,
    image_keys: Sequence[str] = (),
    needs_category: bool = True,
    with_boxes: bool = False,
) -> CocoDocument:
    """Read an annotation file.

    Parameters
    ----------
    where
        The file.
    remedy
        What to put there if it is missing.
    image_keys
        What every image must have, beside its id.
    needs_category
        Whether every annotation must have a category.
    with_boxes
        Whether boxes are kept, which takes another 0.15 kB for each object.

    Raises
    ------
    InputError
        It is missing or not of this format, ids of images or annotations are repeated, or annotations are of images
        that it does not list.
    StorageError
        The storage fails, or reading is not permitted.
    """
    keep = partial(_keep, with_boxes=with_boxes)
    document = parse_json(read_annotation(where, remedy), where, pairs_hook=keep)
    listed = take_list(document, "images", ("id", *image_keys), where)
    check_unique_ids((str(image["id"]) for image in listed), where)
    images = {str(image["id"]): image for image in listed}
    found = document.get("annotations")
    if not isinstance(found, list):
        raise _not_coco(where, "annotations")
    for index, annotation in enumerate(found):
        if not isinstance(annotation, Annotation) or annotation.image_id is None:
            raise InputError(f"{where}: annotations[{index}] lacks image_id; get the file again")
        if needs_category and annotation.category_id is None:
            raise InputError(
                f"{where}: annotations[{index}] lacks category_id, and without categories no image has a label; give "
                "a file of annotated objects, such as instances_val2017.json"
            )
    _require_listed(found, images, where)
    _require_different(
        (one.id for one in found if one.id is not None), "annotation", "objects would be counted twice", where
    )
    categories = (
        take_list(document, "categories", ("id", "name"), where) if document.get("categories") else []
    )
    return CocoDocument(where, images, found, categories)


def name_categories(document: CocoDocument) -> dict[object, str]:
    """Return the names of the categories by id; raises InputError if there are none, or an id is repeated."""
    if not document.categories:
        raise InputError(
            f"{document.where}: names no categories, so no image would have a label; give a file of annotated objects, "
            "such as instances_val2017.json"
        )
    _require_different(
        (category["id"] for category in document.categories),
        "category",
        "which label an object has is not known",
        document.where,
    )
    return names_by_id(document.categories)


def names_by_id(categories: Iterable[Mapping[str, Any]]) -> dict[object, str]:
    """Return the names of categories by id, the last of those that are repeated; a blank one is none."""
    names = {_hashable(category["id"]): str(category["name"]).strip() for category in categories}
    return {category: name for category, name in names.items() if name}


def named_objects(
    document: CocoDocument, objects: Iterable[Annotation], names: Mapping[object, str]
) -> Iterator[tuple[Annotation, str]]:
    """Yield annotated objects with their labels; `names` are those of the categories, by id.

    Those without a category are left out, and those of a category without a name, which a warning counts at the end.
    """
    nameless = Counter[object]()
    for annotation in objects:
        category = annotation.category_id
        if category in names:
            yield annotation, names[category]
        elif category is not None:
            nameless[category] += 1
    if nameless:
        _logger.warning(
            "%s: no label from %s of categories without a name (%s)",
            document.where,
            counted(nameless.total(), "annotation"),
            shorten(nameless),
        )


def tally_objects(document: CocoDocument, objects: Iterable[tuple[Annotation, str]]) -> ObjectTally:
    """Count the objects of images by label."""
    pixels = {name: _count_pixels(image) for name, image in document.images.items()}
    tally = ObjectTally()
    for annotation, label in objects:
        image = str(annotation.image_id)
        whole = pixels[image]
        share = annotation.area / whole if annotation.area is not None and whole else None
        tally.add(image, label, share)
    return tally


def box_of(document: CocoDocument, annotation: Annotation) -> ObjectBox:
    """Return the box around an object, from a document that was read with boxes."""
    name = str(annotation.image_id)
    image = document.images[name]
    sizes = [float(image[side]) if _is_size(image.get(side)) else math.nan for side in ("width", "height")]
    left, top, width, height = annotation.box or (math.nan,) * 4
    return ObjectBox.within(name, (left, top, left + width, top + height), *sizes)


def take_list(
    document: Mapping[str, Any], key: str, needed: Sequence[str], where: str
) -> list[dict[str, Any]]:
    """Return a list of a JSON file, each entry of which must have the needed keys.

    Raises InputError if there is no such list, or an entry lacks one.
    """
    entries = document.get(key)
    if not isinstance(entries, list):
        raise _not_coco(where, key)
    for index, entry in enumerate(entries):
        missing = [name for name in needed if not isinstance(entry, dict) or entry.get(name) is None]
        if missing:
            raise InputError(f"{where}: {key}[{index}] lacks {', '.join(missing)}; get the file again")
    return entries


def _not_coco(where: str, key: str) -> InputError:
    return InputError(
        f"{where}: has no list {key!r}, so it is not an annotation file in the format of COCO; get it again"
    )


def _keep(pairs: list[tuple[str, Any]], *, with_boxes: bool) -> object:
    """Return an object of JSON, an annotation without its outline."""
    found = dict(pairs)
    if "image_id" not in found:
        return None if "counts" in found and "size" in found else found  # a mask, run by run
    category = _hashable(found.get("category_id"))
    is_crowd = found.get("iscrowd") not in (None, 0, "0")
    box = _box(found.get("bbox")) if with_boxes else None
    return Annotation(found.get("id"), found["image_id"], category, _area(found), is_crowd, box)


def _box(value: object) -> tuple[float, ...] | None:
    """Return left, top, width and height; None if they are no such numbers."""
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_size, value[2:])):
        return None
    is_finite = all(isinstance(number, int | float) and abs(number) <= sys.float_info.max for number in value)
    return tuple(map(float, value)) if is_finite else None


def _hashable(value: object) -> object:
    return json.dumps(value) if isinstance(value, dict | list) else value


def _area(annotation: Mapping[str, Any]) -> float | None:
    """Return the area of an object, or that of its box (left, top, width, height); None if unknown."""
    box, area = annotation.get("bbox"), annotation.get("area")
    if not _is_size(area) and isinstance(box, list) and len(box) == 4 and all(map(_is_size, box[2:])):
        area = box[2] * box[3]
    return float(area) if _is_size(area) else None  # type: ignore[arg-type]  # it is a number


def _is_size(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value <= sys.float_info.max  # type: ignore[operator]  # it is a number


def _count_pixels(image: Mapping[str, Any]) -> float | None:
    width, height = image.get("width"), image.get("height")
    return float(width) * float(height) if _is_size(width) and _is_size(height) else None  # type: ignore[arg-type]


def _require_listed(found: Iterable[Annotation], images: Collection[str], where: str) -> None:
    strays = [str(one.image_id) for one in found if str(one.image_id) not in images]
    if strays:
        raise InputError(
            f"{where}: {counted(len(strays), 'annotation')} {'is' if len(strays) == 1 else 'are'} of "
            f"{counted(len(set(strays)), 'image')} that it does not list "
            f"({shorten(dict.fromkeys(strays))}), so it is not complete; get the file again, or remove them"
        )


def _require_different(ids: Iterable[object], kind: str, consequence: str, where: str) -> None:
    repeated = [name for name, count in Counter(map(str, ids)).items() if count > 1]
    if repeated:
        raise InputError(
            f"{where}: {len(repeated)} {kind} id{' occurs' if len(repeated) == 1 else 's occur'} more than once "
            f"({shorten(repeated)}), so {consequence}; get the file again, or give every {kind} an id of its own"
        )

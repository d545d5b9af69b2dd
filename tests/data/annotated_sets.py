"""Writes small trees of annotated data sets in their true formats."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image


def write_image(path: Path, value: int = 100, size: tuple[int, int] = (20, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


def about(source) -> dict[str, tuple]:
    return {
        entry.image_id: (entry.labels, entry.label_counts, entry.label_areas) for entry in source.entries()
    }


ANNOTATION = """\
<annotation>
	<folder>VOC2007</folder>
	<filename>{name}.jpg</filename>
	<source><database>The VOC2007 Database</database><flickrid>341012865</flickrid></source>
	<size><width>20</width><height>10</height><depth>3</depth></size>
	<segmented>0</segmented>
{objects}</annotation>
"""


def voc_object(name: str, box=(1, 1, 10, 5), difficult=0, truncated=0, more="") -> str:
    sides = "".join(
        f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return (
        f"\t<object>\n\t\t<name>{name}</name>\n\t\t<pose>Left</pose>\n\t\t<truncated>{truncated}</truncated>\n"
        f"\t\t<difficult>{difficult}</difficult>\n\t\t<bndbox>{sides}</bndbox>{more}\n\t</object>\n"
    )


PART = (
    "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
)
OBJECTS = {
    "000005": voc_object("dog")
    + voc_object("cat", (11, 1, 20, 10), difficult=1)
    + voc_object("dog", (1, 6, 10, 10)),
    "000007": voc_object("person", (0.5, 1, 20.0, 10), truncated=1, more=PART),
    "000009": "",
}


def write_voc(root: Path, objects: dict[str, str] | None = None, split: str | None = None) -> Path:
    objects = OBJECTS if objects is None else objects
    year = root / "VOCdevkit" / "VOC2007"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main", "SegmentationClass"):
        (year / folder).mkdir(parents=True, exist_ok=True)
    for value, (name, text) in enumerate(objects.items()):
        write_image(year / "JPEGImages" / f"{name}.jpg", value)
        annotation = text if text.startswith("<") else ANNOTATION.format(name=name, objects=text)
        (year / "Annotations" / f"{name}.xml").write_text(annotation)
    lists = year / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text("".join(f"{name}\n" for name in objects) if split is None else split)
    (lists / "dog_trainval.txt").write_text("000005  1\n000007 -1\n000009  0\n")
    return year


POLYGON = [[0.0, 0.0, 10.0, 0.0, 10.0, 5.0]]
MASK = {"counts": [5, 20, 175], "size": [10, 20]}


def coco_document() -> dict:
    return {
        "info": {"year": 2017},
        "licenses": [],
        "images": [
            {"id": 139, "file_name": "000000000139.jpg", "width": 20, "height": 10, "license": 2},
            {"id": 285, "file_name": "000000000285.jpg", "width": 20, "height": 10},
            {"id": 632, "file_name": "000000000632.jpg", "width": 20, "height": 10},
        ],
        "annotations": [
            {"id": 1, "image_id": 139, "category_id": 1, "area": 50.0, "bbox": [0, 0, 10, 6], "iscrowd": 0}
            | {"segmentation": POLYGON},
            {"id": 2, "image_id": 139, "category_id": 62, "area": 20, "bbox": [0, 0, 5, 5], "iscrowd": 0},
            {"id": 900100000139, "image_id": 139, "category_id": 1, "area": 30, "iscrowd": 1}
            | {"segmentation": MASK, "bbox": [0, 0, 20, 10]},
            {"id": 3, "image_id": 285, "category_id": 62, "bbox": [0, 0, 10, 10], "iscrowd": 0},
        ],
        "categories": [
            {"id": 1, "name": "person", "supercategory": "person"},
            {"id": 62, "name": "chair", "supercategory": "furniture"},
        ],
    }


def write_coco(root: Path, document: object | None = None) -> Path:
    document = coco_document() if document is None else document
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations/instances_val2017.json").write_text(json.dumps(document))
    for name in ("000000000139", "000000000285", "000000000632"):
        write_image(root / "val2017" / f"{name}.jpg")
    return root


def write_lvis(root: Path) -> dict:
    document = coco_document()
    address = "http://images.cocodataset.org/{}/{}"
    for image, folder in zip(document["images"], ("val2017", "train2017", "val2017"), strict=True):
        name = image.pop("file_name")
        image |= {"coco_url": address.format(folder, name), "neg_category_ids": [1]}
        write_image(root / folder / name)
    for category, frequency in zip(document["categories"], "fr", strict=True):
        category |= {"frequency": frequency, "image_count": 9, "synset": "x.n.01"}
    (root / "lvis_v1_val.json").write_text(json.dumps(document))
    return document


HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
    "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
)
BOXES = [
    ("0001eeaf4aed83f9", "/m/0cmf2", 0.0, 0.5, 0.0, 0.5),
    ("0001eeaf4aed83f9", "/m/0cmf2", 0.5, 1.0, 0.5, 1.0),
    ("0001eeaf4aed83f9", "/m/0k4j", -0.1, 0.5, 0.0, 1.2),
    ("000595fe6fee6369", "/m/0k4j", 0.5, 0.1, 0.0, 1.0),
    ("000595fe6fee6369", "/m/unknown", 0.0, 1.0, 0.0, 1.0),
    ("ffffffffffffffff", "/m/0k4j", 0.0, 1.0, 0.0, 1.0),  # an image that is not there
]


def write_open_images(root: Path, prefix: str = "", classes: str = "class-descriptions-boxable.csv") -> Path:
    root.mkdir(exist_ok=True)
    rows = [f"{name},xclick,{label},1,{','.join(map(str, box))},0,0,0,0,0\n" for name, label, *box in BOXES]
    (root / f"{prefix}validation-annotations-bbox.csv").write_text(HEADER + "".join(rows))
    header = "LabelName,DisplayName\n" if classes.startswith("oidv7") else ""
    (root / classes).write_text(f'{header}/m/0cmf2,Airplane\n/m/0k4j,"Car, of any kind"\n')
    for name in ("0001eeaf4aed83f9", "000595fe6fee6369", "00075905539074f2"):
        write_image(root / "validation" / f"{name}.jpg")
    return root

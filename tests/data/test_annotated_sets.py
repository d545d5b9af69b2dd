"""Pascal VOC, COCO, LVIS and Open Images, in small trees of their true formats, with what is irregular in them."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from semrsm_dist.config.schema import parse_config
from semrsm_dist.data.entries import ImageEntry, UnreadableImageError
from semrsm_dist.data.manifest import Manifest, find_known, scan
from semrsm_dist.data.objects import ObjectBox, ObjectTally, box_area
from semrsm_dist.data.source import list_boxes, list_entries
from semrsm_dist.data.sources.coco import CocoImages
from semrsm_dist.data.sources.crops import ShiftedCrops
from semrsm_dist.data.sources.egoobjects import EgoObjectsImages
from semrsm_dist.data.sources.lvis import LvisImages
from semrsm_dist.data.sources.open_images import OpenImages
from semrsm_dist.data.sources.table import TableImages
from semrsm_dist.data.sources.voc import MAX_BYTES, VocImages
from semrsm_dist.errors import InputError
from semrsm_dist.experiments.labels import require_areas


def write_image(path: Path, value: int = 100, size: tuple[int, int] = (20, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


def about(source) -> dict[str, tuple]:
    return {
        entry.image_id: (entry.labels, entry.label_counts, entry.label_areas) for entry in source.entries()
    }


# --- areas ---------------------------------------------------------------------------------------------

sizes = st.integers(1, 12)


@given(st.tuples(*[st.integers(-5, 17)] * 4), sizes, sizes)
def test_the_area_of_a_box_is_the_share_of_the_pixels_in_it(box, width, height):
    left, top, right, bottom = box
    covered = sum(left <= x < right and top <= y < bottom for x in range(width) for y in range(height))
    expected = None if right < left or bottom < top else pytest.approx(covered / (width * height))
    assert box_area(box, width, height) == expected


@given(st.tuples(*[st.integers(-5, 17)] * 4), sizes, sizes)
def test_the_part_of_a_box_in_an_image_has_the_area_of_the_box(box, width, height):
    name, *corners = ObjectBox.within("a", box, width, height)
    area = box_area(box, width, height)
    assert name == "a"
    if area is None:
        assert np.isnan(corners).all()
    else:
        x0, y0, x1, y1 = corners
        assert 0 <= x0 <= x1 <= 1 and 0 <= y0 <= y1 <= 1
        assert (x1 - x0) * (y1 - y0) == pytest.approx(area)


@pytest.mark.parametrize("size", [(0, 10), (10, -1), (float("nan"), 10), (10, float("inf"))])
def test_the_area_of_a_box_in_an_image_without_a_size_is_unknown(size):
    assert box_area((0, 0, 1, 1), *size) is None


def test_objects_of_a_label_add_up_to_at_most_the_image():
    tally = ObjectTally()
    for image, label, area in [("a", "x", 0.7), ("a", "x", 0.6), ("a", "b", 0.25), ("b", "x", None)]:
        tally.add(image, label, area)
    assert tally.describe(ImageEntry("a", "/a")) == ImageEntry(
        "a", "/a", ("b", "x"), None, (1, 2), (0.25, 1.0)
    )
    assert tally.describe(ImageEntry("b", "/b")) == ImageEntry("b", "/b", ("x",), None, (1,), None)
    assert tally.describe(ImageEntry("c", "/c")) == ImageEntry("c", "/c", (), None, (), ())


def test_there_are_as_many_counts_and_areas_as_labels():
    with pytest.raises(TypeError, match="one number for each label"):
        ImageEntry("a", "/a", ("x",), label_counts=(1, 2))
    with pytest.raises(TypeError, match="one number for each label"):
        ImageEntry("a", "/a", ("x",), label_areas=())
    with pytest.raises(TypeError, match="one number for each label"):
        ImageEntry("a", "/a", ("x",), label_areas=("much",))


def test_the_crops_of_an_image_do_not_take_over_what_its_labels_cover(tmp_path):
    crops = ShiftedCrops(of=VocImages(path=write_voc(tmp_path)))
    assert {(e.label_counts, e.label_areas) for e in crops.entries()} == {(None, None)}
    assert ("cat", "dog") in {e.labels for e in crops.entries()}


def test_tables_may_say_the_counts_and_areas_of_labels(tmp_path):
    rows = [
        "image_id,uri,labels,label_counts,label_areas\na,a.png,cat|dog,2|1,0.5|0.1\n"
        'b,b.png,"[""cat""]",[1],[0.25]\nc,c.png,,,\nd,d.png,cat,,\n'
    ]
    (tmp_path / "t.csv").write_text(rows[0])
    expected = {
        "a": (("cat", "dog"), (2, 1), (0.5, 0.1)),
        "b": (("cat",), (1,), (0.25,)),
        "c": ((), (), ()),
        "d": (("cat",), None, None),
    }
    assert about(TableImages(path=tmp_path / "t.csv")) == expected
    lines = [
        {"image_id": name, "uri": f"{name}.png", "labels": list(labels), "label_counts": c, "label_areas": a}
        for name, (labels, c, a) in expected.items()
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert about(TableImages(path=tmp_path / "t.jsonl")) == expected


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("label_counts", "1"),
        ("label_counts", "1|0"),
        ("label_counts", "1|1.5"),
        ("label_counts", f"1|{2**63}"),
        ("label_areas", "0.5"),
        ("label_areas", "0.5|1.5"),
        ("label_areas", "0.5|nan"),
        ("label_areas", "0.5|much"),
        ("label_areas", "[0.5, -1]"),
    ],
)
def test_counts_and_areas_that_do_not_fit_the_labels_are_refused(tmp_path, column, cell):
    (tmp_path / "t.csv").write_text(f'image_id,uri,labels,{column}\na,a.png,cat|dog,"{cell}"\n')
    with pytest.raises(InputError, match=rf"the {column} of row 0 .* 2 labels need as many"):
        TableImages(path=tmp_path / "t.csv").entries()


# --- Pascal VOC ----------------------------------------------------------------------------------------

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


def test_voc_labels_are_the_classes_of_objects_with_their_number_and_the_area_of_their_boxes(tmp_path):
    source = VocImages(path=write_voc(tmp_path))
    assert about(source) == {
        "000005": (("cat", "dog"), (1, 2), (0.5, 0.5)),
        "000007": (("person",), (1,), (1.0,)),
        "000009": ((), (), ()),
    }
    assert [source.read(entry).size for entry in source.entries()] == [(20, 10)] * 3
    assert source.entries()[0].uri == str(tmp_path / "VOCdevkit/VOC2007/JPEGImages/000005.jpg")


def test_voc_objects_that_are_difficult_or_truncated_can_be_left_out(tmp_path):
    root = write_voc(tmp_path)
    assert about(VocImages(path=root, difficult=False))["000005"] == (("dog",), (2,), (0.5,))
    assert about(VocImages(path=root, truncated=False))["000007"] == ((), (), ())


def test_voc_images_without_annotations_stay_without_labels_and_missing_images_are_unreadable(
    tmp_path, caplog
):
    root = write_voc(tmp_path)
    (root / "Annotations" / "000009.xml").unlink()
    (root / "JPEGImages" / "000007.jpg").unlink()
    source = VocImages(path=root)
    manifest = Manifest(tuple(scan(source, source.entries())))
    assert manifest.labels() == [("cat", "dog"), ()]
    assert [(row.image_id, row.error) for row in manifest.unreadable] == [("000007", "there is no such file")]
    assert "no annotations of 1 image, kept without labels: 000009" in caplog.text


def test_voc_takes_every_annotated_image_where_there_is_no_list(tmp_path):
    root = write_voc(tmp_path)
    (root / "ImageSets/Main/trainval.txt").unlink()
    with pytest.raises(InputError, match=r"no list .*trainval\.txt', but dog_trainval: .*data\.split=null"):
        VocImages(path=root).entries()
    assert list(about(VocImages(path=root, split=None))) == ["000005", "000007", "000009"]


def test_the_list_of_one_class_is_not_taken_for_a_split(tmp_path):
    with pytest.raises(InputError, match=r"entry 1: '000005  1' is a name and a mark, as in the list of one"):
        VocImages(path=write_voc(tmp_path), split="dog_trainval").entries()


def test_voc_names_of_files_may_lack_their_ending_or_be_others(tmp_path):
    names = {"bare": "bare", "absent": None, "other": "photo 1.png"}
    root = write_voc(
        tmp_path,
        {
            name: "<annotation>" + (f"<filename>{file}</filename>" if file else "") + "</annotation>"
            for name, file in names.items()
        },
    )
    write_image(root / "JPEGImages" / "photo 1.png")
    source = VocImages(path=root)
    assert [Path(entry.uri).name for entry in source.entries()] == ["absent.jpg", "bare.jpg", "photo 1.png"]
    assert len([source.read(entry) for entry in source.entries()]) == 3


@pytest.mark.parametrize("file", ["../../secret.jpg", "/etc/passwd", "a/../../b.jpg"])
def test_voc_file_names_that_lead_out_are_refused(tmp_path, file):
    root = write_voc(tmp_path, {"a": f"<annotation><filename>{file}</filename></annotation>"})
    with pytest.raises(InputError, match=r"a\.xml: .* leads out of the folder of images"):
        VocImages(path=root).entries()


def test_voc_lists_and_links_that_lead_out_are_refused(tmp_path):
    root = write_voc(tmp_path, split="../../a\n")
    with pytest.raises(InputError, match="leads out of the folder"):
        VocImages(path=root).entries()
    root = write_voc(tmp_path)
    write_image(tmp_path / "secret.jpg")
    (root / "JPEGImages/000005.jpg").unlink()
    (root / "JPEGImages/000005.jpg").symlink_to(tmp_path / "secret.jpg")
    source = VocImages(path=root)
    with pytest.raises(UnreadableImageError, match="lies or links outside"):
        source.read(source.entries()[0])
    allowed = VocImages(path=root, allow_outside=True)
    assert allowed.read(allowed.entries()[0]).size == (20, 10)


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
BOMB = (
    f'<?xml version="1.0"?><!DOCTYPE annotation [<!ENTITY l0 "ha">{LAUGHS}]>'
    "<annotation><object><name>&l11;</name></object></annotation>"
)
FETCH = (
    '<!DOCTYPE annotation [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    "<annotation><object><name>&x;</name></object></annotation>"
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "declares a document type"),
        (FETCH, "declares a document type"),
        ("<annotation><object>", "no element found"),
        ("<annotation>&unknown;</annotation>", "undefined entity"),
        ("<html></html>", "holds <html>, not <annotation>"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "unknown encoding"),
        ("<annotation><object><name> </name></object></annotation>", "object 1 has no name"),
        (f"<annotation>{' ' * MAX_BYTES}</annotation>", f"more than {MAX_BYTES} bytes"),
    ],
)
def test_voc_annotations_that_are_none_are_refused(tmp_path, text, words):
    with pytest.raises(InputError, match=rf"a\.xml: .*{words}"):
        VocImages(path=write_voc(tmp_path, {"a": text})).entries()


def test_an_empty_or_binary_voc_annotation_is_refused(tmp_path):
    root = write_voc(tmp_path)
    for content in (b"", b"\x00\xff\xfe\x00", BOMB.encode("utf-16")):
        (root / "Annotations/000005.xml").write_bytes(content)
        with pytest.raises(InputError, match=r"000005\.xml: is not an annotation in XML"):
            VocImages(path=root).entries()


def test_a_deeply_nested_voc_annotation_is_read(tmp_path):
    depth = 100_000
    text = f"<annotation>{'<a>' * depth}{'</a>' * depth}</annotation>"
    assert about(VocImages(path=write_voc(tmp_path, {"a": text}))) == {"a": ((), (), ())}


@pytest.mark.parametrize(
    "objects",
    [
        voc_object("dog", (10, 1, 1, 5)),
        voc_object("dog", ("left", 1, 1, 5)),
        "\t<object><name>dog</name></object>",
    ],
)
def test_voc_boxes_that_are_none_make_areas_unknown_and_are_reported(tmp_path, objects, caplog):
    root = write_voc(tmp_path, {"a": objects + voc_object("cat"), "b": voc_object("cat")})
    assert about(VocImages(path=root)) == {
        "a": (("cat", "dog"), (1, 1), None),
        "b": (("cat",), (1,), (0.25,)),
    }
    assert "the areas of labels are unknown in 1 image (a)" in caplog.text


def test_a_voc_folder_that_is_none_is_refused_with_what_to_get(tmp_path):
    write_voc(tmp_path)
    with pytest.raises(InputError, match=r"no folder .*JPEGImages'.*the folder of its year"):
        VocImages(path=tmp_path / "VOCdevkit").entries()
    with pytest.raises(InputError, match=r"trainval\.txt: lists no images"):
        VocImages(path=write_voc(tmp_path, split="\n")).entries()
    with pytest.raises(
        InputError, match=r"'000005' occurs more than once|occurs more than once \('000005'\)"
    ):
        VocImages(path=write_voc(tmp_path, split="000005\n000005\n")).entries()


# --- COCO ----------------------------------------------------------------------------------------------

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


def test_coco_labels_are_categories_with_their_number_and_the_area_of_outlines_or_else_boxes(tmp_path):
    source = CocoImages(path=write_coco(tmp_path))
    assert about(source) == {
        "139": (("chair", "person"), (1, 2), (0.1, pytest.approx(0.4))),
        "285": (("chair",), (1,), (0.5,)),
        "632": ((), (), ()),
    }
    assert [source.read(entry).size for entry in source.entries()] == [(20, 10)] * 3


def test_coco_images_are_in_the_order_of_their_ids(tmp_path):
    document = coco_document()
    given = ["b10", 10, "2", "007", 9, "a", 100, "\u0663"]  # the last a digit, but not of ours
    document["images"] = [{"id": name, "file_name": f"{name}.jpg"} for name in given]
    document["annotations"] = []
    found = list(about(CocoImages(path=write_coco(tmp_path, document))))
    assert found == ["2", "007", "9", "10", "100", "a", "b10", "\u0663"]


def test_coco_crowds_can_be_left_out(tmp_path):
    source = CocoImages(path=write_coco(tmp_path), crowds=False)
    assert about(source)["139"] == (("chair", "person"), (1, 1), (0.1, 0.25))


def test_coco_files_can_lie_elsewhere(tmp_path):
    root = write_coco(tmp_path / "coco")
    (root / "val2017").rename(tmp_path / "pictures")
    (root / "annotations/instances_val2017.json").rename(tmp_path / "_annotations.coco.json")
    source = CocoImages(
        path=tmp_path, annotations=tmp_path / "_annotations.coco.json", images=tmp_path / "pictures"
    )
    assert len([source.read(entry) for entry in source.entries()]) == 3
    assert list(about(CocoImages(**dict(source) | {"sample": 2}))) in (
        [["139", "285"], ["139", "632"], ["285", "632"]]
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("images"), "has no list 'images'"),
        (lambda d: d.pop("annotations"), "has no list 'annotations'"),
        (lambda d: d.pop("categories"), "names no categories"),
        (lambda d: d["images"].clear() or d["annotations"].clear(), "lists no images"),
        (lambda d: d["images"][1].update(id=139), r"1 image id occurs more than once \('139'\)"),
        (lambda d: d["images"][1].pop("file_name"), r"images\[1\] lacks file_name"),
        (lambda d: d["images"].insert(0, None), r"images\[0\] lacks id, file_name"),
        (lambda d: d["images"][1].update(file_name="../x.jpg"), "leads out of the folder of images"),
        (lambda d: d["images"][1].update(file_name="/etc/x.jpg"), "leads out of the folder of images"),
        (lambda d: d["images"][1].update(file_name="x\0.jpg"), "no name that a file can have"),
        (lambda d: d["annotations"][0].update(image_id=4), r"1 annotations are of 1 images .* \(4\)"),
        (lambda d: d["annotations"][0].pop("image_id"), r"annotations\[0\] lacks image_id"),
        (lambda d: d["annotations"].insert(1, 3), r"annotations\[1\] lacks image_id"),
        (
            lambda d: d["annotations"][1].update(id=1),
            r"1 annotation id occurs more than once \(1\), so objects",
        ),
        (lambda d: d["annotations"][1].pop("category_id"), r"annotations\[1\] lacks category_id"),
        (
            lambda d: d["categories"][1].update(id=1),
            r"1 category id occurs more than once \(1\), so which label",
        ),
        (lambda d: d["categories"][1].pop("name"), r"categories\[1\] lacks name"),
    ],
)
def test_coco_files_that_are_not_of_their_format_are_refused(tmp_path, change, words):
    document = coco_document()
    change(document)
    with pytest.raises(InputError, match=rf"instances_val2017\.json: .*{words}|{words}"):
        CocoImages(path=write_coco(tmp_path, document)).entries()


def test_coco_images_without_sizes_and_objects_without_areas_leave_areas_unknown(tmp_path):
    document = coco_document()
    document["images"][0] |= {"width": 0}
    document["annotations"][3] |= {"bbox": [0, 0, "x", 1], "area": float("nan")}
    assert [areas for _, _, areas in about(CocoImages(path=write_coco(tmp_path, document))).values()] == [
        None,
        None,
        (),
    ]


def test_coco_objects_of_categories_without_a_name_are_reported(tmp_path, caplog):
    document = coco_document()
    document["annotations"][0]["category_id"] = 99
    document["annotations"][1]["category_id"] = {"id": [62]}
    assert about(CocoImages(path=write_coco(tmp_path, document)))["139"][0] == ("person",)
    assert "no label from 2 annotations of categories without a name" in caplog.text


def test_blanks_around_names_of_coco_categories_make_no_other_labels(tmp_path, caplog):
    document = coco_document()
    document["categories"] = [{"id": 1, "name": " person "}, {"id": 62, "name": " "}]
    document["annotations"][2]["iscrowd"] = "0"
    source = CocoImages(path=write_coco(tmp_path, document), crowds=False)
    assert about(source)["139"][:2] == (("person",), (2,))
    assert "no label from 2 annotations of categories without a name (62)" in caplog.text


def test_coco_areas_beyond_all_numbers_are_unknown(tmp_path):
    document = coco_document()
    document["annotations"][0] |= {"area": 10**400, "bbox": [0, 0, 10**400, 1]}
    assert about(CocoImages(path=write_coco(tmp_path, document)))["139"][1:] == ((1, 2), None)


@pytest.mark.parametrize("key", ["name", "id", "file_name"])
def test_half_a_character_in_coco_is_refused(tmp_path, key):
    document = coco_document()
    place = document["categories"][0] if key == "name" else document["images"][2]
    place[key] = "\ud800"
    with pytest.raises(InputError, match="not valid Unicode"):
        list_entries(CocoImages(path=write_coco(tmp_path, document)))


def test_a_coco_file_that_is_missing_or_cut_is_refused_with_what_to_get(tmp_path):
    with pytest.raises(InputError, match=r"no file .*instances_val2017\.json.*annotations_trainval2017\.zip"):
        CocoImages(path=tmp_path).entries()
    root = write_coco(tmp_path)
    file = root / "annotations/instances_val2017.json"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match="not complete JSON"):
        CocoImages(path=root).entries()


def test_outlines_of_coco_are_not_kept_in_memory(tmp_path):
    """A file whose outlines take nearly all of it: as Python numbers they would take several times its size."""
    document = coco_document()
    outline = [[float(n) for n in range(400)]]
    document["annotations"] = [
        {"id": n, "image_id": 139, "category_id": 1, "area": 2.0, "iscrowd": 0, "segmentation": outline}
        for n in range(600)
    ]
    source = CocoImages(path=write_coco(tmp_path, document))
    n_bytes = (tmp_path / "annotations/instances_val2017.json").stat().st_size
    tracemalloc.start()
    assert about(source)["139"] == (("person",), (600,), (1.0,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.2 * n_bytes + 300 * 600


def test_the_areas_of_egoobjects_are_read_as_those_of_coco(tmp_path):
    document = coco_document()
    document["images"] = [
        image | {"url": image["file_name"], "subset": "val"} for image in document["images"]
    ]
    (tmp_path / "EgoObjectsV1_unified_eval.json").write_text(json.dumps(document))
    assert about(EgoObjectsImages(path=tmp_path))["285"] == (("chair",), (1,), (0.5,))


# --- LVIS ----------------------------------------------------------------------------------------------


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


def test_lvis_takes_the_images_of_coco_and_the_categories_of_some_frequencies(tmp_path):
    write_lvis(tmp_path)
    source = LvisImages(path=tmp_path)
    assert [Path(entry.uri).parent.name for entry in source.entries()] == ["val2017", "train2017", "val2017"]
    assert [source.read(entry).size for entry in source.entries()] == [(20, 10)] * 3
    assert about(source)["139"][0] == ("chair", "person")
    assert about(LvisImages(path=tmp_path, frequencies=("r", "c")))["139"][0] == ("chair",)


def test_lvis_files_without_frequencies_or_names_of_files_are_refused(tmp_path):
    document = write_lvis(tmp_path)
    del document["categories"][0]["frequency"]
    (tmp_path / "lvis_v1_val.json").write_text(json.dumps(document))
    assert about(LvisImages(path=tmp_path))["139"][0] == ("chair", "person")
    with pytest.raises(InputError, match=r"1 categories have no frequency r, c or f \(person\)"):
        LvisImages(path=tmp_path, frequencies=("r",)).entries()
    document["categories"][0]["frequency"] = "F"
    (tmp_path / "lvis_v1_val.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"1 categories have no frequency r, c or f \(person\)"):
        LvisImages(path=tmp_path, frequencies=("f",)).entries()
    del document["images"][0]["coco_url"]
    (tmp_path / "lvis_v1_val.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="image 139 has neither coco_url nor file_name"):
        LvisImages(path=tmp_path).entries()
    document["images"][0]["coco_url"] = "http://[x/val2017/0.jpg"
    (tmp_path / "lvis_v1_val.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"image 139: coco_url is .* no address"):
        LvisImages(path=tmp_path).entries()
    document["images"][0]["coco_url"] = "http://x/../.."
    (tmp_path / "lvis_v1_val.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="leads out of the folder of images"):
        LvisImages(path=tmp_path).entries()


# --- Open Images ---------------------------------------------------------------------------------------

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


@pytest.mark.parametrize(
    ("prefix", "classes"),
    [("", "class-descriptions-boxable.csv"), ("oidv6-", "oidv7-class-descriptions-boxable.csv")],
)
def test_open_images_that_are_there_have_the_classes_of_their_boxes(tmp_path, caplog, prefix, classes):
    source = OpenImages(path=write_open_images(tmp_path, prefix, classes))
    assert about(source) == {
        "0001eeaf4aed83f9": (("Airplane", "Car, of any kind"), (2, 1), (0.5, 0.5)),
        "000595fe6fee6369": (("Car, of any kind",), (1,), None),
        "00075905539074f2": ((), (), ()),
    }
    assert "no label from 1 object of classes without a name (/m/unknown)" in caplog.text
    assert "no annotations of 1 image, kept without labels: 00075905539074f2" in caplog.text
    assert source.read(source.entries()[0]).size == (20, 10)


def test_boxes_of_open_images_in_pixels_have_no_known_area(tmp_path):
    root = write_open_images(tmp_path)
    box = "0001eeaf4aed83f9,xclick,/m/0cmf2,1,10,300,20,400,0,0,0,0,0\n"
    (root / "validation-annotations-bbox.csv").write_text(HEADER + box)
    assert about(OpenImages(path=root))["0001eeaf4aed83f9"] == (("Airplane",), (1,), None)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("validation-annotations-bbox.csv", None, "no file .*validation-annotations-bbox.csv.*openimages"),
        (
            "validation-annotations-bbox.csv",
            "ImageID,LabelName\nx,y\n",
            "not a table of boxes with the columns",
        ),
        ("validation-annotations-bbox.csv", HEADER + "x,y\n", "not a table of boxes"),
        (
            "validation-annotations-bbox.csv",
            HEADER + "a,s,l,1,left,1,0,1,0,0,0,0,0\n",
            "not a table of boxes",
        ),
        ("validation-annotations-bbox.csv", HEADER, "has no box in any of the 3 images"),
        ("validation-annotations-bbox.csv", "", "not a table of boxes"),
        ("class-descriptions-boxable.csv", None, "no file .*class-descriptions-boxable.csv"),
        ("class-descriptions-boxable.csv", "", "must hold the id and the name of a class"),
        ("class-descriptions-boxable.csv", "/m/0k4j\n", "must hold the id and the name of a class"),
        ("class-descriptions-boxable.csv", "/m/0k4j, \n", "must hold the id and the name of a class"),
        ("class-descriptions-boxable.csv", "/m/1,Car\n/m/1,Cat\n", r"1 classes another name .*\(/m/1\)"),
    ],
)
def test_open_images_with_files_that_are_none_are_refused(tmp_path, file, content, words):
    root = write_open_images(tmp_path)
    (root / file).unlink() if content is None else (root / file).write_text(content)
    with pytest.raises(InputError, match=words):
        OpenImages(path=root).entries()


# --- all of them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "section"),
    [
        (write_voc, {"source": "voc", "path": "VOCdevkit/VOC2007"}),
        (write_coco, {"source": "coco", "path": ""}),
        (write_lvis, {"source": "lvis", "path": ""}),
        (write_open_images, {"source": "open-images", "path": ""}),
    ],
)
def test_counts_and_areas_come_through_configuration_and_manifest(tmp_path, write, section):
    write(tmp_path)
    document = {"run": "r", "model": {"name": "test_resnet", "weights": "random", "layers": ["layer1"]}}
    data = section | {"path": str(tmp_path / section["path"])}
    source = parse_config(document | {"data": data}).data
    entries = source.entries()
    manifest = Manifest(tuple(scan(source, entries)))
    back = Manifest.from_parquet(manifest.to_parquet(), "kept")
    assert [row.entry for row in back.rows] == entries
    plain = [ImageEntry(entry.image_id, entry.uri, entry.labels) for entry in entries]
    assert Manifest(tuple(scan(source, plain))).digest() == manifest.digest()
    (known,) = find_known(source, plain, manifest)
    assert [row.label_areas for row in known] == [None] * len(entries)


def test_labels_of_small_objects_can_be_left_out():
    rows = [
        ImageEntry("a", "", ("x", "y"), label_areas=(0.5, 0.1)),
        ImageEntry("b", "", ("x",)),
        ImageEntry("c", ""),
    ]
    manifest = Manifest.from_entries(rows)
    assert manifest.labels() == [("x", "y"), ("x",), ()]
    assert manifest.labels(0.1) == [("x", "y"), ("x",), ()]
    assert manifest.labels(0.2) == [("x",), ("x",), ()]
    assert manifest.labels(0.6) == [(), ("x",), ()]
    assert manifest.count_without_areas() == 1
    assert require_areas(manifest, None, 0.0) == []
    known = Manifest.from_entries(rows[:1])
    with pytest.raises(InputError, match=r"queries: no label covers 0\.6 of its image.*lower min_area"):
        require_areas(manifest, known, 0.6)


FULL = (0.0, 0.0, 1.0, 1.0)
COCO_BOXES = [
    ("139", 0.0, 0.0, 0.5, 0.6),
    ("139", 0.0, 0.0, 0.25, 0.5),
    ("139", *FULL),
    ("285", 0.0, 0.0, 0.5, 1.0),
]


@pytest.mark.parametrize(
    ("write", "source", "options", "expected"),
    [
        (
            write_voc,
            VocImages,
            {"path": "VOCdevkit/VOC2007"},
            [
                ("000005", 0.0, 0.0, 0.5, 0.5),
                ("000005", 0.5, 0.0, 1.0, 1.0),
                ("000005", 0.0, 0.5, 0.5, 1.0),
                ("000007", *FULL),
            ],
        ),
        (write_voc, VocImages, {"path": "VOCdevkit/VOC2007", "difficult": False, "truncated": False}, 2),
        (write_coco, CocoImages, {}, COCO_BOXES),
        (write_coco, CocoImages, {"crowds": False}, [*COCO_BOXES[:2], COCO_BOXES[3]]),
        (write_lvis, LvisImages, {"frequencies": ("r", "c")}, [COCO_BOXES[1], COCO_BOXES[3]]),
        (
            write_open_images,
            OpenImages,
            {},
            [
                ("0001eeaf4aed83f9", 0.0, 0.0, 0.5, 0.5),
                ("0001eeaf4aed83f9", 0.5, 0.5, 1.0, 1.0),
                ("0001eeaf4aed83f9", 0.0, 0.0, 0.5, 1.0),
                ("000595fe6fee6369", *(np.nan,) * 4),
            ],
        ),
    ],
)
def test_boxes_are_those_of_the_objects_that_give_labels(tmp_path, write, source, options, expected):
    write(tmp_path)
    found = list_boxes(source(**options | {"path": tmp_path / options.get("path", "")}))
    if isinstance(expected, int):
        assert len(found) == expected
    else:
        assert [box[0] for box in found] == [box[0] for box in expected]
        np.testing.assert_allclose([box[1:] for box in found], [box[1:] for box in expected])


def test_boxes_are_those_of_the_sample(tmp_path):
    document = coco_document()
    document["annotations"][0]["bbox"] = [0, 0, "wide", 1]
    del document["images"][1]["width"]
    source = CocoImages(path=write_coco(tmp_path, document))
    found = list_boxes(source)
    assert [np.isnan(box.x0) for box in found] == [True, False, False, True]
    for seed in range(4):
        sampled = CocoImages(path=tmp_path, sample=2, seed=seed)
        drawn = [entry.image_id for entry in sampled.entries()]
        assert [box.image_id for box in list_boxes(sampled)] == [
            b.image_id for b in found if b.image_id in drawn
        ]


def test_a_source_without_annotations_knows_no_boxes(tmp_path):
    (tmp_path / "t.csv").write_text("image_id,uri\na,a.png\n")
    assert list_boxes(TableImages(path=tmp_path / "t.csv")) is None

"""Numbers and areas of labels, and boxes: what all annotated data sets have in common."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.config.schema import parse_config
from semrsm_dist.data.entries import ImageEntry
from semrsm_dist.data.manifest import Manifest, find_known, scan
from semrsm_dist.data.objects import ObjectBox, ObjectTally, box_area
from semrsm_dist.data.source import list_boxes
from semrsm_dist.data.sources.coco import CocoImages
from semrsm_dist.data.sources.crops import ShiftedCrops
from semrsm_dist.data.sources.lvis import LvisImages
from semrsm_dist.data.sources.open_images import OpenImages
from semrsm_dist.data.sources.table import TableImages
from semrsm_dist.data.sources.voc import VocImages
from semrsm_dist.errors import InputError
from semrsm_dist.experiments.labels import require_areas
from tests.data.annotated_sets import (
    about,
    coco_document,
    write_coco,
    write_lvis,
    write_open_images,
    write_voc,
)

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

"""COCO, and LVIS and EgoObjects in formats like it, in small trees with what is irregular in them."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from semrsm_dist.data.source import list_entries
from semrsm_dist.data.sources.coco import CocoImages
from semrsm_dist.data.sources.egoobjects import EgoObjectsImages
from semrsm_dist.data.sources.lvis import LvisImages
from semrsm_dist.errors import InputError
from tests.data.annotated_sets import about, coco_document, write_coco, write_lvis


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
        (lambda d: d["annotations"][0].update(image_id=4), r"1 annotation is of 1 image .* \(4\)"),
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

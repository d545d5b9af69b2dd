"""The data sets of the paper, in small trees of their true formats, with what is irregular in them."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from semrsm_dist.config.schema import parse_config
from semrsm_dist.data.annotations import draw_sample
from semrsm_dist.data.entries import UnreadableImageError
from semrsm_dist.data.manifest import UNREADABLE, scan
from semrsm_dist.data.sources.cityscapes import CityscapesImages
from semrsm_dist.data.sources.egoobjects import EgoObjectsImages
from semrsm_dist.data.sources.imagenet import ImageNetImages
from semrsm_dist.data.sources.tiny_imagenet import TinyImageNetImages
from semrsm_dist.errors import ConfigError, InputError


def write_image(path: Path, value: int = 100, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (8, 6), value if mode == "L" else (value, 0, 0)).save(path)


def labels(image_set) -> dict[str, tuple[str, ...]]:
    return {record.image_id: record.labels for record in image_set.entries()}


# --- EgoObjects ----------------------------------------------------------------------------------------


def egoobjects_document() -> dict:
    images = [
        {"id": 1, "url": "A_1.jpg", "group_id": "g1", "video_id": "v", "frame_id": 1, "subset": "val"},
        {"id": 2, "url": "A_2.jpg", "group_id": "g1", "video_id": "v", "frame_id": 9, "subset": "val"},
        {"id": 3, "url": "B_1.jpg", "group_id": None, "video_id": "w", "frame_id": 1, "subset": "test"},
        {"id": 4, "url": "C_1.jpg", "group_id": "g2", "video_id": "x", "frame_id": 1, "subset": "test"},
    ]
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 7, "instance_id": "i1", "bbox": [0, 0, 2, 2]},
        {"id": 2, "image_id": 1, "category_id": 7, "bbox": [2, 0, 2, 2]},  # no instance
        {"id": 3, "image_id": 1, "category_id": 5, "instance_id": "i2", "bbox": [1, 1, 2, 2]},
        {"id": 4, "image_id": 2, "instance_id": "i1", "bbox": [0, 0, 2, 2]},  # no category
        {"id": 5, "image_id": 3, "category_id": 9, "instance_id": "i3", "bbox": [0, 0, 2, 2]},
    ]
    return {"info": {}, "licenses": [], "categories": [], "images": images, "annotations": annotations}


METADATA = {
    "categories": [{"id": 5, "name": "cup"}, {"id": 7, "name": "lamp"}, {"id": 9, "name": "shoe"}],
    "cat_det_cats": [{"id": 5, "name": "cup"}, {"id": 7, "name": "lamp"}],
    "inst_det_cats": [],
}


def write_egoobjects(root: Path, document: dict | None = None, metadata: dict | None = METADATA) -> Path:
    root.mkdir(exist_ok=True)
    document = document or egoobjects_document()
    (root / "EgoObjectsV1_unified_eval.json").write_text(json.dumps(document))
    if metadata is not None:
        (root / "EgoObjectsV1_unified_metadata.json").write_text(json.dumps(metadata))
    for image in document["images"]:
        write_image(root / "images" / image.get("url", "unknown.jpg"))
    return root


def test_egoobjects_takes_names_from_the_metadata_and_keeps_images_without_labels(tmp_path):
    images = EgoObjectsImages(path=write_egoobjects(tmp_path / "ego"))
    records = images.entries()
    assert [(r.image_id, r.labels, r.group) for r in records] == [
        ("1", ("cup", "lamp"), "g1"),
        ("2", (), "g1"),
        ("3", ("shoe",), None),
        ("4", (), "g2"),
    ]
    assert images.read(records[0]).size == (8, 6)
    assert records[2].uri.endswith("/ego/images/B_1.jpg")


def test_egoobjects_prefers_its_own_categories_and_needs_no_metadata_then(tmp_path):
    document = {**egoobjects_document(), "categories": [{"id": n, "name": f"c{n}"} for n in (5, 7, 9)]}
    root = write_egoobjects(tmp_path / "ego", document, metadata=None)
    assert labels(EgoObjectsImages(path=root))["1"] == ("c5", "c7")


@pytest.mark.parametrize(("split", "ids"), [("eval", "1234"), ("val", "12"), ("test", "34")])
def test_the_evaluation_images_of_egoobjects_come_in_two_parts(tmp_path, split, ids):
    root = write_egoobjects(tmp_path / "ego")
    assert list(labels(EgoObjectsImages(path=root, split=split))) == list(ids)


def test_egoobjects_can_lie_in_several_places(tmp_path):
    root = write_egoobjects(tmp_path / "ego")
    for name in ("eval", "metadata"):
        (root / f"EgoObjectsV1_unified_{name}.json").rename(tmp_path / f"{name}.json")
    (root / "images").rename(tmp_path / "frames")
    moved = EgoObjectsImages(
        path=root,
        annotations=tmp_path / "eval.json",
        metadata=tmp_path / "metadata.json",
        images=tmp_path / "frames",
    )
    assert len([moved.read(record) for record in moved.entries()]) == 4


def test_objects_of_a_category_without_a_name_are_reported_and_add_no_label(tmp_path, caplog):
    document = egoobjects_document()
    document["annotations"].append({"image_id": 4, "category_id": 1234})
    with caplog.at_level(logging.WARNING):
        found = labels(EgoObjectsImages(path=write_egoobjects(tmp_path / "ego", document)))
    assert found["4"] == ()
    assert "no label from 1 annotation of categories without a name (1234)" in caplog.text


def change(document: dict, key: str, index: int, name: str, value: object) -> None:
    if value is None:
        del document[key][index][name]
    else:
        document[key][index][name] = value


@pytest.mark.parametrize(
    ("key", "index", "name", "value", "message"),
    [
        ("images", 1, "url", None, r"images\[1\] lacks url"),
        ("images", 0, "id", 2, r"1 image ids? occurs? more than once \('2'\)"),
        ("annotations", 0, "image_id", None, r"annotations\[0\] lacks image_id"),
        ("annotations", 3, "image_id", 99, r"1 annotation is of 1 image that it does not list \(99\)"),
    ],
)
def test_a_damaged_annotation_file_of_egoobjects_is_refused(tmp_path, key, index, name, value, message):
    document = egoobjects_document()
    change(document, key, index, name, value)
    with pytest.raises(InputError, match=message):
        EgoObjectsImages(path=write_egoobjects(tmp_path / "ego", document)).entries()


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not complete JSON"), ("[]", "holds a list"), ("{}", "has no list 'images'")],
)
def test_a_file_that_is_no_annotation_file_is_refused(tmp_path, content, message):
    root = write_egoobjects(tmp_path / "ego")
    (root / "EgoObjectsV1_unified_eval.json").write_text(content)
    with pytest.raises(InputError, match=f"unified_eval.json: {message}"):
        EgoObjectsImages(path=root).entries()


def test_categories_without_any_names_are_refused(tmp_path):
    root = write_egoobjects(tmp_path / "ego", metadata={"categories": [], "cat_det_cats": []})
    with pytest.raises(InputError, match=r"_metadata\.json: names no categories"):
        EgoObjectsImages(path=root).entries()


# --- Cityscapes ----------------------------------------------------------------------------------------


def write_cityscapes(root: Path, frames: dict[str, list[dict] | None], split: str = "val") -> Path:
    for frame, objects in frames.items():
        city = frame.partition("_")[0]
        write_image(root / "leftImg8bit" / split / city / f"{frame}_leftImg8bit.png")
        folder = root / "gtFine" / split / city
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{frame}_gtFine_color.png").write_bytes(b"not read")
        if objects is not None:
            document = {"imgHeight": 6, "imgWidth": 8, "objects": objects}
            (folder / f"{frame}_gtFine_polygons.json").write_text(json.dumps(document))
    return root


def thing(label: str, **more) -> dict:
    return {"label": label, "polygon": [[0, 0], [4, 0], [4, 4]], **more}


FRAMES = {
    "lindau_000001_000019": [thing("road"), thing("cargroup"), thing("car"), thing("ego vehicle")],
    "lindau_000000_000019": [thing("polegroup"), thing("person", deleted=1), thing("sky", deleted=0)],
    "munster_000000_000019": [],
}


def test_cityscapes_labels_are_what_the_polygons_that_count_mark(tmp_path):
    records = CityscapesImages(path=write_cityscapes(tmp_path, FRAMES)).entries()
    assert [(r.image_id, r.labels, r.group) for r in records] == [
        ("lindau_000000_000019", ("polegroup", "sky"), "lindau_000000"),
        ("lindau_000001_000019", ("car", "road"), "lindau_000001"),
        ("munster_000000_000019", (), "munster_000000"),
    ]


def test_cityscapes_leaves_out_the_labels_it_is_told_to(tmp_path):
    root = write_cityscapes(tmp_path, FRAMES)
    assert labels(CityscapesImages(path=root, ignore=()))["lindau_000001_000019"] == (
        "car",
        "ego vehicle",
        "road",
    )
    assert labels(CityscapesImages(path=root, ignore=("road",)))["lindau_000001_000019"] == (
        "car",
        "ego vehicle",
    )


def test_a_cityscapes_image_without_polygons_stays_and_polygons_without_image_are_unreadable(
    tmp_path, caplog
):
    root = write_cityscapes(tmp_path, {**FRAMES, "ulm_000000_000019": None})
    (root / "leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png").unlink()
    images = CityscapesImages(path=root)
    with caplog.at_level(logging.WARNING):
        records = images.entries()
    assert len(records) == 4
    assert "no annotations of 1 image, kept without labels: ulm/ulm_000000_000019" in caplog.text
    assert [row.status == UNREADABLE for row in scan(images, records)] == [True, False, False, False]
    with pytest.raises(UnreadableImageError, match="no such file"):
        images.read(records[0])


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([thing("cat")], r"'cat' is no Cityscapes label; did you mean 'car'"),
        ([thing("catgroup")], "'catgroup' is no Cityscapes label"),
        ([{"polygon": []}], "None is no Cityscapes label"),
        ({}, "has no list 'objects'"),
    ],
)
def test_polygons_that_are_not_of_cityscapes_are_refused(tmp_path, objects, message):
    root = write_cityscapes(tmp_path, {"ulm_000000_000019": objects})
    with pytest.raises(InputError, match=f"ulm_000000_000019_gtFine_polygons.json: {message}"):
        CityscapesImages(path=root).entries()


# --- TinyImageNet --------------------------------------------------------------------------------------

CLASSES = ("n02124075", "n01443537")


def write_tiny_imagenet(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    (root / "wnids.txt").write_text("\n".join(CLASSES) + "\n")
    for wnid in CLASSES:
        for k in range(2):
            write_image(root / "train" / wnid / "images" / f"{wnid}_{k}.JPEG", mode="L" if k else "RGB")
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t62\t57\n")
    rows = [f"val_{k}.JPEG\t{CLASSES[k % 2]}\t0\t0\t62\t57" for k in range(3)]
    for k in range(3):
        write_image(root / "val" / "images" / f"val_{k}.JPEG", mode="L" if k == 1 else "RGB")
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    return root


def test_tiny_imagenet_validation_is_labelled_by_its_table(tmp_path):
    images = TinyImageNetImages(path=write_tiny_imagenet(tmp_path))
    assert labels(images) == {f"val_{k}.JPEG": (CLASSES[k % 2],) for k in range(3)}
    loaded = [images.load(record) for record in images.entries()]
    assert [one.mode for one in loaded] == ["RGB", "L", "RGB"]
    assert {one.image.mode for one in loaded} == {"RGB"}


def test_tiny_imagenet_training_is_labelled_by_its_folders(tmp_path):
    images = TinyImageNetImages(path=write_tiny_imagenet(tmp_path), split="train")
    assert labels(images) == {f"{wnid}_{k}.JPEG": (wnid,) for wnid in sorted(CLASSES) for k in range(2)}
    assert all(row.status != UNREADABLE for row in scan(images, images.entries()))


def test_tiny_imagenet_images_and_table_may_not_tell_the_same(tmp_path, caplog):
    root = write_tiny_imagenet(tmp_path)
    write_image(root / "val" / "images" / "val_9.JPEG")
    (root / "val" / "images" / "val_2.JPEG").unlink()
    images = TinyImageNetImages(path=root)
    with caplog.at_level(logging.WARNING):
        assert labels(images)["val_9.JPEG"] == ()
    assert "no annotations of 1 image, kept without labels: val_9.JPEG" in caplog.text
    assert [row.image_id for row in scan(images, images.entries()) if row.status == UNREADABLE] == [
        "val_2.JPEG"
    ]


@pytest.mark.parametrize(
    ("split", "file", "text", "message"),
    [
        (
            "val",
            "val/val_annotations.txt",
            "val_0.JPEG\tn00000001\t0\t0\t1\t1",
            "1 classes are not in .*n00000001",
        ),
        (
            "val",
            "val/val_annotations.txt",
            "val_0.JPEG n02124075",
            "entry 1: 'val_0.JPEG n02124075' has no class",
        ),
        ("val", "val/val_annotations.txt", "a\tn02124075\na\tn02124075", "entry 2: 'a' is listed twice"),
        ("train", "wnids.txt", "n02124075", r"1 classes are not in .*wnids\.txt \(n01443537\)"),
        (
            "train",
            "wnids.txt",
            "\n".join((*CLASSES, "n00000002")),
            r"no images of 1 of the 3 classes.*n00000002",
        ),
    ],
)
def test_contradictions_in_tiny_imagenet_are_refused(tmp_path, split, file, text, message):
    root = write_tiny_imagenet(tmp_path)
    (root / file).write_text(text)
    with pytest.raises(InputError, match=message):
        TinyImageNetImages(path=root, split=split).entries()


# --- ImageNet ------------------------------------------------------------------------------------------

# ILSVRC numbers the classes otherwise than the sorted WordNet ids do.
WNIDS = {1: "n02119789", 2: "n02100735", 3: "n01440764"}
TRUTH = (3, 1, 1, 2)


def val_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def write_devkit(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{n}\n" for n in TRUTH))
    kind = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    synsets = np.empty((len(WNIDS) + 1, 1), dtype=kind)
    for row, (number, wnid) in enumerate({**WNIDS, 1001: "n00001740"}.items()):  # the last is no leaf
        synsets[row, 0] = (float(number), wnid, f"words of {wnid}", 0.0)
    scipy.io.savemat(folder / "meta.mat", {"synsets": synsets})


def write_flat(root: Path) -> Path:
    for number in range(1, len(TRUTH) + 1):
        write_image(root / "val" / val_name(number), mode="L" if number == 2 else "RGB")
    write_devkit(root / "ILSVRC2012_devkit_t12" / "data")
    return root


def write_nested(root: Path) -> Path:
    for number, ilsvrc in enumerate(TRUTH, start=1):
        write_image(root / "val" / WNIDS[ilsvrc] / val_name(number), mode="L" if number == 2 else "RGB")
    return root


EXPECTED = {val_name(number): (WNIDS[ilsvrc],) for number, ilsvrc in enumerate(TRUTH, start=1)}


def test_both_layouts_of_imagenet_give_the_same_images(tmp_path):
    flat, nested = (
        ImageNetImages(path=write_flat(tmp_path / "a")),
        ImageNetImages(path=write_nested(tmp_path / "b")),
    )
    assert labels(flat) == labels(nested) == EXPECTED
    hashes = [[row.sha256 for row in scan(images, images.entries())] for images in (flat, nested)]
    assert hashes[0] == hashes[1]
    assert None not in hashes[0]


def test_the_folder_of_imagenets_images_and_a_devkit_elsewhere_do_too(tmp_path):
    assert labels(ImageNetImages(path=write_nested(tmp_path / "b") / "val")) == EXPECTED
    root = write_flat(tmp_path / "a")
    (root / "ILSVRC2012_devkit_t12").rename(tmp_path / "kit")
    assert labels(ImageNetImages(path=root, devkit=tmp_path / "kit" / "data")) == EXPECTED
    with pytest.raises(InputError, match=r"no file .*meta\.mat.*put both into .*--set data\.devkit=FOLDER"):
        ImageNetImages(path=root).entries()


def test_images_of_the_ground_truth_that_are_gone_are_unreadable_and_not_forgotten(tmp_path):
    root = write_flat(tmp_path)
    (root / "val" / val_name(3)).unlink()
    images = ImageNetImages(path=root)
    assert labels(images) == EXPECTED
    assert [row.status == UNREADABLE for row in scan(images, images.entries())] == [False, False, True, False]


def test_what_does_not_belong_to_imagenet_is_refused(tmp_path):
    root = write_flat(tmp_path / "a")
    write_image(root / "val" / "holiday.jpg")
    with pytest.raises(InputError, match=r"1 image is none of the 4 of the ground truth.*\(holiday\.jpg\)"):
        ImageNetImages(path=root).entries()
    write_image(root / "val" / "n01440764" / val_name(1))
    with pytest.raises(InputError, match=r"both in class folders \(1\) and beside these \(5\)"):
        ImageNetImages(path=root).entries()
    other = tmp_path / "b" / "val"
    write_image(other / "dogs" / "a.jpg")
    with pytest.raises(
        InputError, match=r"not named after a class such as n01440764 \(dogs\).*source: folder"
    ):
        ImageNetImages(path=other.parent).entries()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("ILSVRC2012_validation_ground_truth.txt", b"3\n9\n", "line 2: '9' is not a class"),
        ("ILSVRC2012_validation_ground_truth.txt", b"cat\n", "line 1: 'cat' is not a class"),
        ("meta.mat", b"not a mat file", "is not the list of classes"),
    ],
)
def test_a_damaged_development_kit_is_refused(tmp_path, file, content, message):
    root = write_flat(tmp_path)
    (root / "ILSVRC2012_devkit_t12" / "data" / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        ImageNetImages(path=root).entries()


def test_no_annotation_leads_out_of_the_folder_of_images(tmp_path):
    write_image(tmp_path / "secret.png")
    document = egoobjects_document()
    root = write_egoobjects(tmp_path / "ego", document)
    document["images"][0]["url"] = "../../secret.png"
    (root / "EgoObjectsV1_unified_eval.json").write_text(json.dumps(document))
    with pytest.raises(
        InputError, match=r"_eval\.json: '\.\./\.\./secret\.png' leads out of the folder of images"
    ):
        EgoObjectsImages(path=root).entries()
    root = write_tiny_imagenet(tmp_path / "tiny")
    with (root / "val" / "val_annotations.txt").open("a") as file:
        wnid = (root / "wnids.txt").read_text().split()[0]
        file.write(f"../../secret.png\t{wnid}\t0\t0\t1\t1\n")
    with pytest.raises(InputError, match=r"val_annotations\.txt: '\.\./\.\./secret\.png' leads out"):
        TinyImageNetImages(path=root).entries()


def test_a_link_out_of_an_annotated_folder_is_unreadable_unless_allowed(tmp_path):
    write_image(tmp_path / "secret.png")
    for write, source in ((write_egoobjects, EgoObjectsImages), (write_tiny_imagenet, TinyImageNetImages)):
        root = write(tmp_path / source.__name__)
        first = source(path=root).entries()[0]
        Path(first.uri).unlink(missing_ok=True)
        Path(first.uri).parent.mkdir(parents=True, exist_ok=True)
        Path(first.uri).symlink_to(tmp_path / "secret.png")
        with pytest.raises(UnreadableImageError, match=r"links outside .*, and allow_outside is not set"):
            source(path=root).load(first)
        assert source(path=root, allow_outside=True).load(first).image.mode == "RGB"
        root.rename(tmp_path / "elsewhere")
        root.symlink_to(tmp_path / "elsewhere")  # the folder itself may be a link
        others = source(path=root).entries()[1:]
        assert source(path=root).load(next(one for one in others if Path(one.uri).exists()))
        root.unlink()
        (tmp_path / "elsewhere").rename(root)


# --- all of them ---------------------------------------------------------------------------------------

WRITERS = {
    "egoobjects": write_egoobjects,
    "cityscapes": lambda root: write_cityscapes(root, FRAMES),
    "tiny-imagenet": write_tiny_imagenet,
    "imagenet": write_nested,
}
MODEL = {"name": "test_resnet", "weights": "random", "layers": ["layer1"]}


def from_config(source: str, path: object, **more):
    data = {"source": source, "path": str(path), **more}
    return parse_config({"run": "r", "data": data, "model": MODEL}).data


@pytest.mark.parametrize("source", WRITERS)
def test_a_configuration_reads_it_from_a_path_or_a_uri_in_any_process(tmp_path, source):
    root = tmp_path / "data set"
    WRITERS[source](root)
    images = from_config(source, root)
    records = images.entries()
    assert from_config(source, root.as_uri()).entries() == records
    copy = pickle.loads(pickle.dumps(images))
    assert [copy.load(record).sha256 for record in records] == [images.load(r).sha256 for r in records]


@pytest.mark.parametrize("source", WRITERS)
def test_a_sample_is_drawn_by_the_seed_and_keeps_the_order(tmp_path, source):
    WRITERS[source](tmp_path / "data")
    everything = from_config(source, tmp_path / "data").entries()
    drawn = [from_config(source, tmp_path / "data", sample=2, seed=s).entries() for s in (1, 1, 2, 3, 4, 5)]
    assert drawn[0] == drawn[1]
    assert any(drawn[0] != other for other in drawn[2:])
    for records in drawn:
        assert len(records) == 2
        assert records == [record for record in everything if record in records]
    assert from_config(source, tmp_path / "data", sample=1000).entries() == everything


def test_a_smaller_sample_is_part_of_a_larger_one_and_ignores_the_order():
    names = [f"image {k}" for k in range(300)]
    small, large = draw_sample(names, 20, 7), draw_sample(reversed(names), 60, 7)
    assert set(small) < set(large)
    assert len(set(large) & set(draw_sample(names, 60, 8))) < 40  # 12 are expected by chance


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "egoobjects",
            r"no file '.*EgoObjectsV1_unified_eval\.json': put .*_metadata\.json and the folder images/",
        ),
        (
            "cityscapes",
            r"no folder '.*leftImg8bit/val': put leftImg8bit/ and gtFine/.*gtFine_trainvaltest\.zip",
        ),
        ("tiny-imagenet", r"no file '.*wnids\.txt': unpack tiny-imagenet-200\.zip"),
        ("imagenet", r"no folder '.*nowhere': put the validation images.*ILSVRC2012_img_val\.tar"),
    ],
)
def test_what_is_not_there_is_reported_with_what_to_put_where(tmp_path, source, message):
    with pytest.raises(InputError, match=rf"{message}.*{tmp_path}/nowhere.*--set data\.path=FOLDER"):
        from_config(source, tmp_path / "nowhere").entries()


@pytest.mark.parametrize(
    ("source", "missing", "message"),
    [
        ("egoobjects", "EgoObjectsV1_unified_metadata.json", "hold no names of categories; put"),
        ("cityscapes", "gtFine", r"no folder '.*gtFine/val'"),
        ("tiny-imagenet", "val/val_annotations.txt", r"no file '.*val_annotations\.txt'"),
        ("tiny-imagenet", "val/images", r"no folder '.*val/images'"),
    ],
)
def test_half_a_data_set_is_refused(tmp_path, source, missing, message):
    root = tmp_path / "data"
    WRITERS[source](root)
    (root / missing).rename(tmp_path / "away")
    with pytest.raises(InputError, match=message):
        from_config(source, root).entries()


@pytest.mark.parametrize("image_set", [EgoObjectsImages, CityscapesImages, TinyImageNetImages])
def test_an_unknown_split_is_refused_naming_the_known(tmp_path, image_set):
    with pytest.raises(ConfigError, match=r"split: 'trian': .*'val'.*did you mean 'train'"):
        image_set(path=tmp_path, split="trian")


def test_empty_folders_hold_no_images(tmp_path):
    for folder in ("leftImg8bit/val", "gtFine/val", "val"):
        (tmp_path / folder).mkdir(parents=True)
    for image_set in (CityscapesImages(path=tmp_path), ImageNetImages(path=tmp_path)):
        with pytest.raises(InputError, match=r"no images .*put "):
            image_set.entries()

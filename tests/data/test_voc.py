"""Pascal VOC in small trees of its true format, with what is irregular in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from semrsm_dist.data.entries import UnreadableImageError
from semrsm_dist.data.manifest import Manifest, scan
from semrsm_dist.data.sources.voc import MAX_ANNOTATION_BYTES, VocImages
from semrsm_dist.errors import InputError
from tests.data.annotated_sets import about, voc_object, write_image, write_voc


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
        (f"<annotation>{' ' * MAX_ANNOTATION_BYTES}</annotation>", f"more than {MAX_ANNOTATION_BYTES} bytes"),
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

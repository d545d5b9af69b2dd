"""Open Images in small trees of its true format, with what is irregular in them."""

from __future__ import annotations

import pytest

from semrsm_dist.data.sources.open_images import OpenImages
from semrsm_dist.errors import InputError
from tests.data.annotated_sets import HEADER, about, write_open_images


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

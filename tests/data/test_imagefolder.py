"""Folders of images with metadata, as `datasets` reads them, and the lists that thingsvision writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from semrsm_dist.data.manifest import Manifest, scan
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.data.sources.imagefolder import ImageFolder
from semrsm_dist.errors import InputError, MissingInputError
from semrsm_dist.matching.matchers import MATCHERS
from semrsm_dist.pipeline.feature_inputs import check_features

NAMES = ["a.png", "b/c.png", "d.png"]
OBJECTS = [
    {"bbox": [[0, 0, 1, 1]] * 3, "categories": ["cat", "dog", "cat"]},
    {"bbox": [], "categories": []},
    {"bbox": [[0, 0, 1, 1]], "categories": ["odd"]},
]


def write_images(root: Path, names=NAMES) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4)).save(root / name)
    return root


def write_metadata(root: Path, kind: str, **columns) -> None:
    path = root / f"metadata.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(columns), path)
        return
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    cells = [
        [value if isinstance(value, str) else json.dumps(value) for value in row.values()] for row in rows
    ]
    quoted = ['"' + '","'.join(cell.replace('"', '""') for cell in row) + '"\n' for row in cells]
    path.write_text(",".join(columns) + "\n" + "".join(quoted))


def about(source) -> dict[str, tuple]:
    return {entry.image_id: (entry.labels, entry.label_counts) for entry in source.entries()}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_labels_are_those_of_the_table(tmp_path, kind):
    write_metadata(
        write_images(tmp_path), kind, file_name=NAMES, label=["cat", "dog", "cat"], objects=OBJECTS
    )
    source = ImageFolder(path=tmp_path)
    assert about(source) == dict(
        zip(NAMES, [(("cat",), None), (("dog",), None), (("cat",), None)], strict=True)
    )
    assert Manifest(tuple(scan(source, source.entries()))).n_readable == 3
    nested = ImageFolder(path=tmp_path, labels="objects.categories")
    assert about(nested) == dict(
        zip(NAMES, [(("cat", "dog"), (2, 1)), ((), ()), (("odd",), (1,))], strict=True)
    )


def test_each_table_is_about_its_own_folder(tmp_path, caplog):
    write_images(tmp_path, ["train/1.png", "train/x/2.png", "test/1.png", "test/3.png"])
    write_metadata(tmp_path / "train", "csv", file_name=["1.png", "./x/2.png"], label=["a", "b"])
    write_metadata(tmp_path / "test", "jsonl", file_name=["1.png"], labels=[["c", "d"]])
    assert about(ImageFolder(path=tmp_path)) == {
        "test/1.png": (("c", "d"), None),
        "test/3.png": ((), None),
        "train/1.png": (("a",), None),
        "train/x/2.png": (("b",), None),
    }
    assert "no annotations of 1 image, kept without labels: test/3.png" in caplog.text


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({"file": NAMES}, {}, "no column 'file_name', only file"),
        (
            {"file_name": NAMES, "labbel": NAMES},
            {"labels": "label"},
            "no column 'label'.*did you mean 'labbel'",
        ),
        ({"file_name": ["../x.png"]}, {}, "leads out of the folder"),
        ({"file_name": ["/etc/x.png"]}, {}, "leads out of the folder"),
        ({"file_name": [""]}, {}, "row 0 .* has no file_name"),
        ({"file_name": ["a.png", "a.png"]}, {}, "occurs more than once"),
        ({"file_name": ["a.png"], "label": ["{"]}, {}, "row 0 .*: labels: "),
        (
            {"file_name": ["a.png"], "objects": [{"a": 1}]},
            {"labels": "objects.b"},
            "labels: has no 'b', only 'a'",
        ),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path, columns, options, words):
    write_metadata(write_images(tmp_path), "jsonl", **columns)
    with pytest.raises(InputError, match=words):
        ImageFolder(path=tmp_path, **options).entries()


def test_a_folder_without_a_table_is_one_for_another_source(tmp_path):
    with pytest.raises(MissingInputError, match=r"metadata\.parquet: write one .* with source: folder"):
        ImageFolder(path=write_images(tmp_path)).entries()


# --- thingsvision --------------------------------------------------------------------------------------


def write_thingsvision(root: Path, names=NAMES, n: int = 3) -> Path:
    root.mkdir(parents=True)
    np.save(root / "features.npy", np.random.default_rng(0).normal(size=(n, 5, 2, 2)).astype(np.float32))
    (root / "file_names.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def test_a_folder_of_thingsvision_names_its_images(tmp_path):
    layers = {layer: write_thingsvision(tmp_path / layer) for layer in ("conv", "late")}
    data = FeaturesData(layers=layers)
    assert data.find_table() == tmp_path / "conv" / "file_names.txt"
    assert check_features({"images": data}, MATCHERS.load("auction")()) == []
    assert FeaturesData(layers=layers, table=tmp_path / "t.csv").find_table() == tmp_path / "t.csv"
    assert FeaturesData(layers={"conv": tmp_path / "conv" / "features.npy"}).find_table() is None


def test_lists_of_thingsvision_must_agree_with_each_other_and_with_the_features(tmp_path):
    conv, late = write_thingsvision(tmp_path / "conv"), write_thingsvision(tmp_path / "late", NAMES[::-1])
    with pytest.raises(InputError, match="name different images, or in another order"):
        FeaturesData(layers={"conv": conv, "late": late}).find_table()
    short = FeaturesData(layers={"short": write_thingsvision(tmp_path / "short", NAMES[:2])})
    with pytest.raises(InputError, match=r"short/file_names\.txt: 2 rows, but the features of images hold 3"):
        check_features({"images": short}, MATCHERS.load("auction")())


def test_a_list_that_is_gone_is_still_the_one_that_was_found(tmp_path):
    data = FeaturesData(layers={"conv": write_thingsvision(tmp_path / "conv")})
    known = str(data.find_table())
    (tmp_path / "conv" / "file_names.txt").unlink()
    assert data.find_table() is None
    assert str(data.find_table(known)) == known

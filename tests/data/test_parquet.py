"""Images in Parquet, in the true format of `datasets`, irregular and damaged too."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from semrsm_dist.data import parquet_rows
from semrsm_dist.data.entries import ImageEntry
from semrsm_dist.data.manifest import scan
from semrsm_dist.data.sources.parquet import ParquetImages
from semrsm_dist.errors import InputError
from tests.data.packed_images import about, picture, write_parquet

CLASSES = {"names": ["cat", "dog"], "_type": "ClassLabel"}


def test_images_in_parquet_are_those_of_their_rows_with_the_names_of_their_classes(tmp_path):
    labels = [0, 1, -1, None, 1, 0, 0, 0, 0, 1]
    contents = write_parquet(tmp_path / "data" / "train-0.parquet", label=labels, features={"label": CLASSES})
    write_parquet(tmp_path / "data" / "test-0.parquet", 1)
    source = ParquetImages(path=tmp_path, files="*train-*")
    names = {0: ("cat",), 1: ("dog",), -1: (), None: ()}
    assert about(source) == {f"data/train-0/{row}": (names[label], None) for row, label in enumerate(labels)}
    for row, content in zip(scan(source, source.entries()), contents, strict=True):
        assert row.sha256 == hashlib.sha256(content).hexdigest()
    assert [entry.uri.rpartition("#")[2] for entry in source.entries()][3:5] == ["image/0+3", "image/1+0"]


@pytest.mark.parametrize(
    ("column", "features"),
    [
        ([[0, 1, 1], []], {"label": {"feature": CLASSES, "_type": "Sequence"}}),
        ([[0, 1, 1], []], {"label": [CLASSES]}),
        (["cat|dog", None], None),
        ([["cat", "dog"], None], None),
    ],
)
def test_labels_in_parquet_may_be_several(tmp_path, column, features):
    write_parquet(tmp_path / "a.parquet", 2, label=column, features=features)
    assert about(ParquetImages(path=tmp_path)) == {"a/0": (("cat", "dog"), None), "a/1": ((), None)}


@pytest.mark.parametrize("is_list_of_structs", [True, False])
def test_labels_in_parquet_may_be_those_of_objects(tmp_path, is_list_of_structs):
    boxes = [[0.0, 0.0, 1.0, 1.0]] * 3
    if is_list_of_structs:
        objects = [[{"bbox": box, "category": c} for box, c in zip(boxes, (1, 0, 1), strict=True)], []]
        features = {"objects": {"feature": {"category": CLASSES, "bbox": {}}, "_type": "Sequence"}}
    else:
        objects = [{"bbox": boxes, "category": [1, 0, 1]}, {"bbox": [], "category": []}]
        features = {"objects": {"category": {"feature": CLASSES, "_type": "List"}, "bbox": {}}}
    write_parquet(tmp_path / "a.parquet", 2, objects=objects, features=features)
    source = ParquetImages(path=tmp_path, labels="objects.category")
    assert about(source) == {"a/0": (("dog", "cat"), (2, 1)), "a/1": ((), ())}


def test_a_column_of_parquet_that_is_there_twice_is_refused(tmp_path):
    images = pa.array([picture(0)])
    for names, labels in ((["image", "image", "label"], None), (["image", "label", "label"], "label")):
        pq.write_table(pa.Table.from_arrays([images] * 3, names=names), tmp_path / "a.parquet")
        with pytest.raises(InputError, match="more than one column"):
            ParquetImages(path=tmp_path, labels=labels).entries()


def test_ids_and_plain_bytes_may_be_columns_of_parquet(tmp_path):
    for kind in (pa.binary(), pa.large_binary()):
        table = pa.table({"img": pa.array([picture(0), picture(1)], kind), "key": [7, 9]})
        pq.write_table(table.rename_columns(["img/#1", "key"]), tmp_path / "a.parquet")
        source = ParquetImages(path=tmp_path, image="img/#1", id="key")
        assert [row.image_id for row in scan(source, source.entries())] == ["7", "9"]


def test_names_of_columns_of_parquet_may_have_dots(tmp_path):
    columns = {"object": [{"name": "x"}, {"name": "y"}], "object.name": ["cat", "dog"]}
    write_parquet(tmp_path / "a.parquet", 2, **columns, **{"a.b": [{"c": ["one"]}, {"c": []}]})
    labels = {name: about(ParquetImages(path=tmp_path, labels=name)) for name in ("object.name", "a.b.c")}
    assert labels["object.name"] == {"a/0": (("cat",), None), "a/1": (("dog",), None)}
    assert labels["a.b.c"] == {"a/0": (("one",), (1,)), "a/1": ((), ())}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image": "imagge"}, "no column 'imagge', only image, label, key; did you mean 'image'"),
        ({"image": "label"}, "column 'label' holds int64, not the content of image files"),
        ({"labels": "labels"}, "no column 'labels'.*data.labels"),
        ({"labels": "label.name"}, "labels of image 'a/0': has no keys"),
        ({"id": "ids"}, "no column 'ids'"),
        ({"id": "key"}, "an id is missing"),
    ],
)
def test_columns_of_parquet_that_are_not_there_are_refused(tmp_path, options, words):
    write_parquet(tmp_path / "a.parquet", 2, label=[0, 1], key=["x", None])
    with pytest.raises(InputError, match=words):
        ParquetImages(path=tmp_path, **options).entries()


def test_rows_of_parquet_that_hold_no_image_are_unreadable(tmp_path):
    images = [
        {"bytes": None, "path": "/data/a.png"},
        None,
        {"bytes": b"", "path": None},
        {"bytes": picture(1), "path": "b"},
    ]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    source = ParquetImages(path=tmp_path)
    rows = scan(source, source.entries())
    assert [row.status for row in rows] == ["unreadable"] * 3 + ["ok"]
    assert "holds no bytes; if it names a file, write the images into the table" in rows[0].error


def test_damaged_parquet_is_refused_or_its_images_are_unreadable(tmp_path):
    contents = write_parquet(tmp_path / "a.parquet", rows=10)
    whole = (tmp_path / "a.parquet").read_bytes()
    source = ParquetImages(path=tmp_path)
    for damaged in (b"", b"PAR1", whole[:-50], whole[:-8] + b"\xff\xff\xff\x7fPAR1"):
        (tmp_path / "a.parquet").write_bytes(damaged)
        with pytest.raises(InputError, match=r"cannot be read as Parquet"):
            source.entries()
    hashes = [hashlib.sha256(content).hexdigest() for content in contents]
    causes = set()
    for at in range(4, len(whole), 199):
        (tmp_path / "a.parquet").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            rows = scan(source, source.entries())
        except InputError:
            continue
        assert all(row.sha256 in (None, expected) for row, expected in zip(rows, hashes, strict=True))
        causes |= {row.error for row in rows}
    assert any("is damaged" in cause for cause in causes - {None})


@pytest.mark.parametrize("use_dictionary", [False, True])
def test_a_row_group_of_parquet_that_grows_out_of_all_proportion_is_not_unpacked(
    tmp_path, monkeypatch, use_dictionary
):
    monkeypatch.setattr(parquet_rows, "UNPACKED_BYTES", 2**20)
    bomb = pa.table({"image": [bytes(2**20 + each) for each in range(3)]})
    pq.write_table(bomb, tmp_path / "a.parquet", compression="zstd", use_dictionary=use_dictionary)
    assert (tmp_path / "a.parquet").stat().st_size < 2**14
    with pytest.raises(InputError, match=r"would grow from .* as no images do, and was not unpacked"):
        ParquetImages(path=tmp_path).entries()


POOL = pa.proxy_memory_pool(pa.default_memory_pool())
"""Lives as long as what was allocated in it."""


def test_images_that_share_a_dictionary_are_unpacked_one_by_one(tmp_path, monkeypatch):
    same = picture(0, "BMP", size=600)
    pq.write_table(pa.table({"image": [same] * 64}), tmp_path / "a.parquet", use_dictionary=True)
    source = ParquetImages(path=tmp_path)
    entries, before = source.entries(), pa.default_memory_pool()
    monkeypatch.setattr(parquet_rows, "_cursors", [])
    pa.set_memory_pool(POOL)
    try:
        rows = scan(source, entries)
    finally:
        pa.set_memory_pool(before)
    assert {row.sha256 for row in rows} == {hashlib.sha256(same).hexdigest()}
    assert len(same) < POOL.max_memory() < 6 * len(same)


def test_a_row_that_is_not_there_is_unreadable(tmp_path):
    write_parquet(tmp_path / "a.parquet", rows=10)
    source = ParquetImages(path=tmp_path)
    for part in ("image/9+0", "image/0+10", "thumbnail/0+0", "0+0"):
        (row,) = scan(source, [ImageEntry("x", f"{tmp_path}/a.parquet#{part}")])
        assert row.status == "unreadable"


def test_what_was_read_of_a_file_is_not_taken_for_another_version_of_it(tmp_path):
    source, file = ParquetImages(path=tmp_path), tmp_path / "a.parquet"
    for first in (0, 50):
        contents = [picture(value) for value in range(first, first + 4)]
        pq.write_table(pa.table({"image": contents}), file)
        hashes = [row.sha256 for row in scan(source, source.entries())]
        assert hashes == [hashlib.sha256(content).hexdigest() for content in contents]


def test_values_are_read_forward_in_one_pass_and_back_in_another(tmp_path, monkeypatch):
    contents = write_parquet(tmp_path / "a.parquet", 100, rows=60)
    path, passes = str(tmp_path / "a.parquet"), []
    iterate = parquet_rows.iterate

    def counted(location, columns, group, **options):
        passes.append(group)
        return iterate(location, columns, group, **options)

    monkeypatch.setattr(parquet_rows, "iterate", counted)
    monkeypatch.setattr(parquet_rows, "_cursors", [])
    for row in range(60):
        assert parquet_rows.read_value((path, "image", 0), row) == contents[row]
    assert parquet_rows.read_value((path, "image", 1), 39) == contents[99]
    assert parquet_rows.read_value((path, "image", 0), 3) == contents[3]  # still kept
    assert passes == [0, 1]
    monkeypatch.setattr(parquet_rows, "WINDOW_BYTES", 1)
    monkeypatch.setattr(parquet_rows, "_cursors", [])
    for row in (50, 3, 59):
        assert parquet_rows.read_value((path, "image", 0), row) == contents[row]
    assert len(passes) == 4
    with pytest.raises(ValueError, match="has no row 60 in row group 0"):
        parquet_rows.read_value((path, "image", 0), 60)


def test_many_threads_read_the_right_values(tmp_path, monkeypatch):
    contents = write_parquet(tmp_path / "a.parquet", 120, rows=40)
    monkeypatch.setattr(parquet_rows, "WINDOW_BYTES", 2000)
    monkeypatch.setattr(parquet_rows, "MOST_CURSORS", 3)
    together = threading.Barrier(6)

    def read(seed: int) -> bool:
        rows = np.random.default_rng(seed).permutation(120)[:60]
        together.wait()
        return all(
            parquet_rows.read_value((str(tmp_path / "a.parquet"), "image", row // 40), row % 40)
            == contents[row]
            for row in map(int, rows)
        )

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(read, range(6)))

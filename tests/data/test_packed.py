"""Images in tar files and in Parquet, in the true formats of WebDataset and `datasets`, irregular and damaged too."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import semrsm_dist as srs
from semrsm_dist.config.schema import parse_config
from semrsm_dist.data import parquet_rows
from semrsm_dist.data.columns import labels_in
from semrsm_dist.data.entries import ImageEntry, UnreadableImageError
from semrsm_dist.data.manifest import Manifest, find_known, scan
from semrsm_dist.data.source import list_entries
from semrsm_dist.data.sources.parquet import ParquetImages
from semrsm_dist.data.sources.webdataset import WebDatasetImages
from semrsm_dist.errors import InputError, MissingInputError


def picture(value: int, kind: str = "PNG", size: int = 12) -> bytes:
    pixels = np.random.default_rng(value).integers(0, 256, (size, size, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def about(source) -> dict[str, tuple]:
    return {entry.image_id: (entry.labels, entry.label_counts) for entry in list_entries(source)}


# --- labels in cells -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "path", "names", "expected"),
    [
        (None, "", (), ((), None)),
        ("cat|dog", "", (), (("cat", "dog"), None)),
        ('["cat", "cat"]', "", (), (("cat",), None)),
        (["cat", "dog", "cat"], "", (), (("cat", "dog"), None)),
        (7, "", (), (("7",), None)),
        (1, "", ("cat", "dog"), (("dog",), None)),
        (-1, "", ("cat", "dog"), ((), None)),
        ("1", "", ("cat", "dog"), (("dog",), None)),
        ({"name": "cat"}, "name", (), (("cat",), (1,))),
        ({"name": ["cat", "cat", "dog"]}, "name", (), (("cat", "dog"), (2, 1))),
        ([{"name": "cat"}, {"name": "dog"}, {"name": "cat"}], "name", (), (("cat", "dog"), (2, 1))),
        ('{"objects": [{"category": 1}, {"category": 1}]}', "objects.category", ("a", "b"), (("b",), (2,))),
        (None, "name", (), ((), ())),
        ("", "name", (), ((), ())),
        ([None, {"name": "cat"}], "name", (), (("cat",), (1,))),
        (float("nan"), "", (), ((), None)),
        ([1.0, float("nan")], "", ("cat", "dog"), (("dog",), None)),
    ],
)
def test_labels_are_found_at_their_place(cell, path, names, expected):
    assert labels_in(cell, path, names) == expected


@pytest.mark.parametrize(
    ("cell", "path", "names", "words"),
    [
        ({"label": 1}, "name", (), "has no 'name', only 'label'"),
        (["cat"], "name", (), "has no keys"),
        (2, "", ("cat", "dog"), "there is no class 2, only 2"),
        (0.9, "", ("cat", "dog"), "0.9 is no number of a class"),
        (float("inf"), "", ("cat", "dog"), "inf is no number of a class"),
        ({"name": 1}, "", (), "neither text nor a number"),
        ("{", "name", (), "Expecting property name"),
    ],
)
def test_a_place_without_labels_is_refused(cell, path, names, words):
    with pytest.raises(ValueError, match=words):
        labels_in(cell, path, names)


# --- WebDataset ----------------------------------------------------------------------------------------

MEMBERS = [
    ("0000.jpg", picture(0, "JPEG")),
    ("0000.cls", b"7\n"),
    ("0000.json", b'{"label": "tench", "objects": [{"name": "fish"}, {"name": "fish"}, {"name": "hand"}]}'),
    ("sub/0001.PNG", picture(1)),
    ("sub/0001.cls", b"3"),
    ("sub/0001.json", b'{"label": ["a", "b"], "objects": []}'),
]


def write_tar(path: Path, members=MEMBERS, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_of_tar_files_are_read_where_they_are(tmp_path, form):
    long = f"{'folder/' * 20}ümlaut 0002"  # needs a header of its own in two of the formats
    members = [*MEMBERS, *([(f"{long}.jpg", picture(2, "JPEG"))] if form != tarfile.USTAR_FORMAT else [])]
    write_tar(tmp_path / "shards" / "train-000.tar", members, format=form)
    write_tar(tmp_path / "shards" / "more" / "train-001.tar", MEMBERS[:2], format=form)
    source = WebDatasetImages(path=tmp_path / "shards")
    expected = {
        "more/train-001/0000": (("7",), None),
        "train-000/0000": (("7",), None),
        "train-000/sub/0001": (("3",), None),
    } | ({f"train-000/{long}": ((), None)} if len(members) > len(MEMBERS) else {})
    assert about(source) == expected
    contents = [
        MEMBERS[0][1],
        *(content for name, content in members if name[-4:].lower() in (".jpg", ".png")),
    ]
    for row, content in zip(scan(source, source.entries()), contents, strict=True):
        assert row.sha256 == hashlib.sha256(content).hexdigest()
    single = WebDatasetImages(path=tmp_path / "shards" / "train-000.tar")
    assert list(about(single)) == [name for name in expected if name.startswith("train-000")]
    assert list(about(WebDatasetImages(path=tmp_path / "shards", files="more/*"))) == ["more/train-001/0000"]
    assert list(tmp_path.rglob("*.jpg")) == []


def test_labels_of_samples_are_taken_from_where_they_are_said_to_be(tmp_path):
    path = write_tar(tmp_path / "a.tar")
    assert about(WebDatasetImages(path=path, labels="json.label")) == {
        "a/0000": (("tench",), (1,)),
        "a/sub/0001": (("a", "b"), (1, 1)),
    }
    assert about(WebDatasetImages(path=path, labels="json.objects.name"))["a/0000"] == (
        ("fish", "hand"),
        (2, 1),
    )
    with pytest.raises(InputError, match=r"labels of sample '0000': has no 'lable', only .*data\.labels"):
        WebDatasetImages(path=path, labels="json.lable").entries()
    with pytest.raises(InputError, match="sample '0000' has no member 'txt' for its labels"):
        WebDatasetImages(path=path, labels="txt").entries()


def test_the_longest_ending_that_fits_holds_the_labels(tmp_path):
    members = [
        ("1.jpg", picture(1)),
        ("1.json", b"{}"),
        ("1.meta.json", b'{"a": ["x"]}'),
        ("1.txt", b"cat|dog"),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    assert about(WebDatasetImages(path=path, labels="meta.json.a")) == {"a/1": (("x",), (1,))}
    assert about(WebDatasetImages(path=path, labels="txt")) == {"a/1": (("cat", "dog"), None)}
    with pytest.raises(InputError, match="labels of sample '1'"):
        WebDatasetImages(path=path, labels="txt.a").entries()


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        (np.int64(7).tobytes(), ("7",)),
        (np.int64(123456).tobytes(), ("123456",)),
        (np.int64(-1).tobytes(), ("-1",)),
        (b"tabby ca", ("tabby ca",)),
        ("größe".encode() + b" ", ("größe",)),
    ],
)
def test_class_numbers_may_be_text_or_the_bytes_of_an_int64(tmp_path, content, labels):
    path = write_tar(tmp_path / "a.tar", [("1.jpg", picture(1)), ("1.cls", content)])
    assert about(WebDatasetImages(path=path)) == {"a/1": (labels, None)}


@pytest.mark.parametrize("content", [np.int32(7).tobytes(), b"\0" * 9, b"\xff\xfe"])
def test_labels_that_are_neither_text_nor_an_int64_are_refused(tmp_path, content):
    path = write_tar(tmp_path / "a.tar", [("1.jpg", picture(1)), ("1.cls", content)])
    with pytest.raises(InputError, match=r"labels of sample '1': .*data\.labels"):
        WebDatasetImages(path=path).entries()


def test_which_of_several_images_of_a_sample_is_meant_must_be_said(tmp_path, caplog):
    path = write_tar(
        tmp_path / "a.tar", [("1.jpg", picture(1)), ("1.seg.png", picture(2)), ("2.txt", b"words")]
    )
    with pytest.raises(InputError, match=r"sample '1' holds 2 images \(jpg, seg\.png\)"):
        WebDatasetImages(path=path).entries()
    source = WebDatasetImages(path=path, image=".SEG.png")
    (row,) = scan(source, source.entries())
    assert row.sha256 == hashlib.sha256(picture(2)).hexdigest()
    assert "passed over 1 sample without an image: 2" in caplog.text
    with pytest.raises(InputError, match="hold no image"):
        WebDatasetImages(path=path, image="webp").entries()


def link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


def test_members_that_are_no_files_hidden_or_without_an_ending_belong_to_no_sample(tmp_path):
    folder = tarfile.TarInfo("sub.jpg")
    folder.type = tarfile.DIRTYPE
    members = [
        (folder, b""),
        ("README", b"x"),
        (".hidden.jpg", b"x"),
        ("._0000.jpg", b"x"),
        (link("passwd.jpg", "/etc/passwd"), b""),
        ("./0000.jpg", picture(0)),
        ("../../evil.jpg", picture(1)),
    ]
    source = WebDatasetImages(path=write_tar(tmp_path / "a.tar", members))
    assert list(about(source)) == ["a/0000", "a/../../evil"]  # names of images, not paths
    assert [row.status for row in scan(source, source.entries())] == ["ok", "ok"]


def test_a_tar_file_that_ends_anywhere_but_at_its_end_is_refused(tmp_path):
    whole = write_tar(tmp_path / "whole.tar").read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        end = tar.getmembers()[-1].offset_data + 512
    cut = tmp_path / "cut" / "cut.tar"
    cut.parent.mkdir()
    for n_bytes in sorted({*range(1, end, 97), *range(512, end + 1, 512), end}):
        cut.write_bytes(whole[:n_bytes])
        with pytest.raises(InputError, match=r"not a complete tar file of samples .*get it again"):
            WebDatasetImages(path=cut.parent).entries()
    cut.write_bytes(whole[: end + 512])
    assert len(WebDatasetImages(path=cut.parent).entries()) == 2


def test_a_damaged_header_of_a_tar_file_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar")
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar.getmembers()]
    whole = path.read_bytes()
    for header in headers:
        for at in (header, header + 124, header + 148):  # name, size, checksum
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(InputError, match="not a complete tar file"):
                WebDatasetImages(path=path).entries()


def with_size(content: bytes, header: int, size: bytes) -> bytes:
    """Return a tar file with another size in a header, and the checksum that belongs to it."""
    block = bytearray(content[header : header + 512])
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return content[:header] + bytes(block) + content[header + 512 :]


@pytest.mark.parametrize(
    "size",
    [
        (2**63).to_bytes(12, "big", signed=True)[:0] + b"\x80" + (2**62).to_bytes(11, "big"),
        b"\xff" * 11 + b"\x00",
        b"\xff" + (-512 % 256**11).to_bytes(11, "big"),
        b"\xff" + (-1024 % 256**11).to_bytes(11, "big"),
        b"\x80" + b"\xff" * 11,
        b"77777777777\0",
    ],
)
def test_impossible_sizes_in_a_tar_file_end_in_a_refusal(tmp_path, size):
    path = write_tar(tmp_path / "a.tar")
    with tarfile.open(path) as tar:
        second = tar.getmembers()[3].offset
    path.write_bytes(with_size(path.read_bytes(), second, size))
    with pytest.raises(InputError, match="not a complete tar file"):
        WebDatasetImages(path=path).entries()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_happens_to_a_tar_file_it_is_read_or_refused(tmp_path_factory, data):
    path = write_tar(tmp_path_factory.mktemp("tar") / "a.tar")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    source = WebDatasetImages(path=path)
    try:
        entries = source.entries()
    except InputError:
        return
    assert len(scan(source, entries)) == len(entries)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (
            [("1.jpg", b"x"), ("2.jpg", b"y"), ("1.cls", b"1")],
            "members of sample '1' do not follow each other",
        ),
        ([("1.jpg", b"x"), ("1.JPG", b"y")], "sample '1' has two members 'jpg'"),
    ],
)
def test_samples_that_are_mixed_are_refused(tmp_path, members, words):
    with pytest.raises(InputError, match=words):
        WebDatasetImages(path=write_tar(tmp_path / "a.tar", members)).entries()


def test_a_name_that_no_table_can_hold_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("n\udcff.jpg", b"x")], format=tarfile.GNU_FORMAT)
    with pytest.raises(InputError, match="is not valid Unicode"):
        WebDatasetImages(path=path).entries()


def test_compressed_and_other_files_are_refused_with_a_remedy(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
        pass
    with pytest.raises(
        MissingInputError, match=r"no file that ends in \.tar and matches '\*', only a\.tar\.gz"
    ):
        WebDatasetImages(path=tmp_path).entries()
    (tmp_path / "a.tar.gz").rename(tmp_path / "a.tar")
    with pytest.raises(InputError, match="decompress it if it is compressed"):
        WebDatasetImages(path=tmp_path).entries()
    with pytest.raises(MissingInputError, match="no folder or file"):
        WebDatasetImages(path=tmp_path / "nowhere").entries()
    write_tar(tmp_path / "a.tar", [])
    with pytest.raises(InputError, match="1 tar files hold no image"):
        WebDatasetImages(path=tmp_path).entries()


def test_pickled_members_are_never_read(tmp_path):
    class Code:
        def __reduce__(self):
            return (tmp_path / "ran").mkdir, ()

    path = write_tar(tmp_path / "a.tar", [("1.jpg", picture(1)), ("1.pyd", pickle.dumps(Code()))])
    with pytest.raises(InputError, match="labels of sample '1'"):
        WebDatasetImages(path=path, labels="pyd").entries()
    assert list(about(WebDatasetImages(path=path))) == ["a/1"]
    assert not (tmp_path / "ran").exists()


def test_a_member_of_too_many_bytes_is_not_read(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("1.jpg", bytes(5000)), ("2.jpg", picture(0, size=40))])
    source = WebDatasetImages(path=path, max_image_bytes=1000)
    assert [
        "more than 4000 bytes" in row.error or "1600 bytes" in row.error
        for row in scan(source, source.entries())
    ]
    assert [row.status for row in scan(source, source.entries())] == ["unreadable"] * 2


# --- Parquet -------------------------------------------------------------------------------------------


def write_parquet(
    path: Path, n: int = 10, *, rows: int = 4, features: dict | None = None, **columns
) -> list[bytes]:
    """Write a file as `datasets` does; return the contents of its images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = [picture(value) for value in range(n)]
    images = [{"bytes": content, "path": f"{value}.png"} for value, content in enumerate(contents)]
    table = pa.table({"image": images, **columns})
    if features is not None:
        info = {"info": {"features": {"image": {"_type": "Image"}, **features}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path, row_group_size=rows, write_page_checksum=True)
    return contents


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


# --- both ----------------------------------------------------------------------------------------------


def packed(folder: Path, kind: str):
    if kind == "tar":
        write_tar(folder / "a.tar")
        return WebDatasetImages(path=folder)
    write_parquet(folder / "a.parquet", 2)
    return ParquetImages(path=folder)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_images_whose_file_has_not_changed_are_not_read_again(tmp_path, kind):
    source = packed(tmp_path, kind)
    entries = source.entries()
    manifest = Manifest(tuple(scan(source, entries)))
    assert Manifest.from_parquet(manifest.to_parquet(), "kept") == manifest
    (known,) = find_known(source, entries, manifest)
    assert tuple(known) == manifest.rows
    file = next(tmp_path.iterdir())
    content = file.read_bytes()
    file.unlink()
    assert [source.stamp(entry) for entry in entries] == [None, None]
    assert {row.error for row in scan(source, entries)} == {f"{file}: there is no such file"}
    file.write_bytes(content)
    (known,) = find_known(source, entries, manifest)
    assert known == [None, None]
    assert pickle.loads(pickle.dumps(source)) == source


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize(
    "place", ["{}/../b/a.{}#0+9", "/etc/passwd#0+9", "{}/a.{}", "{}/a.{}#image/x+1", "{}/a.{}#-1+9", "a.{1}"]
)
def test_places_out_of_the_folder_and_parts_that_are_none_are_unreadable(tmp_path, kind, place):
    for folder in ("a", "b"):
        source = packed(tmp_path / folder, kind)
    source = source.model_copy(update={"path": tmp_path / "a"})
    uri = place.format(tmp_path / "a", kind)
    with pytest.raises(UnreadableImageError, match=r"is none of|is not a p(art|lace)"):
        source.load(ImageEntry("x", uri))


def test_a_place_in_another_store_than_the_folder_is_unreadable():
    source = WebDatasetImages(path="s3://bucket/shards?region=eu-west-1")
    for uri in ("s3://bucket/shards/a.tar?endpoint_override=evil#0+9", "s3://bucket/shards/a.tar#0+9"):
        with pytest.raises(UnreadableImageError, match="is none of"):
            source.load(ImageEntry("x", uri))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_run_inside_the_folder_is_refused(tmp_path, kind):
    source = packed(tmp_path, kind)
    assert source.would_list(str(tmp_path / "runs" / "mine"))
    assert not source.would_list(str(tmp_path.parent / "mine"))


# --- runs ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_run_on_packed_images_is_that_on_their_files_and_resumes(tmp_path, kind):
    (tmp_path / "files").mkdir()
    write_tar(tmp_path / "tar" / "a.tar", [(f"{n}.png", picture(n)) for n in range(6)])
    for n, content in enumerate(write_parquet(tmp_path / "parquet" / "a.parquet", 6)):
        (tmp_path / "files" / f"{n}.png").write_bytes(content)
    found = {}
    for name, section in (("folder", "files"), ({"tar": "webdataset"}.get(kind, kind), kind)):
        document = {
            "run": str(tmp_path / f"run-{section}"),
            "data": {"source": name, "path": str(tmp_path / section)},
            "model": {"name": "test_resnet", "weights": "random", "layers": ["layer1"]},
            "workers": 2,
        }
        found[section] = srs.run(parse_config(document))
    rows, expected = (found[section].manifest("images").rows for section in (kind, "files"))
    assert [row.sha256 for row in rows] == [row.sha256 for row in expected]
    values = [np.asarray(run.similarity("layer1")) for run in found.values()]
    np.testing.assert_array_equal(*values)
    again = srs.run(parse_config(document))
    assert again.manifest("images").rows == rows
    (tmp_path / kind).rename(tmp_path / "gone")
    assert srs.run(parse_config(document)).manifest("images").rows == rows  # the run no longer needs them

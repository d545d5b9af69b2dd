"""Tables of images in each of their formats, and what is wrong in them."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.data.entries import ImageEntry, UnreadableImageError, format_labels, parse_labels
from semrsm_dist.data.sources.table import TableImages
from semrsm_dist.data.table import read_entries
from semrsm_dist.errors import InputError
from tests.data.image_files import write_image

ROWS = {
    "image_id": ["001", "b", "ü"],
    "uri": ["images/a.png", "images/b c.png", "images/ü.png"],
    "labels": [["cup", "hand"], [], ["cup"]],
    "group": ["video 1", None, "video 2"],
}


@pytest.fixture
def table_folder(tmp_path: Path) -> Path:
    for value, uri in enumerate(ROWS["uri"]):
        write_image(tmp_path / uri, value)
    return tmp_path


def write_table(folder: Path, kind: str, rows: dict[str, list[object]] = ROWS) -> Path:
    path = folder / f"images.{kind}"
    if kind == "csv":
        texts = {**rows}
        if "labels" in texts:
            texts["labels"] = ["|".join(labels) for labels in rows["labels"]]
        pd.DataFrame(texts).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet", "pq"])
def test_table_gives_records_in_its_order(table_folder, kind, monkeypatch):
    images = TableImages(path=write_table(table_folder, kind))
    records = images.entries()
    assert [r.image_id for r in records] == ROWS["image_id"]
    assert [r.labels for r in records] == [("cup", "hand"), (), ("cup",)]
    assert [r.group for r in records] == ["video 1", None, "video 2"]
    monkeypatch.chdir("/")
    for value, record in enumerate(records):
        assert np.asarray(pickle.loads(pickle.dumps(images)).read(record))[0, 0, 0] == value


def test_uris_may_be_relative_absolute_or_with_a_scheme(table_folder):
    target = table_folder / "images" / "b c.png"
    (table_folder / "sub").mkdir()
    rows = {
        "image_id": list("abcd"),
        "uri": ["../images/b c.png", str(target), target.as_uri(), f"file://{target}"],
        "labels": [[]] * 4,
    }
    path = write_table(table_folder / "sub", "csv", rows)
    with pytest.raises(InputError, match=r"row 0 .* '\.\./images/b c\.png' leads out .* allow_outside: true"):
        TableImages(path=path).entries()
    images = TableImages(path=path, allow_outside=True)
    assert {images.load(r).sha256 for r in images.entries()} == {
        hashlib.sha256(target.read_bytes()).hexdigest()
    }


def test_uris_of_other_file_systems_reach_pyarrow(table_folder):
    """Pyarrow's in-memory file system stands for a bucket: same code, no network."""
    rows = {"image_id": ["a"], "uri": ["mock:///bucket/no such key.png"], "labels": [[]]}
    images = TableImages(path=write_table(table_folder, "csv", rows))
    (record,) = images.entries()
    with pytest.raises(UnreadableImageError, match=r"a \(mock:///bucket/no such key\.png\).*no such file"):
        images.read(record)


def test_unknown_scheme_is_refused(table_folder):
    rows = {"image_id": ["a"], "uri": ["ftp://host/a.png"], "labels": [[]]}
    images = TableImages(path=write_table(table_folder, "csv", rows))
    with pytest.raises(InputError, match=r"images\.csv: ftp://host/a\.png: .*s3://"):
        images.entries()
    with pytest.raises(InputError, match=r"ftp://host/.*s3://"):
        images.read(ImageEntry("a", "ftp://host/a.png"))


@pytest.mark.parametrize("kind", ["list_view", "large_list_view"])
def test_labels_in_a_view_of_lists(tmp_path, kind):
    """Parquet cannot hold them in all versions of pyarrow, so the column is given as it would come."""
    labels = pa.array([["1", "2"], None], getattr(pa, kind)(pa.string()))
    table = pa.table({"image_id": ["7", "8"], "uri": ["a", "b"], "labels": labels})
    try:
        pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    except pa.ArrowException:
        pytest.skip("this pyarrow writes no such column")
    entries = TableImages(path=tmp_path / "t.parquet").entries()
    assert [entry.labels for entry in entries] == [("1", "2"), ()]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", 'image_id,uri,labels\n007,a.png,"[""cat"", ""odd, one""]"\nb,b.png,[]\nc,c.png,\n'),
        ("t.csv", "image_id,uri,labels\n007,a.png,\"['cat', 'odd, one']\"\nb,b.png,[ ]\nc,c.png,[None]\n"),
        ("t.csv", "image_id;uri;labels\r\n007;a.png;cat|odd, one\r\nb;b.png;\r\nc;c.png;\r\n"),
        ("t.tsv", "image_id\turi\tlabels\n007\ta.png\tcat|odd, one\nb\tb.png\t\nc\tc.png\t\n"),
        ("t.csv", "\ufeffimage_id\turi\tlabels\n007\ta.png\tcat|odd, one\nb\tb.png\t\nc\tc.png\t\n"),
        (
            "t.jsonl",
            '{"image_id": "007", "uri": "a.png", "labels": ["cat", "odd, one"]}\n\n'
            '{"uri": "b.png", "image_id": "b", "labels": "", "more": {"x": [1]}}\n'
            '{"image_id": "c", "uri": "c.png", "labels": null}\n',
        ),
    ],
)
def test_text_tables_of_every_dialect(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    entries = TableImages(path=tmp_path / name).entries()
    assert [(e.image_id, Path(e.uri).name, e.labels) for e in entries] == [
        ("007", "a.png", ("cat", "odd, one")),
        ("b", "b.png", ()),
        ("c", "c.png", ()),
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "t.csv",
            b"image_id,uri,labels\na,a.png,[unclear\n",
            r"row 0 .*'\[unclear' is no list of labels.*must be in quotation marks",
        ),
        ("t.csv", b"image_id,uri,labels\na,a.png,[[1]]\n", r"\[1\] is neither text nor a number"),
        (
            "t.csv",
            "image_id,uri,labels\nä,a.png,b\n".encode("latin-1"),
            "not UTF-8 .* at byte 20.* save it as UTF-8",
        ),
        ("t.jsonl", b'{"image_id": 1\n', "t.jsonl: the table cannot be read"),
        ("t.jsonl", b"[1]\n", r"line 1 is no object with keys: '\[1\]'"),
        ("t.jsonl", b'{"image_id": 1, "labels": ["a"]}\n', r"lacks the column uri"),
        ("t.txt", b"\n", "no rows"),
    ],
)
def test_what_no_table_can_mean_is_refused_with_a_remedy(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        TableImages(path=tmp_path / name).entries()


def test_a_list_of_paths_is_a_table_without_labels(tmp_path):
    """As thingsvision writes it beside its features."""
    write_image(tmp_path / "images" / "b c.png", 7)
    write_image(tmp_path / "images" / "a.png", 8)
    (tmp_path / "file_names.txt").write_text("images/b c.png\nimages/a.png\n")
    images = TableImages(path=tmp_path / "file_names.txt")
    assert [(e.image_id, e.labels) for e in images.entries()] == [
        ("images/b c.png", ()),
        ("images/a.png", ()),
    ]
    assert [np.asarray(images.read(entry))[0, 0, 0] for entry in images.entries()] == [7, 8]
    assert [e.image_id for e in read_entries(tmp_path / "file_names.txt", needs_uri=False)] == [
        *("images/b c.png", "images/a.png")
    ]


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([[1, 2], []]),
        pa.array([["1", "2"], None]),
        pa.array([["1", "2"], []], pa.large_list(pa.string())),
        pa.array(["1 | 2", None]),
        pa.array(["1|2|", ""]).dictionary_encode(),
        pa.array([["1", None, "2"], [None]]),
        pa.array([["1 ", " 2"], [""]]),
        pa.array([["1", "2"], [None, " "]], pa.list_(pa.string(), 2)),
    ],
)
def test_labels_of_every_column_type(tmp_path, labels):
    table = pa.table({"image_id": [7, 8], "uri": ["a", "b"], "labels": labels})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    records = TableImages(path=tmp_path / "t.parquet").entries()
    assert [(r.image_id, r.labels) for r in records] == [("7", ("1", "2")), ("8", ())]


def test_csv_is_text_whatever_it_looks_like(tmp_path):
    path = tmp_path / "t.CSV"
    path.write_bytes(
        '\ufeffuri,labels,image_id,extra\r\n"a,b.png",null|NA,007,1\r\nc.png,3,1e5,2\r\n'.encode()
    )
    first, second = TableImages(path=path).entries()
    assert (first.image_id, first.labels, first.uri) == ("007", ("null", "NA"), f"{tmp_path}/a,b.png")
    assert (second.image_id, second.labels, second.group) == ("1e5", ("3",), None)


def test_repeated_ids_are_named(table_folder):
    rows = {**ROWS, "image_id": ["x", "y", "x"]}
    with pytest.raises(InputError, match=r"1 image ids? occurs? more than once \('x'\)"):
        TableImages(path=write_table(table_folder, "csv", rows)).entries()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("missing", ["image_id", "uri"])
def test_missing_columns_are_named(table_folder, kind, missing):
    rows = {name: values for name, values in ROWS.items() if name != missing}
    with pytest.raises(InputError, match=rf"lacks the column {missing}; it has .*the others may be left out"):
        TableImages(path=write_table(table_folder, kind, rows)).entries()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_labels_and_groups_may_be_left_out(table_folder, kind):
    rows = {name: ROWS[name] for name in ("image_id", "uri")}
    path = write_table(table_folder, kind, rows)
    assert [(e.image_id, e.labels, e.group) for e in TableImages(path=path).entries()] == [
        (name, (), None) for name in ROWS["image_id"]
    ]
    assert [e.labels for e in read_entries(path, needs_uri=False)] == [()] * len(ROWS["image_id"])


@pytest.mark.parametrize("column", ["image_id", "uri", "labels", "group"])
def test_repeated_columns_are_named(tmp_path, column):
    (tmp_path / "t.csv").write_text(f"image_id,uri,labels,group,{column}\na,a.png,cat,,b\n")
    with pytest.raises(InputError, match=f"more than one column '{column}'"):
        TableImages(path=tmp_path / "t.csv").entries()


def test_a_misspelt_column_is_suggested(tmp_path):
    (tmp_path / "t.csv").write_text("image_id,uri,label\na,a.png,cat\n")
    with pytest.raises(
        InputError, match=r"a column 'label' but no 'labels'; did you mean 'labels'[?] Rename it"
    ):
        TableImages(path=tmp_path / "t.csv").entries()


@pytest.mark.parametrize("column", ["image_id", "uri"])
def test_rows_with_an_empty_cell_are_refused(tmp_path, column):
    cells = {"image_id": "b", "uri": "b.png", "labels": ""} | {column: ""}
    (tmp_path / "t.csv").write_text("image_id,uri,labels\na,a.png,\n" + ",".join(cells.values()) + "\n")
    with pytest.raises(InputError, match=f"{column} is empty in 1 of 2 rows, first in row 1"):
        TableImages(path=tmp_path / "t.csv").entries()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", b"", "cannot be read"),
        ("t.csv", b"image_id,uri,labels\n", "no rows"),
        ("t.csv", b"image_id,uri,labels\na,b\n", "cannot be read"),
        ("t.csv", b"image_id,uri,labels\n\xff\xfe,a,b\n", "is not UTF-8 .* save it as UTF-8"),
        ("t.parquet", b"not parquet", "cannot be read"),
        ("t.xlsx", b"", r"not in '\.xlsx'"),
        ("t", b"", "not in 'nothing'"),
    ],
)
def test_unusable_tables_are_refused_by_name(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        TableImages(path=tmp_path / name).entries()
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        TableImages(path=tmp_path / "t.csv").entries()


def test_ids_that_are_no_text_are_refused(tmp_path):
    table = pa.table({"image_id": [["a"]], "uri": ["a"], "labels": [["a"]]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(InputError, match="image_id must hold text"):
        TableImages(path=tmp_path / "t.parquet").entries()


def test_labels_of_ready_made_features_need_no_uri(tmp_path):
    (tmp_path / "t.csv").write_text("image_id,labels,group\na,x|y,g\nb,,\nc,z,g\n")
    assert [r.uri for r in read_entries(tmp_path / "t.csv", needs_uri=False)] == ["", "", ""]
    assert [r.labels for r in read_entries(tmp_path / "t.csv", needs_uri=False)] == [("x", "y"), (), ("z",)]


@pytest.mark.parametrize(
    ("header", "found", "meant"),
    [
        ("image_id,uri,labels,groups", "groups", "group"),
        ("image_id,uri,labels,Group", "Group", "group"),
        ("image_id,uri,lables,group", "lables", "labels"),
        ("Image_ID,uri,labels,group", "Image_ID", "image_id"),
    ],
)
def test_a_column_that_is_misspelt_is_refused(tmp_path, header, found, meant):
    (tmp_path / "t.csv").write_text(f"{header}\na,a.png,cat,g\n")
    words = f"has a column '{found}' but no '{meant}'; did you mean '{meant}'[?] Rename it, or"
    with pytest.raises(InputError, match=words):
        TableImages(path=tmp_path / "t.csv").entries()


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_blanks_around_column_names_do_not_count(tmp_path, kind):
    row = {" image_id": "007", "uri ": "a.png", "labels ": "cat", " group": "g"}
    path = tmp_path / f"t.{kind}"
    if kind == "csv":
        path.write_text("\n".join(",".join(cells) for cells in (row.keys(), row.values())))
    elif kind == "parquet":
        pd.DataFrame([row]).to_parquet(path)
    else:
        path.write_text(json.dumps(row))
    assert TableImages(path=path).entries() == [ImageEntry("007", f"{tmp_path}/a.png", ("cat",), "g")]
    (tmp_path / "t.csv").write_text("image_id,uri,labels,labels \na,a.png,cat,dog\n")
    with pytest.raises(InputError, match="more than one column 'labels'"):
        TableImages(path=tmp_path / "t.csv").entries()


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_number_nan_is_a_missing_value(tmp_path, kind):
    path = tmp_path / f"t.{kind}"
    cells = [["cat"], math.nan, ["dog"]]
    if kind == "jsonl":
        rows = [{"image_id": str(i), "uri": "a.png", "labels": each} for i, each in enumerate(cells)]
        path.write_text("\n".join(json.dumps({**row, "group": math.nan}) for row in rows))
    else:
        columns = {"image_id": ["0", "1", "2"], "uri": ["a.png"] * 3, "labels": [["cat"], None, ["dog"]]}
        groups = pa.array([math.nan, math.nan, math.nan], pa.float64())  # not null, as pandas would make it
        pa.parquet.write_table(pa.table({**columns, "group": groups}), path)
    entries = TableImages(path=path).entries()
    assert [(entry.labels, entry.group) for entry in entries] == [
        (("cat",), None),
        ((), None),
        (("dog",), None),
    ]


def test_text_that_may_mean_a_missing_value_is_reported(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("image_id,uri,labels,group\na,a.png,nan,nan\nb,b.png,None|cat,nan\n")
    entries = TableImages(path=tmp_path / "t.csv").entries()
    assert [(entry.labels, entry.group) for entry in entries] == [(("nan",), "nan"), (("None", "cat"), "nan")]
    told = [record.getMessage() for record in caplog.records]
    assert "'None', 'nan' in the column labels counts as a name, so images with it share a label" in told[0]
    assert "'nan' in the column group" in told[1] and "near-duplicates of each other" in told[1]


def test_further_columns_are_reported_once(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("image_id,uri,labels,width,camera\na,a.png,cat,3,x\nb,b.png,cat,3,x\n")
    for _ in range(3):
        assert len(TableImages(path=tmp_path / "t.csv").entries()) == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 't.csv'}: the columns 'width', 'camera' are not used"
    ]


@pytest.mark.parametrize(
    ("cell", "labels"),
    [('"cat|dog"', ("cat|dog",)), ('["cat|dog", 3]', ("cat|dog", "3")), ("cat|dog", ("cat", "dog"))],
)
def test_json_in_a_cell_of_labels(tmp_path, cell, labels):
    row = {"image_id": "a", "uri": "a.png", "labels": cell}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    pd.DataFrame([row]).to_csv(tmp_path / "t.csv", index=False)
    for name in ("t.jsonl", "t.csv"):
        [entry] = TableImages(path=tmp_path / name).entries()
        assert entry.labels == labels


@pytest.mark.parametrize("cell", ['{"a": 1}', '"cat', "['cat' 'dog']", '["cat"', "[[1]]", '"a" | "b"'])
def test_what_begins_as_json_but_holds_no_labels_is_refused(tmp_path, cell):
    row = {"image_id": "a", "uri": "a.png", "labels": cell}
    pd.DataFrame([row]).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError, match=r"the labels of row 0 .*write a list such as \[.cat"):
        TableImages(path=tmp_path / "t.csv").entries()


def test_a_list_that_is_not_quoted_gets_a_hint(tmp_path):
    (tmp_path / "t.csv").write_text('image_id,uri,labels\na,a.png,["cat", "odd"]\n')
    with pytest.raises(InputError, match=r"line 2 has 4 cells, the header 3 .*\[\"\"cat\"\", \"\"odd\"\"\]"):
        TableImages(path=tmp_path / "t.csv").entries()


@given(st.lists(st.text(st.sampled_from("ab|,;[]{}\"' \\\n"), min_size=1).map(str.strip).filter(bool)))
def test_labels_written_as_text_are_read_back(labels):
    assert parse_labels(format_labels(labels)) == tuple(labels)


@pytest.mark.parametrize("uri", ["../x.png", "/etc/x.png", "file:///etc/x.png", "a/../../x.png"])
def test_a_path_out_of_the_tables_folder_is_refused_unless_allowed(tmp_path, uri):
    (tmp_path / "t.jsonl").write_text(json.dumps({"image_id": "a", "uri": uri, "labels": []}))
    with pytest.raises(InputError, match=r"leads out of the table's folder .* allow_outside: true"):
        TableImages(path=tmp_path / "t.jsonl").entries()
    assert len(TableImages(path=tmp_path / "t.jsonl", allow_outside=True).entries()) == 1


def test_a_link_out_of_the_tables_folder_is_unreadable_unless_allowed(tmp_path):
    write_image(tmp_path / "else" / "x.png", 9)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "else")
    (tmp_path / "here" / "t.csv").write_text("image_id,uri,labels\na,link/x.png,\n")
    images = TableImages(path=tmp_path / "here" / "t.csv")
    with pytest.raises(UnreadableImageError, match=r"links outside '.*here', and allow_outside"):
        images.load(images.entries()[0])
    images = TableImages(path=tmp_path / "here" / "t.csv", allow_outside=True)
    assert np.asarray(images.read(images.entries()[0]))[0, 0, 0] == 9

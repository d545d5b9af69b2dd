"""The record of a run, its manifest and its summary: whole, or refused."""

import errno
import json
import math
import os
import threading

import pytest

from semrsm_dist.data.manifest import Manifest
from semrsm_dist.errors import StorageError
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.store.paths import write_atomically
from semrsm_dist.store.record import FORMAT
from tests.store.conftest import RECORD, SIZES


def test_the_record_is_what_was_written_in_its_order(run):
    run.write_record(RECORD)
    assert run.read_record() == RECORD
    assert list(run.read_record().layers) == ["z", "a"]
    assert sorted(path.name for path in run.path.iterdir()) == ["run.copy.json", "run.json"]


@pytest.mark.parametrize("lost", ["run.json", "run.copy.json"])
@pytest.mark.parametrize("content", [None, "", "{", "{}", "ÿ", "[" * 100_000])
def test_either_record_may_be_lost(run, caplog, lost, content):
    run.write_record(RECORD)
    if content is None:
        (run.path / lost).unlink()
    else:
        (run.path / lost).write_text(content, encoding="latin-1")
    run.create()
    assert run.read_record() == RECORD
    used = f"{run.path / 'run.json'}: missing or damaged; its copy run.copy.json is used"
    assert (used in caplog.text) == (lost == "run.json")
    run.write_record(RECORD)
    assert (run.path / "run.json").read_bytes() == (run.path / "run.copy.json").read_bytes()


@pytest.mark.parametrize(
    "content", ["", "{", '{"fingerprint": {}', "\0\0\0", "ÿ", "[" * 100_000, '{"config":' * 100_000]
)
def test_a_damaged_record_is_never_taken_for_a_new_run(run, content):
    (run.path / "run.json").write_text(content, encoding="latin-1")
    with pytest.raises(
        StorageError, match=r"run\.json: the record of the run cannot be read .*restore the file"
    ):
        run.read_record()


@pytest.mark.parametrize("content", ["[]", "3", "null", "{}", f'{{"fingerprint": {{}}, "format": {FORMAT}}}'])
def test_something_else_is_no_record(run, content):
    (run.path / "run.json").write_text(content)
    with pytest.raises(StorageError, match=r"not the record of a run \(.*restore the file"):
        run.read_record()


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"chunk_size": 0}, "chunk_size"),
        ({"counts": {"queries": 3}}, "counts"),
        ({"counts": {"images": 3, "others": 3}}, "counts"),
        ({"layers": {"a": {"n_tokens": 3}}}, "layers.a.n_channels"),
        ({"layers": {"../evil": SIZES}}, r"layers.\.\./evil"),
        ({"requested": ["/evil"]}, "requested.0"),
        ({"more": 1}, "more"),
        ({"format": str(FORMAT)}, "format"),
        ({"format": True}, "format"),
        ({"counts": {"images": -1}}, "counts.images"),
        ({"counts": {"images": 3, "queries": 0}}, "counts.queries"),
        ({"requested": ["b"]}, "requested: no layers of these names: \\['b'\\]"),
        ({"requested": []}, "requested"),
        ({"layers": {}}, "layers"),
        ({"batch_size": -1}, "batch_size"),
        ({"layers": {"a": SIZES | {"pair_seconds": math.inf}}}, "layers.a.pair_seconds"),
        ({"layers": {"a": SIZES | {"tile_size": "2"}}}, "layers.a.tile_size"),
    ],
)
def test_a_record_with_a_wrong_part_is_refused_and_the_part_named(run, change, place):
    (run.path / "run.json").write_text(json.dumps(json.loads(RECORD.model_dump_json()) | change))
    with pytest.raises(StorageError, match=rf"run\.json: not the record of a run \({place}"):
        run.read_record()


def test_a_run_of_another_format_is_refused_with_a_way_out(run):
    old = {"fingerprint": {"format": 1}, "layers": {}, "chunk_size": 4, "row_side": "images", "counts": {}}
    for content, number in ((old, 1), ({"format": 9, **old}, 9), ({"format": 2}, 2)):
        (run.path / "run.json").write_text(json.dumps(content))
        with pytest.raises(
            StorageError, match=rf"has format {number}, .* use the version that began the run, or"
        ):
            run.read_record()


def test_a_record_tells_how_matrices_are_cut():
    assert RECORD.row_side == "queries"
    assert RECORD.layout("a") == Layout(3, 5, 2, symmetric=False)
    symmetric = RECORD.model_copy(update={"counts": {"images": 5}})
    assert symmetric.row_side == "images"
    assert symmetric.layout("a") == Layout(5, 5, 2, symmetric=True)


def test_a_directory_for_a_record_is_reported(run):
    (run.path / "run.json").mkdir()
    with pytest.raises(StorageError, match="cannot be read"):
        run.read_record()
    run.write_record(RECORD)
    assert run.read_record() == RECORD
    assert (run.path / "run.json.aside-1").is_dir()


def test_a_write_that_fails_leaves_the_old_text_and_no_rest(run, monkeypatch):
    run.write_record(RECORD)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        StorageError, match=r"cannot be written \(No space left on device\).* is kept: make room"
    ):
        run.write_record(RECORD.model_copy(update={"chunk_size": 5}))
    assert run.read_record() == RECORD
    assert sorted(path.name for path in run.path.iterdir()) == ["run.copy.json", "run.json"]


def test_readers_never_see_a_part(run):
    path = run.path / "text"
    texts = {letter * 200_000 for letter in "abc"}
    write_atomically(path, b"a" * 200_000)
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for text in texts:
                write_atomically(path, text.encode())

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert {path.read_text() for _ in range(200)} <= texts
    finally:
        stop.set()
        writer.join()


def test_a_manifest_is_replaced_as_a_whole(run, monkeypatch):
    with pytest.raises(StorageError, match=r"images\.parquet: the manifest cannot be read \(No such file"):
        run.read_manifest("images")
    old = Manifest.from_ids(["a"])
    run.write_manifest("images", old)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        run.write_manifest("images", Manifest.from_ids(["b"]))
    assert run.read_manifest("images") == old
    assert [path.name for path in run.path.iterdir()] == ["images.parquet"]


def test_the_summary_is_kept_beside(run):
    assert run.read_summary() is None
    run.write_summary({"z": None, "a": [1.5]})
    assert list(run.read_summary().items()) == [("z", None), ("a", [1.5])]
    for content in ("{", "[" * 100_000):
        (run.path / "summary.json").write_text(content)
        assert run.read_summary() is None
    run.write_summary({"z": 1.5, "k": {3: 4}})
    assert run.read_summary() == {"z": 1.5, "k": {"3": 4}}
    file = run.path / "summary.json"
    file.write_text(file.read_text().replace("1.5", "1.7"))
    assert run.read_summary() is None

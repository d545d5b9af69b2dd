"""The manifest: scanned in slices, reused where nothing changed, and the same after a round trip."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from semrsm_dist.data.entries import ImageEntry
from semrsm_dist.data.manifest import SCHEMA, UNREADABLE, Manifest, ManifestRow, find_known, scan
from semrsm_dist.data.sources.digits import DigitScenes
from semrsm_dist.data.sources.folder import FolderImages
from semrsm_dist.data.table import read_entries
from semrsm_dist.errors import InputError, StorageError


class CountingFolder(FolderImages):
    """A folder that notes which images are read."""

    def load(self, record):
        READ.append(record.image_id)
        return super().load(record)


READ: list[str] = []


@pytest.fixture(autouse=True)
def forget_reads():
    READ.clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    (root / "a").mkdir(parents=True)
    for index in range(4):
        Image.fromarray(rng.integers(0, 256, (5, 7 + index, 3), dtype=np.uint8)).save(
            root / "a" / f"{index}.png"
        )
    Image.fromarray(np.full((3, 3), 999, np.uint16)).save(root / "deep.png")
    (root / "empty.png").write_bytes(b"")
    (root / "note.png").write_text("no image")
    whole = (root / "a" / "0.png").read_bytes()
    (root / "cut.png").write_bytes(whole[: len(whole) // 2])
    return root


def scanned(root: Path, previous: Manifest | None = None) -> Manifest:
    images = CountingFolder(path=root)
    records = images.entries()
    if previous is None:
        return Manifest(tuple(scan(images, records)))
    rows = [row for part in find_known(images, records, previous) for row in part]
    return Manifest(
        tuple(row or scan(images, [record])[0] for record, row in zip(records, rows, strict=True))
    )


def test_scan_tells_what_each_image_is(folder):
    manifest = scanned(folder)
    assert len(manifest) == 8
    for row in manifest.rows:
        content = (folder / row.image_id).read_bytes()
        assert row.n_bytes == len(content)
        assert row.mtime_ns == (folder / row.image_id).stat().st_mtime_ns
        if row.status == "ok":
            assert row.sha256 == hashlib.sha256(content).hexdigest()
            assert row.error is None
    assert [row.image_id for row in manifest.unreadable] == ["cut.png", "empty.png", "note.png"]
    assert all(row.status == UNREADABLE and row.error and row.sha256 is None for row in manifest.unreadable)
    assert manifest.image_ids() == ["a/0.png", "a/1.png", "a/2.png", "a/3.png", "deep.png"]
    assert manifest.labels() == [("a",)] * 4 + [()]
    assert [(row.width, row.height, row.mode) for row in manifest.rows[:2]] == [(7, 5, "RGB"), (8, 5, "RGB")]
    assert manifest.get("deep.png").mode == "I;16"
    assert [r.image_id for r in manifest.readable] == manifest.image_ids()
    assert manifest.groups() == [None] * 5


def test_slices_scanned_apart_join_to_the_whole(folder):
    images = FolderImages(path=folder)
    records = images.entries()
    rows = [row for first in range(0, len(records), 3) for row in scan(images, records[first : first + 3])]
    assert Manifest(tuple(rows)) == scanned(folder)


def test_unchanged_images_are_not_read_again(folder):
    first = scanned(folder)
    assert len(READ) == 8
    READ.clear()
    assert scanned(folder, Manifest.from_parquet(first.to_parquet(), "kept")) == first
    assert READ == ["cut.png", "empty.png", "note.png"]  # what failed gets another chance


@pytest.mark.parametrize("what", ["time", "size"])
def test_changed_images_are_read_again(folder, what):
    first = scanned(folder)
    READ.clear()
    changed = folder / "a" / "2.png"
    before = changed.stat()
    if what == "size":
        changed.write_bytes(changed.read_bytes() + b" ")
        os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    second = scanned(folder, first)
    assert [name for name in READ if name.startswith("a/")] == ["a/2.png"]
    assert (second.digest() == first.digest()) == (what == "time")


def test_an_image_that_moved_is_read_again(folder):
    first = scanned(folder)
    moved = Manifest(tuple(replace(row, uri="/elsewhere/" + row.image_id) for row in first.rows))
    READ.clear()
    assert scanned(folder, moved) == first
    assert len(READ) == 8


def test_a_reused_row_takes_labels_and_group_from_the_record(folder):
    images = CountingFolder(path=folder)
    first = scanned(folder)
    READ.clear()
    records = [replace(images.entries()[0], labels=("new",), group="g")]
    ((row,),) = find_known(images, records, first)
    assert (row.labels, row.group, READ) == (("new",), "g", [])


def test_added_and_removed_images(folder):
    first = scanned(folder)
    READ.clear()
    (folder / "a" / "0.png").unlink()
    (folder / "b.png").write_bytes((folder / "a" / "1.png").read_bytes())
    second = scanned(folder, first)
    assert second.image_ids() == ["a/1.png", "a/2.png", "a/3.png", "b.png", "deep.png"]
    assert set(READ) == {"b.png", "cut.png", "empty.png", "note.png"}


def test_what_is_known_is_reported_in_order_and_the_rest_is_left_to_be_scanned(tmp_path):
    for index in range(150):  # more than one look
        Image.new("L", (2, 2), index).save(tmp_path / f"{index:03d}.png")
    first = scanned(tmp_path)
    (tmp_path / "070.png").unlink()
    (tmp_path / "1000.png").write_bytes((tmp_path / "000.png").read_bytes())
    images = FolderImages(path=tmp_path)
    records = images.entries()
    rows = [row for part in find_known(images, records, first) for row in part]
    assert [None if row is None else row.image_id for row in rows] == [
        None if record.image_id == "1000.png" else record.image_id for record in records
    ]


def test_an_image_that_the_storage_does_not_answer_for_is_left_to_be_scanned(folder, monkeypatch):
    first = scanned(folder)

    def fails(self, record):
        raise StorageError("the network is away")

    monkeypatch.setattr(FolderImages, "stamp", fails)
    images = FolderImages(path=folder)
    assert [row for part in find_known(images, images.entries(), first) for row in part] == [None] * 8


def test_a_repaired_image_changes_the_digest(folder):
    first = scanned(folder)
    (folder / "empty.png").write_bytes((folder / "a" / "1.png").read_bytes())
    second = scanned(folder, first)
    assert "empty.png" in second.image_ids()
    assert second.digest() != first.digest()


def test_digit_scenes_scan_like_files():
    scenes = DigitScenes(n_images=5)
    manifest = Manifest(tuple(scan(scenes, scenes.entries())))
    assert [row.sha256 for row in manifest.rows] == [scenes.load(r).sha256 for r in scenes.entries()]
    assert manifest.labels() == [r.labels for r in scenes.entries()]
    assert (manifest.rows[0].width, manifest.rows[0].mtime_ns) == (96, None)


def test_digest_depends_on_order_names_and_content_only():
    a, b = (ManifestRow(name, f"/x/{name}", sha256=name * 8) for name in "ab")
    digest = Manifest((a, b)).digest()
    assert Manifest((b, a)).digest() != digest
    assert Manifest((a, replace(b, image_id="c"))).digest() != digest
    assert Manifest((a, replace(b, sha256="other"))).digest() != digest
    assert Manifest((a,)).digest() != digest
    same = replace(b, uri="/y/b", labels=("l",), group="g", mtime_ns=5, mode="L")
    assert Manifest((a, same)).digest() == digest
    assert Manifest((a, ManifestRow("u", status=UNREADABLE, error="e"), b)).digest() == digest


rows = st.builds(
    ManifestRow,
    image_id=st.text(max_size=8),
    uri=st.text(max_size=8),
    labels=st.lists(st.text(max_size=4), max_size=3).map(tuple),
    group=st.none() | st.text(max_size=4),
    sha256=st.none() | st.text("0123456789abcdef", min_size=64, max_size=64),
    n_bytes=st.none() | st.integers(0, 2**62),
    mtime_ns=st.none() | st.integers(-(2**62), 2**62),
    width=st.none() | st.integers(1, 2**31 - 1),
    height=st.none() | st.integers(1, 2**31 - 1),
    mode=st.none() | st.sampled_from(["L", "I;16"]),
    status=st.sampled_from(["ok", "unreadable"]),
    error=st.none() | st.text(max_size=8),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(rows, max_size=6, unique_by=lambda row: row.image_id))
def test_parquet_round_trip(some_rows):
    manifest = Manifest(tuple(some_rows))
    content = manifest.to_parquet()
    back = Manifest.from_parquet(content, "kept")
    assert back == manifest
    assert back.digest() == manifest.digest()
    assert pyarrow.parquet.read_schema(io.BytesIO(content)).names == SCHEMA.names


def test_damaged_or_foreign_manifests_are_refused():
    with pytest.raises(StorageError, match=r"run/images\.parquet: the manifest cannot be read"):
        Manifest.from_parquet(b"junk", "run/images.parquet")
    other = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"image_id": ["a"]}), other)
    with pytest.raises(StorageError, match="is no manifest: it lacks"):
        Manifest.from_parquet(other.getvalue(), "other.parquet")


def test_ready_made_features_need_ids_only():
    entries = [ImageEntry("a", "", ("x",), "g"), ImageEntry("b", "")]
    manifest = Manifest.from_entries(entries)
    assert manifest.labels() == [("x",), ()]
    assert manifest.groups() == ["g", None]
    assert manifest.image_ids() == ["a", "b"]
    assert Manifest.from_ids(["a", "b"]).digest() == manifest.digest()


def test_repeated_ids_are_refused():
    with pytest.raises(InputError, match="'a'"):
        Manifest.from_ids(["a", "b", "a"])


def test_a_label_that_joins_other_labels_is_reported(tmp_path, caplog):
    table = tmp_path / "t.csv"
    table.write_text(
        'image_id,uri,labels\na,a.png,"cat, dog"\nb,b.png,cat\nc,c.png,dog\nd,d.png,"bird, odd"\n'
    )
    assert [entry.labels for entry in read_entries(table)] == [
        ("cat, dog",),
        ("cat",),
        ("dog",),
        ("bird, odd",),
    ]
    (message,) = caplog.messages
    assert "each of 'cat, dog' is one label of its own" in message
    assert "write them as 'cat|dog'" in message

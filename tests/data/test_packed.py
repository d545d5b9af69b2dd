"""What images in tar files and in Parquet have in common: labels, places and runs."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

import semrsm_dist as srs
from semrsm_dist.config.schema import parse_config
from semrsm_dist.data.columns import labels_in
from semrsm_dist.data.entries import ImageEntry, UnreadableImageError
from semrsm_dist.data.manifest import Manifest, find_known, scan
from semrsm_dist.data.sources.parquet import ParquetImages
from semrsm_dist.data.sources.webdataset import WebDatasetImages
from tests.data.packed_images import picture, write_parquet, write_tar


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

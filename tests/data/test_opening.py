"""What is no file is never opened: a pipe that nobody writes to would be read for ever."""

import os
import signal
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest
import zarr

from semrsm_dist.config.schema import load_config
from semrsm_dist.data.annotations import read_annotation
from semrsm_dist.data.entries import UnreadableImageError
from semrsm_dist.data.opening import NotAFileError, require_file, require_input
from semrsm_dist.data.sources.folder import FolderImages
from semrsm_dist.data.sources.parquet import ParquetImages
from semrsm_dist.data.sources.table import TableImages
from semrsm_dist.data.sources.webdataset import WebDatasetImages
from semrsm_dist.data.table import read_table
from semrsm_dist.errors import InputError, MissingInputError, SemrsmError
from semrsm_dist.experiments.objects.boxes import read_boxes
from semrsm_dist.features.arrays import load_token_counts
from semrsm_dist.features.extract import extract
from semrsm_dist.features.spec import ModelSpec
from semrsm_dist.report.evaluations import read_evaluations
from semrsm_dist.store.feature_source import open_array

SECONDS = 30


@pytest.fixture(autouse=True)
def _ends():
    """Fail a test that waits for a writer."""

    def fail(*_):
        raise TimeoutError("a pipe was opened")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put(kind, path):
    """Put what is no file in a place, and return how it is called."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as one:
            one.bind(f"{short}/s")
            Path(f"{short}/s").rename(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path.name)
    return "symbolic links" if kind == "loop" else f"it is a {kind}, not a file"


READERS = {
    "config.yaml": load_config,
    "annotations.json": lambda path: read_annotation(str(path), "get it again"),
    "table.csv": lambda path: read_table(str(path)),
    "table.parquet": lambda path: read_table(str(path)),
    "boxes.csv": read_boxes,
    "boxes.parquet": read_boxes,
    "counts.npy": lambda path: load_token_counts(path, 3, 2),
    "features.npy": open_array,
    "features.safetensors": open_array,
    "features.pt": open_array,
    "weights.safetensors": lambda path: ModelSpec("resnet18", str(path)).weights_file(),
    "picture.png": lambda path: extract("test_resnet", [path], layers=["layer1"], weights="random"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_in_the_place_of_a_file_of_users_is_refused_with_cause_and_remedy(tmp_path, name):
    words = put("pipe", tmp_path / name)
    with pytest.raises(SemrsmError, match=f"{name}.*{words}.*[:;] ") as caught:
        READERS[name](tmp_path / name)
    assert not isinstance(caught.value, MissingInputError)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "loop"])
@pytest.mark.parametrize("name", ["config.yaml", "table.csv", "features.npy"])
def test_so_are_other_things_that_are_no_files(tmp_path, name, kind):
    words = put(kind, tmp_path / name)
    with pytest.raises(SemrsmError, match=words):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "loop"])
def test_an_image_that_is_no_file_is_unreadable(tmp_path, kind):
    words = put(kind, tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("image_id,uri,labels\na,a.png,\n")
    table = TableImages(path=tmp_path / "t.csv", allow_outside=True)
    with pytest.raises(UnreadableImageError, match=words):
        table.load(table.entries()[0])
    folder = FolderImages(path=tmp_path)
    with pytest.raises(UnreadableImageError, match=words):
        folder.load(folder.entries()[0])
    assert table.stamp(table.entries()[0]) is None


@pytest.mark.parametrize(
    ("source", "name"), [(ParquetImages, "a.parquet"), (WebDatasetImages, "a.tar")], ids=["parquet", "tar"]
)
def test_files_of_images_that_are_pipes_are_refused(tmp_path, source, name):
    words = put("pipe", tmp_path / name)
    with pytest.raises(InputError, match=f"{name}.*{words}"):
        source(path=tmp_path / name).entries()
    with pytest.raises(InputError, match=name):
        source(path=tmp_path).entries()


@pytest.mark.parametrize("place", ["zarr.json", "c/0/0/0"])
def test_a_pipe_in_a_zarr_array_of_features_is_refused(tmp_path, place):
    zarr.create_array(tmp_path / "z.zarr", shape=(4, 3, 2), chunks=(4, 3, 2), dtype="float32")[...] = 1.0
    (tmp_path / "z.zarr" / place).unlink()
    words = put("pipe", tmp_path / "z.zarr" / place)
    with pytest.raises(InputError, match=words):
        open_array(tmp_path / "z.zarr").read(0, 4)


def test_a_pipe_among_the_tables_of_experiments_is_named(tmp_path):
    words = put("pipe", tmp_path / "objects.parquet")
    (found,) = read_evaluations(tmp_path)
    assert words in found.problem


@pytest.mark.parametrize("name", ["n" * 300, "a\0b"], ids=["too long", "null"])
def test_a_name_that_no_file_can_have_makes_one_image_unreadable(tmp_path, name):
    source = TableImages(path=tmp_path / "t.csv", allow_outside=True)
    (tmp_path / "t.csv").write_text("image_id,uri,labels\na,a.png,\n")
    entry = source.entries()[0]
    entry = type(entry)(entry.image_id, f"{tmp_path}/{name}.png", ())
    with pytest.raises(UnreadableImageError, match=r"(too long|can have)"):
        source.load(entry)
    assert source.stamp(entry) is None


def test_files_and_links_to_files_are_taken(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "link.npy").symlink_to("a.npy")
    for name in ("a.npy", "link.npy"):
        require_file(tmp_path / name)
        require_input(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("nothing", FileNotFoundError), ("file/below", NotADirectoryError), (".", IsADirectoryError)],
)
def test_what_is_missing_is_no_thing_of_another_kind(tmp_path, name, kind):
    (tmp_path / "file").touch()
    with pytest.raises(kind) as caught:
        require_file(tmp_path / name)
    assert not isinstance(caught.value, NotAFileError)

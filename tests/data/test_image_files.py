"""Images in folders, here and on remote storage."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image, features
from pyarrow.fs import FileInfo, FileType, LocalFileSystem

from semrsm_dist.data.entries import ImageEntry, UnreadableImageError
from semrsm_dist.data.locations import join
from semrsm_dist.data.sources.folder import FolderImages
from semrsm_dist.data.sources.table import TableImages
from semrsm_dist.errors import InputError, StorageError
from tests.data.image_files import write_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "my photos"
    for name in ("dog/b.png", "dog/deep/er/a.JPG", "cat/ü ñ 猫.png", "cat/z%20#?.png", "alone.webp"):
        write_image(root / name)
    for other in ("dog/notes.txt", "dog/.hidden.png", ".cache/x.png", "README"):
        (root / other).parent.mkdir(exist_ok=True)
        (root / other).write_bytes(b"x")
    return root


def test_folder_lists_images_sorted_with_their_top_level_class(folder):
    records = FolderImages(path=folder).entries()
    assert [(r.image_id, r.labels) for r in records] == [
        ("alone.webp", ()),
        ("cat/z%20#?.png", ("cat",)),
        ("cat/ü ñ 猫.png", ("cat",)),
        ("dog/b.png", ("dog",)),
        ("dog/deep/er/a.JPG", ("dog",)),
    ]


def test_folder_images_can_be_read_by_a_pickled_copy_elsewhere(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    images = FolderImages(path="my photos")
    records = images.entries()
    copy = pickle.loads(pickle.dumps(images))
    monkeypatch.chdir("/")
    for record in records:
        content = (folder / record.image_id).read_bytes()
        assert copy.read(record).size == (6, 4)
        assert copy.load(record).sha256 == hashlib.sha256(content).hexdigest()
        assert copy.stamp(record) == (len(content), (folder / record.image_id).stat().st_mtime_ns)


def test_folder_as_file_uri(folder):
    uri = folder.as_uri()
    images = FolderImages(path=uri)
    assert images.entries() == FolderImages(path=folder).entries()
    for record in images.entries():
        assert images.read(record).size == (6, 4)


def test_links_are_followed_and_circles_end(folder, tmp_path):
    write_image(tmp_path / "elsewhere" / "e.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "dog" / "circle").symlink_to(folder)
    names = [r.image_id for r in FolderImages(path=folder).entries()]
    assert "linked/e.png" in names
    assert len(names) == 6


@pytest.mark.parametrize("content", [[], ["notes.txt"]])
def test_folder_without_images(tmp_path, content):
    for name in content:
        (tmp_path / name).write_text("x")
    with pytest.raises(InputError, match=r"no images in '.*': give the folder that .*\.jpeg"):
        FolderImages(path=tmp_path).entries()


def test_folder_that_is_missing_or_a_file(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        FolderImages(path=tmp_path / "nowhere").entries()
    with pytest.raises(InputError, match="is a file"):
        FolderImages(path=write_image(tmp_path / "a.png")).entries()
    with pytest.raises(InputError, match="does not exist"):
        FolderImages(path=(tmp_path / "nowhere").as_uri()).entries()
    with pytest.raises(InputError, match="does not exist"):
        FolderImages(path="mock:///nowhere").entries()


def test_dangling_links_and_pipes_are_unreadable(folder):
    (folder / "dog" / "dangling.png").symlink_to(folder / "gone.png")
    os.mkfifo(folder / "dog" / "pipe.png")
    images = FolderImages(path=folder)
    found = {r.image_id: r for r in images.entries()}
    with pytest.raises(UnreadableImageError, match="it is a pipe, not a file"):
        images.read(found["dog/pipe.png"])
    with pytest.raises(UnreadableImageError, match="no such file"):
        images.read(found["dog/dangling.png"])


def test_a_folder_of_another_file_system(monkeypatch, folder):
    """A local file system under a foreign scheme stands for a bucket: keys keep their odd characters."""
    seen = []

    def bucket(root):
        seen.append(root)
        return LocalFileSystem(), str(folder)

    monkeypatch.setattr("semrsm_dist.data.locations._remote", bucket)
    images = FolderImages(path="s3://bucket/")
    records = images.entries()
    assert [r.image_id for r in records] == [r.image_id for r in FolderImages(path=folder).entries()]
    assert records[1].uri == "s3://bucket/cat/z%20#?.png"
    assert {images.load(r).sha256 for r in records} == {
        hashlib.sha256((folder / r.image_id).read_bytes()).hexdigest() for r in records
    }
    assert set(seen) == {"s3://bucket/"}
    images.load(ImageEntry("a", "s3://bucket/alone.webp?region=eu"))
    assert seen[-1] == "s3://bucket/?region=eu"


def test_options_of_a_file_system_stay_at_the_end(monkeypatch, folder):
    seen = set()

    def bucket(root):
        seen.add(root)
        return LocalFileSystem(), str(folder.parent)

    monkeypatch.setattr("semrsm_dist.data.locations._remote", bucket)
    place = f"s3://bucket/{folder.name}/?region=eu-west-1&scheme=http"
    images = FolderImages(path=place)
    records = images.entries()
    assert [r.image_id for r in records] == [r.image_id for r in FolderImages(path=folder).entries()]
    assert records[0].uri == f"s3://bucket/{folder.name}/{records[0].image_id}?region=eu-west-1&scheme=http"
    for record in records:
        content = (folder / record.image_id).read_bytes()
        assert images.load(record).sha256 == hashlib.sha256(content).hexdigest()
    rows = f"image_id,uri,labels\na,{records[0].image_id},x\nb,s3://other/key.png,\n"
    (folder / "table.csv").write_text(rows)
    table = TableImages(path=f"s3://bucket/{folder.name}/table.csv?region=eu-west-1")
    assert [r.uri for r in table.entries()] == [
        f"s3://bucket/{folder.name}/{records[0].image_id}?region=eu-west-1",
        "s3://other/key.png",
    ]
    assert seen == {"s3://bucket/?region=eu-west-1&scheme=http", "s3://bucket/?region=eu-west-1"}


def test_the_root_of_a_file_system_is_a_folder_like_any_other(monkeypatch, folder):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("semrsm_dist.data.listing._list_local", lambda root: iter([f"{root}x", "a/b.png"]))
    assert [record.uri for record in FolderImages(path="/").entries()] == ["/a/b.png"]
    assert join("/") == "/" and join("/", "a") == "/a" and join("/a/", "b", "c") == "/a/b/c"


def test_a_key_that_a_file_system_cannot_have_is_an_image_that_cannot_be_read(monkeypatch):
    class Picky(LocalFileSystem):
        def open_input_stream(self, path, **options):
            raise pa.ArrowInvalid("Empty path component")

        def get_file_info(self, path):
            raise pa.ArrowInvalid("Empty path component")

    monkeypatch.setattr("semrsm_dist.data.locations._remote", lambda root: (Picky(), "bucket"))
    images, record = FolderImages(path="s3://bucket"), ImageEntry("a", "s3://bucket//a.png")
    with pytest.raises(UnreadableImageError, match="no such file: Empty path component"):
        images.load(record)
    assert images.stamp(record) is None


def test_a_name_that_no_table_can_hold_is_refused(folder):
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/dog/\xff.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system has Unicode names only")
    with pytest.raises(InputError, match="not valid Unicode"):
        FolderImages(path=folder).entries()


def test_a_file_that_vanished_is_unreadable_and_has_no_stamp(folder):
    images = FolderImages(path=folder)
    record = images.entries()[3]
    (folder / record.image_id).unlink()
    assert images.stamp(record) is None
    with pytest.raises(UnreadableImageError, match=r"'dog/b\.png'.*no such file"):
        images.read(record)


def test_a_folder_named_like_an_image_is_unreadable(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UnreadableImageError, match="it is a folder"):
        FolderImages(path=tmp_path).read(ImageEntry("a.png", str(tmp_path / "a.png")))


def test_a_failing_disk_is_not_blamed_on_the_image(folder, monkeypatch):
    class BrokenDisk:
        def open_input_stream(self, path, compression):
            raise OSError(5, "Input/output error")

        def get_file_info(self, path):
            return FileInfo(path, FileType.File)

    monkeypatch.setattr("semrsm_dist.data.locations.locate", lambda uri: (BrokenDisk(), uri))
    with pytest.raises(StorageError, match="Input/output error"):
        FolderImages(path=folder).read(ImageEntry("a.png", "/a.png"))


def test_a_folder_takes_what_pillow_opens_and_counts_the_rest(tmp_path, caplog):
    for name in ("a.jfif", "b.jpe", "c.JPEG", "d.webp", "e.tga", "f.pcx", "g.ico"):
        kind = {"jfif": "JPEG", "jpe": "JPEG"}.get(name.split(".")[1])
        Image.new("RGB", (16, 16), (9, 8, 7)).save(tmp_path / name, kind)
    if features.check("avif"):
        Image.new("RGB", (16, 16)).save(tmp_path / "h.avif")
    if features.check("jpg_2000"):
        Image.new("RGB", (16, 16)).save(tmp_path / "i.jp2")
    Image.new("RGB", (16, 16)).save(tmp_path / "IMG0001", "PNG")
    (tmp_path / "empty").touch()
    for name in ("k.heic", "l.HEIC", "m.svg", "notes.txt", "README", ".hidden", "film.mpg", "data.h5"):
        (tmp_path / name).write_bytes(b"no image that Pillow decodes")
    images = FolderImages(path=tmp_path)
    names = [entry.image_id for entry in images.entries()]
    assert [name for name in names if name[0] not in "hi"] == [
        *("IMG0001", "a.jfif", "b.jpe", "c.JPEG", "d.webp", "e.tga", "f.pcx", "g.ico")
    ]
    assert all(images.read(entry).size == (16, 16) for entry in images.entries())
    [message] = {record.getMessage() for record in caplog.records}
    assert message.startswith(f"{tmp_path}: skipped 8 files that Pillow does not read: ")
    assert set(message.split("read: ")[1].split(", ")) == {
        *(".heic (2)", "no ending (2)", ".svg (1)", ".txt (1)", ".mpg (1)", ".h5 (1)")
    }


def test_files_without_an_ending_that_cannot_be_opened_are_left_to_the_scan(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "one", "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)  # a bomb is an image that cannot be read
    images = FolderImages(path=tmp_path)
    [entry] = images.entries()
    with pytest.raises(UnreadableImageError, match="exceeds limit"):
        images.read(entry)


def test_names_cannot_drive_a_terminal(tmp_path, caplog):
    name = "a\x1b[2J\u202e.png"
    write_image(tmp_path / "x.png")
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b.\x1b]0;title\x07").write_bytes(b"x")
    images = FolderImages(path=tmp_path)
    for entry in images.entries():
        if entry.image_id == name:
            with pytest.raises(UnreadableImageError) as caught:
                images.read(entry)
    shown = str(caught.value) + str(InputError(f"{tmp_path / name}: ümläut 👩‍🔬\nsecond line")) + caplog.text
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert (
        r"\x1b[2J\u202e.png: ümläut 👩‍🔬" in shown
        and "\nsecond line" in shown
        and r".\x1b]0;title\x07 (1)" in shown
    )


@pytest.mark.parametrize("source", [FolderImages, TableImages])
@pytest.mark.slow
def test_an_endpoint_that_cannot_be_reached_is_named_with_the_remedy(source, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    place = "s3://bucket/t.csv?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    words = r"127\.0\.0\.1:9.*the storage failed.*check the network, the name of the bucket and the cred.*AWS_ACCESS"
    with pytest.raises(StorageError, match=words):
        source(path=place).entries()


def test_an_image_over_the_limit_of_its_folder_is_unreadable(tmp_path):
    write_image(tmp_path / "x.png", size=(6, 4))
    assert FolderImages(path=tmp_path, max_image_bytes=72).read(ImageEntry("x", str(tmp_path / "x.png")))
    with pytest.raises(UnreadableImageError, match="6 x 4 pixels take 72 bytes as RGB"):
        FolderImages(path=tmp_path, max_image_bytes=71).read(ImageEntry("x", str(tmp_path / "x.png")))

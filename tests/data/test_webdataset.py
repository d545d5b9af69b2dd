"""Images in tar files, in the true format of WebDataset, irregular and damaged too."""

from __future__ import annotations

import hashlib
import pickle
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semrsm_dist.data.manifest import scan
from semrsm_dist.data.sources.webdataset import WebDatasetImages
from semrsm_dist.errors import InputError, MissingInputError
from tests.data.packed_images import MEMBERS, about, picture, write_tar


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
    assert "skipped 1 sample without an image: 2" in caplog.text
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

"""Drafts: large JPEGs decoded at a part of their size, as Pillow does it, and nothing else changed."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from semrsm_dist.data.decode import decode_with_mode
from semrsm_dist.data.entries import UnreadableImageError
from semrsm_dist.data.manifest import scan
from semrsm_dist.data.source import list_entries, load_image
from semrsm_dist.data.sources.crops import ShiftedCrops
from semrsm_dist.data.sources.digits import DigitScenes
from semrsm_dist.data.sources.folder import FolderImages
from semrsm_dist.data.sources.parquet import ParquetImages
from semrsm_dist.data.sources.table import TableImages
from semrsm_dist.errors import ConfigError


def photograph(size: tuple[int, int], kind: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(size).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode).save(
        content, kind, **options
    )
    return content.getvalue()


def lossless(width: int, height: int) -> bytes:
    """Return a grey image as a lossless JPEG (SOF3), whose differences to the predicted pixels are all zero."""
    tables = b"\xff\xc4\x00\x14\x00" + bytes([1] + 15 * [0]) + b"\x00"  # one code, "0", for no difference
    sizes = height.to_bytes(2) + width.to_bytes(2)
    frame = b"\xff\xc3\x00\x0b\x08" + sizes + b"\x01\x01\x11\x00"
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x00\x00"
    return b"\xff\xd8" + tables + frame + scan + bytes(width * height // 8) + b"\xff\xd9"


SIDES = st.integers(1, 90)
KINDS = [{}, {"mode": "L"}, {"mode": "CMYK"}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2}]


@settings(max_examples=60, deadline=None)
@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.sampled_from(KINDS))
def test_a_draft_is_pillows_of_the_largest_factor_that_leaves_enough(size, least, options):
    data = photograph(size, **options)
    factor = max(
        [1] + [f for f in (2, 4, 8) if all(f * few <= many for few, many in zip(least, size, strict=True))]
    )
    with Image.open(io.BytesIO(data)) as opened:
        opened.draft(None, tuple(length // factor for length in size))
        expected = opened.convert("RGB")
    assert expected.size == tuple(-(-length // factor) for length in size)

    found, whole = decode_with_mode(data, "it", least=lambda _: least), decode_with_mode(data, "it")
    assert (found.full_size or found.image.size) == whole.image.size == size
    assert (found.full_size is None) == (factor == 1)
    np.testing.assert_array_equal(found.image, expected if factor > 1 else whole.image)
    assert facts(found) == facts(whole)


def facts(loaded):
    return loaded.mode, loaded.sha256, loaded.n_bytes, loaded.remark


@pytest.mark.parametrize(
    "data",
    [
        *[photograph((80, 64), kind) for kind in ("PNG", "WEBP", "GIF", "TIFF", "BMP")],
        photograph((80, 64), "TIFF", compression="jpeg"),
        lossless(80, 64),
    ],
)
def test_what_has_no_draft_is_the_whole_image(data, monkeypatch):
    # Some decoders end the process when they are asked.
    monkeypatch.setattr(
        JpegImagePlugin.JpegImageFile, "draft", lambda *_: pytest.fail("a draft was requested")
    )
    found, whole = decode_with_mode(data, "it", least=lambda _: (1, 1)), decode_with_mode(data, "it")
    assert found.full_size is None
    assert facts(found) == facts(whole)
    np.testing.assert_array_equal(found.image, whole.image)


def test_a_draft_lies_as_its_pixels_do_whatever_exif_says():
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decode_with_mode(photograph((80, 40), exif=exif), "it", least=lambda _: (20, 10))
    assert (found.image.size, found.full_size) == ((20, 10), (80, 40))
    assert "its EXIF orientation 6 is not applied" in found.remark


def test_the_first_of_several_pictures_is_drafted():
    first, second = (Image.open(io.BytesIO(photograph(size))) for size in ((80, 40), (16, 16)))
    content = io.BytesIO()
    first.save(content, "MPO", save_all=True, append_images=[second])
    found = decode_with_mode(content.getvalue(), "it", least=lambda _: (20, 10))
    assert (found.image.size, found.full_size) == ((20, 10), (80, 40))


@pytest.mark.parametrize("at", [200, 640, -40])
def test_a_damaged_draft_is_as_unreadable_as_the_image(at):
    data = photograph((160, 120), quality=95)[:at]
    causes = []
    for least in (None, lambda _: (1, 1)):
        with warnings.catch_warnings(), pytest.raises(UnreadableImageError) as caught:
            warnings.simplefilter("ignore")
            decode_with_mode(data, "it", least=least)
        causes.append(caught.value.cause)
    assert causes[0] == causes[1]


def test_an_error_of_what_says_the_least_size_is_not_taken_for_a_damaged_image():
    def least(_size):
        raise ConfigError("unknown")

    with pytest.raises(ConfigError, match="unknown"):
        decode_with_mode(photograph((80, 64)), "it", least=least)


def test_the_limit_is_of_the_whole_image():
    with pytest.raises(UnreadableImageError, match="80 x 64 pixels"):
        decode_with_mode(photograph((80, 64)), "it", max_bytes=3 * 80 * 63, least=lambda _: (1, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    (folder / "large.jpg").write_bytes(photograph((90, 70)))
    (folder / "lossless.jpg").write_bytes(lossless(80, 64))
    (folder / "odd.jpg").write_bytes(photograph((91, 33), mode="CMYK"))
    (folder / "plain.png").write_bytes(photograph((90, 70), "PNG"))
    names = [path.name for path in sorted(folder.glob("*.*g"))]
    (folder / "table.csv").write_text("\n".join(["image_id,uri", *(f"{name},{name}" for name in names)]))
    content = [{"bytes": (folder / name).read_bytes()} for name in names]
    pq.write_table(pa.table({"image": content}), folder / "packed.parquet")
    return folder


@pytest.mark.parametrize("make", [FolderImages, TableImages, ParquetImages])
def test_sources_of_files_draft(folder, make):
    place = {TableImages: "table.csv", ParquetImages: "packed.parquet"}.get(make, "")
    source = make(path=folder / place)
    assert source.has_drafts
    drafts = [load_image(source, entry, lambda _: (20, 15)) for entry in list_entries(source)]
    assert [draft.image.size for draft in drafts] == [(23, 18), (80, 64), (46, 17), (90, 70)]
    assert [draft.full_size for draft in drafts] == [(90, 70), None, (91, 33), None]


def test_a_scan_finds_of_drafts_what_it_finds_of_images(folder, monkeypatch):
    source = FolderImages(path=folder)
    rows = scan(source, list_entries(source))
    assert [(row.width, row.height, row.mode) for row in rows] == [
        (90, 70, "RGB"),
        (80, 64, "L"),
        (91, 33, "CMYK"),
        (90, 70, "RGB"),
    ]
    monkeypatch.setattr(FolderImages, "load_draft", lambda self, entry, least: self.load(entry))
    assert scan(source, list_entries(source)) == rows


class Halves(FolderImages):
    """Left halves, in pixels of the whole image."""

    source: str = "halves"

    def load(self, entry):
        loaded = super().load(entry)
        width, height = loaded.image.size
        return type(loaded)(loaded.image.crop((0, 0, width // 2, height)), loaded.mode, loaded.sha256, 1)


def test_sources_that_make_other_images_of_files_do_not_draft(folder):
    for source in (Halves(path=folder), ShiftedCrops(of=FolderImages(path=folder)), DigitScenes(n_images=1)):
        assert not source.has_drafts
        for entry in list_entries(source):
            found, whole = load_image(source, entry, lambda _: (1, 1)), load_image(source, entry)
            assert facts(found) == facts(whole)
            np.testing.assert_array_equal(found.image, whole.image)

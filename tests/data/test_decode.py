"""Every mode becomes 8-bit RGB, and what is damaged is refused by name."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from semrsm_dist.data.decode import decode, decode_with_mode, scale_to_8_bits
from semrsm_dist.data.entries import UnreadableImageError
from semrsm_dist.errors import InputError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = decode(data, "it")
    assert image.mode == "RGB"
    return np.asarray(image)


def grey_of(data: bytes) -> np.ndarray:
    pixels = pixels_of(data)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "GIF", "PPM"])
def test_8_bit_grey_is_kept(file_format):
    assert (grey_of(encoded(Image.fromarray(RAMP), file_format)) == RAMP).all()


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(file_format):
    values = (RAMP.astype(np.uint16) * 257)[::-1].copy()
    image = Image.fromarray(values)
    assert image.mode == "I;16"
    assert (grey_of(encoded(image, file_format)) == RAMP[::-1]).all()


def test_16_bit_pgm_is_scaled():
    assert (grey_of(b"P5 16 16 65535\n" + (RAMP.astype(">u2") * 257).tobytes()) == RAMP).all()


def test_16_bit_big_endian_tiff_is_scaled():
    image = Image.frombytes("I;16B", (16, 16), (RAMP.astype(">u2") * 257).tobytes())
    assert (grey_of(encoded(image, "TIFF")) == RAMP).all()


def test_dark_16_bit_images_are_not_stretched():
    """The white of 16 bits is fixed, so that images stay comparable."""
    assert grey_of(encoded(Image.fromarray(np.full((4, 4), 2570, np.uint16)), "PNG")).max() == 10


@pytest.mark.parametrize("offset", [0, -(2**30)])
def test_32_bit_integers_are_stretched(offset):
    values = RAMP.astype(np.int32) * 4_000_000 + offset
    assert (grey_of(encoded(Image.fromarray(values), "TIFF")) == RAMP).all()


@pytest.mark.parametrize(("factor", "offset"), [(1 / 255, 0), (1, 0), (100, 0), (1e-3, -0.2), (1e30, 0)])
def test_floats_are_scaled_and_not_clipped(factor, offset):
    values = (RAMP.astype(float) * factor + offset).astype(np.float32)
    assert np.abs(grey_of(encoded(Image.fromarray(values), "TIFF")).astype(int) - RAMP).max() <= 1


def test_float_pixels_that_are_not_finite_are_refused():
    values = np.ones((4, 4), np.float32)
    values[1, 2] = np.nan
    with pytest.raises(UnreadableImageError, match="NaN or infinite"):
        decode(encoded(Image.fromarray(values), "TIFF"), "it")


def test_constant_images_do_not_divide_by_zero():
    assert (scale_to_8_bits(np.full((2, 2), 70_000)) == 0).all()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20)
    | st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20)
)
def test_scaling_keeps_the_order(values):
    grey = scale_to_8_bits(np.array(values)).astype(int)
    order = np.argsort(values, kind="stable")
    assert (np.diff(grey[order]) >= 0).all()


def test_bilevel_images_become_black_and_white():
    image = Image.fromarray(RAMP > 100)
    assert image.mode == "1"
    assert (grey_of(encoded(image, "PNG")) == np.where(RAMP > 100, 255, 0)).all()


def test_cmyk_jpeg():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    data = encoded(image, "JPEG", quality=95)
    assert decode_with_mode(data, "it").mode == "CMYK"
    red, green, blue = pixels_of(data)[8, 8].astype(int)
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("transparency", [3, b"\x00\x80" + b"\xff" * 14])
def test_palette_with_transparency(transparency):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 200, 100, 50] + [0] * 42)
    assert (pixels_of(encoded(image, "PNG", transparency=transparency)) == [200, 100, 50]).all()


def test_transparency_is_dropped_as_torchvision_does():
    assert (pixels_of(encoded(Image.new("RGBA", (3, 3), (9, 8, 7, 0)), "PNG")) == [9, 8, 7]).all()
    assert (pixels_of(encoded(Image.new("LA", (3, 3), (9, 0)), "PNG")) == 9).all()
    assert (pixels_of(encoded(Image.new("L", (3, 3), 9), "PNG", transparency=9)) == 9).all()
    assert (
        pixels_of(encoded(Image.new("RGB", (3, 3), (1, 2, 3)), "PNG", transparency=(1, 2, 3))) == [1, 2, 3]
    ).all()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_not_applied_and_remarked(file_format):
    exif = Image.Exif()
    for orientation in (1, 3, 6, 8, 0, 99):
        exif[0x0112] = orientation
        loaded = decode_with_mode(encoded(Image.new("RGB", (20, 10)), file_format, exif=exif), "it")
        assert loaded.image.size == (20, 10)
        if orientation in (3, 6, 8):
            assert f"its EXIF orientation {orientation} is not applied" in loaded.remark
        else:
            assert loaded.remark is None


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0XXXXXXXXXX", b"Exif\0\0II*\0\x08\0\0\0\xff"]
)
def test_an_image_with_damaged_exif_is_read_without_a_remark(exif):
    loaded = decode_with_mode(encoded(Image.new("RGB", (20, 10)), "JPEG", exif=exif), "it")
    assert loaded.image.size == (20, 10) and loaded.remark is None


def test_the_orientation_of_a_tiff_is_as_pillow_has_it():
    exif = Image.Exif()
    exif[0x0112] = 6
    loaded = decode_with_mode(encoded(Image.new("RGB", (20, 10)), "TIFF", exif=exif), "it")
    assert loaded.image.size == (10, 20) and loaded.remark is None


def test_first_frame_of_several_is_taken():
    frames = [Image.new("L", (4, 4), value) for value in (11, 222)]
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert (grey_of(data) == 11).all()


def noise(size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
def test_truncated_files_are_refused(file_format, share):
    data = encoded(noise(), file_format)
    with pytest.raises(UnreadableImageError, match=r"'holiday\.x'"):
        decode(data[: int(len(data) * share)], "holiday.x")


def test_png_with_a_flipped_bit_is_refused():
    data = bytearray(encoded(noise(), "PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(UnreadableImageError):
        decode(bytes(data), "it")


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "empty"),
        (b"this is no picture\n", "not in a known image format"),
        (b"\x89PNG\r\n\x1a\n", "SyntaxError|OSError|format|Error"),
        (b"\xff\xd8\xff", "Error|format"),
    ],
)
def test_what_is_no_image_is_refused_with_the_cause(data, cause):
    with pytest.raises(UnreadableImageError, match=cause) as caught:
        decode(data, "notes.png")
    assert isinstance(caught.value, InputError)
    assert caught.value.name == "notes.png"


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400), st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]), st.data())
def test_damaged_bytes_decode_or_are_refused_but_never_crash(junk, file_format, data):
    content = encoded(noise(8), file_format)
    at = data.draw(st.integers(0, len(content)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(UnreadableImageError):
            assert decode(content[:at] + junk + content[at + len(junk) :], "it").mode == "RGB"


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [1, None])
def test_a_decompression_bomb_is_refused(limit, monkeypatch):
    """Whether or not somebody has switched Pillow's own check off."""
    if limit is None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(UnreadableImageError, match=r"exceeds limit|over the limit max_image_bytes"):
        decode(png_claiming(30_000, 30_000), "it")


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(UnreadableImageError("a/b.png", "it is empty")))
    assert (error.name, error.cause) == ("a/b.png", "it is empty")
    assert "'a/b.png' cannot be read: it is empty" in str(error)


# --- fewer bits than 16 --------------------------------------------------------------------------------


def tiff_of(values: np.ndarray, bits: int = 16, **tags: int) -> bytes:
    """Return a TIFF of one strip of grey values, packed as tightly as its tag BitsPerSample says."""
    height, width = values.shape
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(int)
        packed = [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255]
        pixels = np.stack(packed, axis=1).astype(np.uint8).tobytes()
    else:
        pixels = values.astype("<u2").tobytes()
    entries = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: 1,
        273: 8,
        277: 1,
        278: height,
        279: len(pixels),
    }
    entries |= {281: tags["white"]} if "white" in tags else {}
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    directory = struct.pack("<H", len(entries)) + body + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


RAMP_12 = np.arange(4096, dtype=np.uint16).reshape(64, 64)


@pytest.mark.parametrize(
    "data", [tiff_of(RAMP_12, bits=12), tiff_of(RAMP_12, white=4095)], ids=["bits", "white"]
)
def test_a_tiff_that_states_its_white_is_scaled_by_it(data):
    assert (grey_of(data) == np.rint(RAMP_12 / 4095 * 255)).all()
    assert decode_with_mode(data, "it").remark is None


def test_a_stated_white_that_values_exceed_is_none():
    data = tiff_of(RAMP_12 * 16, white=4095)
    assert (grey_of(data) == np.rint(RAMP_12 * (16 / 65535 * 255))).all()


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_data_of_fewer_bits_are_kept_dark_with_a_remark(file_format, bits):
    values = np.linspace(0, 2**bits - 1, 256).astype(np.uint16).reshape(16, 16)
    found = decode_with_mode(encoded(Image.fromarray(values), file_format), "it")
    assert (np.asarray(found.image)[..., 0] == np.rint(values / 65535 * 255)).all()
    assert f"lie below {2**bits}, as those of {bits}-bit data do" in found.remark
    assert f"multiply the values by {2 ** (16 - bits)}" in found.remark
    brighter = (values * 2 ** (16 - bits)).astype(np.uint16)
    assert decode_with_mode(encoded(Image.fromarray(brighter), file_format), "it").remark is None


@pytest.mark.parametrize("value", [4095, 65535])
def test_colours_of_16_bits_get_the_remark_too(value):
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    rows = b"\0" + struct.pack(">6H", value, 0, 0, 0, value, 0)
    data = png([(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])
    remark = decode_with_mode(data, "it").remark
    assert (remark is None) == (value == 65535)
    assert pixels_of(data)[0, 0, 0] == value >> 8


def test_8_bit_and_black_images_get_no_remark():
    assert decode_with_mode(encoded(Image.fromarray(RAMP // 16), "PNG"), "it").remark is None
    assert decode_with_mode(encoded(Image.fromarray(np.zeros((4, 4), np.uint16)), "PNG"), "it").remark is None


# --- large parts and large images ----------------------------------------------------------------------


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"tEXt", b"Comment\0" + b"x" * 2_000_000),
        (b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 2_000_000)),
        (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"x" * 2_000_000)),
        (b"iCCP", b"profile\0\0" + zlib.compress(b"x" * 2_000_000)),
    ],
)
def test_a_png_is_read_whatever_is_written_beside_its_pixels(kind, body):
    image = encoded(Image.fromarray(RAMP), "PNG")
    chunk = png([(kind, body)])[8:]
    after_header, end = 8 + 25, len(image) - 12
    assert (grey_of(image[:after_header] + chunk + image[after_header:]) == RAMP).all()
    assert (grey_of(image[:end] + chunk + image[end:]) == RAMP).all()


def test_scaling_holds_no_large_image_in_double_precision():
    values = np.arange(6_000_000, dtype=np.uint16).reshape(2000, 3000)
    tracemalloc.start()
    grey = scale_to_8_bits(values, 65535.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (grey == np.rint(values / 65535 * 255)).all()
    assert peak < 5 * values.size  # as doubles it would be 8 bytes a pixel, more than once


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "ICO"])
def test_an_image_over_its_sources_limit_is_refused(kind, tmp_path):
    Image.new("RGB", (64, 32)).save(tmp_path / "x", kind)
    data = (tmp_path / "x").read_bytes()
    width, height = decode(data, "x").size
    n_bytes = 3 * width * height
    assert decode_with_mode(data, "x", max_bytes=n_bytes).image.size == (width, height)
    with pytest.raises(
        UnreadableImageError, match=f"take {n_bytes} bytes as RGB, over the limit max_image_bytes"
    ):
        decode_with_mode(data, "x", max_bytes=n_bytes - 1)


def test_a_large_image_of_16_bits_takes_four_times_its_size_at_most(tmp_path):
    """In a process of its own, whose peak of memory is measured."""
    Image.fromarray(np.zeros((5000, 5000), np.uint16)).save(tmp_path / "x.png")
    code = (
        "import resource, sys; from semrsm_dist.data.decode import decode\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "data, before = open(sys.argv[1], 'rb').read(), peak()\n"
        "decode(data, 'x'); print(1024 * (peak() - before))"
    )
    taken = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "x.png"], capture_output=True, text=True, check=True
    ).stdout
    assert int(taken) < 4 * 3 * 5000**2

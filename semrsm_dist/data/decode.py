"""From the bytes of an image file to 8-bit RGB, for every mode that Pillow can open."""

from __future__ import annotations

import hashlib
import io
import struct
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError

from semrsm_dist.data.entries import Least, LoadedImage, UnreadableImageError
from semrsm_dist.errors import SemrsmError

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of a JPEG before its sizes: SOF0 to SOF15."""

_LOSSLESS_FRAMES = frozenset({0xC3, 0xC7, 0xCB, 0xCF})

PILLOW_MAX_BYTES = 512 * 2**20
"""Bytes of an image as RGB beyond which Pillow refuses it (179 million pixels): the limit where no source sets one."""

STRIP_PIXELS = 2**18
"""Pixels that are scaled at a time, so that a large image is not held in double precision as a whole."""

PNG_START = b"\x89PNG\r\n\x1a\n"
_NOT_PIXELS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
"""Chunks of a PNG that do not affect its pixels as they are read here."""

NOT_DECODED = frozenset({"BUFR", "EPS", "FPX", "GRIB", "HDF5", "IPTC", "MIC", "MPEG", "WMF"})
"""Formats that Pillow recognises but hands to other programs (Ghostscript, for EPS), or that are no photographs."""

_MAX_SAMPLE_VALUE = 281  # a tag of TIFF

_EXIF_ERRORS = (SyntaxError, ValueError, OSError, EOFError, LookupError, TypeError, struct.error)

_DEPTHS = (10, 12, 14)
"""Bits of the cameras and scanners whose data are often stored in 16 bits as they are."""


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """Return the formats of images that are decoded, by Pillow's names; whatever a file is called, no others are."""
    Image.init()
    return tuple(kind for kind in Image.ID if kind not in NOT_DECODED)


def decode(data: bytes, name: str) -> Image.Image:
    """Return the image as 8-bit RGB; see `decode_with_mode`."""
    return decode_with_mode(data, name).image


def decode_with_mode(
    data: bytes, name: str, *, max_bytes: int = PILLOW_MAX_BYTES, least: Least | None = None
) -> LoadedImage:
    """Return the image as 8-bit RGB, with the mode it was stored in and the hash of the file.

    The orientation tag of EXIF is not applied, which a remark says, and transparency is dropped without blending, as
    the evaluation pipelines of torchvision and timm do. Of several frames or pages the first is taken. Greyscale of
    more than 8 bits is scaled, never clipped: see `scale_to_8_bits`. White is 65535 in 16 bits, or what a TIFF states
    in its tags BitsPerSample and MaxSampleValue. (The chunk sBIT of a PNG does not move its white.) Values that use few
    of the 16 bits, as 12-bit data do that were stored as they are, are kept dark and get a remark. Raises
    UnreadableImageError if the data is empty, no image, truncated, damaged, or of an image of more than `max_bytes`.

    Parameters
    ----------
    data : bytes
        The whole file.
    name : str
        Name of the image in messages.
    max_bytes : int
        An image that takes more as RGB is not decoded.
    least : callable, optional
        A JPEG is decoded at the smallest of 1/2, 1/4 and 1/8 of its width and height, rounded up, that is not below
        what this returns for them, as the decoder can leave out the rest; its other facts are those of the whole image.
    """
    if not data:
        raise UnreadableImageError(name, "it is empty (0 bytes)")
    sha256, n_bytes = hashlib.sha256(data).hexdigest(), len(data)
    try:
        data = _without_texts(data)
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            _refuse_large(image, name, max_bytes)
            full_size = image.size
            if least is not None and isinstance(image, JpegImagePlugin.JpegImageFile) and _has_drafts(data):
                image.draft(None, least(full_size))
            is_draft = image.size != full_size
            image.load()
            _refuse_large(image, name, max_bytes)  # an icon may be larger than it says
            if image.format == "PNG":  # whose damaged pixels Pillow decodes silently
                Image.open(io.BytesIO(data), formats=["PNG"]).verify()
            remarks = filter(None, (_remark_on_depth(image, data), _remark_on_orientation(image)))
            remark = "; ".join(remarks) or None
            pixels, mode = to_rgb(image, name), image.mode
            return LoadedImage(pixels, mode, sha256, n_bytes, remark, full_size if is_draft else None)
    except (SemrsmError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError(name, "its content is not in a known image format") from error
    # Pillow's decoders raise whatever a damaged file drives them to (OSError, SyntaxError, struct.error, ...).
    except Exception as error:
        if least is not None:  # judged as a whole, whatever a draft of it lacks
            return decode_with_mode(data, name, max_bytes=max_bytes)
        raise UnreadableImageError(name, f"{error} ({type(error).__name__})") from error


def _has_drafts(data: bytes) -> bool:
    """Return whether a JPEG is made of cosines, of which a decoder can leave out some; a lossless one is not.

    Asked for a draft of that, decoders raise, return the whole image, or end the process (Pillow 10.3).
    """
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in _FRAMES:
            return marker not in _LOSSLESS_FRAMES
        # A filling byte, or a segment with its length.
        place += 1 if marker == 0xFF else 2 + int.from_bytes(data[place + 2 : place + 4])
    return False


def scale_to_8_bits(values: NDArray[np.generic], full_scale: float | None = None) -> NDArray[np.uint8]:
    """Return grey values scaled linearly to 0..255 and rounded.

    Raises ValueError if a value is NaN or infinite.

    Parameters
    ----------
    values : ndarray
        Integers or floats of any shape.
    full_scale : float, optional
        The value of white where the format fixes it (65535 for 16 bits). Without it, floats within
        [0, 1] are taken as shares of white, floats within [0, 255] as they are, and everything else is
        stretched from the image's own smallest to its largest value (a constant image becomes black).
    """
    if not np.isfinite(values).all():
        raise ValueError("it has pixels that are NaN or infinite")
    low, high = float(values.min()), float(values.max())
    if full_scale is not None:
        low, high = 0.0, full_scale
    elif np.issubdtype(values.dtype, np.floating) and low >= 0 and high <= 255:
        low, high = 0.0, 1.0 if high <= 1 else 255.0
    scaled = np.zeros(values.shape, np.uint8)
    if high > low:
        rows = max(1, STRIP_PIXELS * len(values) // values.size)
        for start in range(0, len(values), rows):
            grey = values[start : start + rows].astype(np.float64)
            scaled[start : start + rows] = np.rint((grey - low) * (255 / (high - low)))
    return scaled


def _without_texts(data: bytes) -> bytes:
    """Return a PNG without texts and colour profile, which may be larger than Pillow takes; other data as they are."""
    if not data.startswith(PNG_START):
        return data
    kept, at = [PNG_START], len(PNG_START)
    while at + 8 <= len(data):
        stop = at + 12 + int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] not in _NOT_PIXELS:
            kept.append(data[at:stop])
        at = stop
    return b"".join([*kept, data[at:]])


def _refuse_large(image: Image.Image, name: str, max_bytes: int) -> None:
    n_bytes = 3 * image.width * image.height
    if n_bytes > max_bytes:
        raise UnreadableImageError(
            name,
            f"its {image.width} x {image.height} pixels take {n_bytes} bytes as RGB, over the limit max_image_bytes of "
            f"its source, {max_bytes}: make it smaller, or raise the limit",
        )


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Return an opened image as 8-bit RGB; see `decode_with_mode`.

    Raises UnreadableImageError if it has pixels that are NaN or infinite.
    """
    if image.mode == "RGB":
        return image.copy()  # detached from the file
    if image.mode == "F" or image.mode.startswith("I"):
        try:
            grey = scale_to_8_bits(np.asarray(image), _white(image))
        except ValueError as error:
            raise UnreadableImageError(name, str(error)) from error
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("P", "PA", "RGBa") or "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")  # directly, Pillow would warn, or refuse
    return image.convert("RGB")


def _white(image: Image.Image) -> float | None:
    """Return the value of white where the file or its format fixes it."""
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # Pillow scales PNM to 16 bits
        return 65535.0
    if not image.mode.startswith("I;16"):
        return None
    white = 2 ** _tiff_value(image, ExifTags.Base.BitsPerSample, 16) - 1
    stated = _tiff_value(image, _MAX_SAMPLE_VALUE, white)
    return float(stated if np.asarray(image).max() <= stated <= white else white)


def _tiff_value(image: Image.Image, tag: int, default: int) -> int:
    """Return the value of a TIFF's tag; of one value for each channel, the largest."""
    found = image.tag_v2.get(tag) if isinstance(image, TiffImagePlugin.TiffImageFile) else None
    return default if found is None else int(np.max(found))


def _remark_on_depth(image: Image.Image, data: bytes) -> str | None:
    """Return a remark on 16-bit values that use few of the 16 bits; of colours, Pillow keeps the upper 8."""
    is_grey = image.mode.startswith("I")
    if is_grey and _white(image) != 65535:
        return None
    depth = data[24] if image.format == "PNG" else _tiff_value(image, ExifTags.Base.BitsPerSample, 8)
    if not is_grey and (depth != 16 or image.mode in ("P", "1")):
        return None
    largest = int(np.asarray(image).max()) if is_grey else 256 * int(np.asarray(image.convert("RGB")).max())
    bits = next((bits for bits in _DEPTHS if 0 < largest < 2**bits), None)
    if bits is None:
        return None
    return (
        f"its 16-bit values all lie below {2**bits}, as those of {bits}-bit data do, but white is 65535, so it may be "
        f"much darker than meant; if so, multiply the values by {2 ** (16 - bits)}, or store them as a TIFF with the "
        f"tag MaxSampleValue {2**bits - 1}"
    )


def _remark_on_orientation(image: Image.Image) -> str | None:
    """Return a remark on an image that its EXIF data say is to be turned or mirrored."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _EXIF_ERRORS:  # damaged EXIF data say nothing, and the pixels are good
        return None
    if image.format == "TIFF" or orientation not in range(2, 9):  # Pillow turns a TIFF itself
        return None
    return (
        f"its EXIF orientation {orientation} is not applied, as usual for networks' evaluation, so it is seen as its "
        "pixels lie: if it is on its side, turn the pixels (jpegtran, mogrify -auto-orient, or "
        "PIL.ImageOps.exif_transpose)"
    )

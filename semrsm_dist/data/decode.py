"""From the bytes of an image file to 8-bit RGB, for every mode that Pillow can open."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from semrsm_dist.data.entries import UnreadableImageError

MAX_PIXELS = 178_956_970  # Pillow's own limit for a decompression bomb (half a gigabyte as RGB)


def decode(data: bytes, name: str) -> Image.Image:
    """Return the image as 8-bit RGB; see `decode_with_mode`."""
    return decode_with_mode(data, name)[0]


def decode_with_mode(data: bytes, name: str) -> tuple[Image.Image, str]:
    """Return the image as 8-bit RGB, and the mode it was stored in.

    The orientation tag of EXIF is not applied and transparency is dropped without blending, as the
    evaluation pipelines of torchvision and timm do. Of several frames or pages the first is taken. Greyscale of more
    than 8 bits is scaled, never clipped: see `scale_to_8_bits`.

    Parameters
    ----------
    data : bytes
        The whole file.
    name : str
        How messages call the image.

    Raises
    ------
    UnreadableImageError
        If the data is empty, no image, truncated, damaged, or would unpack to more than `MAX_PIXELS`.
    """
    if not data:
        raise UnreadableImageError(name, "it is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data)) as image:
            _refuse_bomb(image, name)
            image.load()
            if image.format == "PNG":
                _verify_checksums(data)
            return _to_rgb(image, name), image.mode
    except (UnreadableImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError(name, "its content is of no known image format") from error
    # Pillow's decoders raise whatever a damaged file drives them to (OSError, SyntaxError, struct.error, ...).
    except Exception as error:
        raise UnreadableImageError(name, f"{error} ({type(error).__name__})") from error


def scale_to_8_bits(values: NDArray[np.generic], full_scale: float | None = None) -> NDArray[np.uint8]:
    """Return grey values scaled linearly to 0..255 and rounded.

    Parameters
    ----------
    values : ndarray
        Integers or floats of any shape.
    full_scale : float, optional
        The value of white where the format fixes it (65535 for 16 bits). Without it, floats within
        [0, 1] are taken as shares of white, floats within [0, 255] as they are, and everything else is
        stretched from the image's own smallest to its largest value (a constant image becomes black).

    Raises
    ------
    ValueError
        If a value is NaN or infinite.
    """
    grey = values.astype(np.float64)
    if not np.isfinite(grey).all():
        raise ValueError("it has pixels that are NaN or infinite")
    low, high = float(grey.min()), float(grey.max())
    if full_scale is not None:
        low, high = 0.0, full_scale
    elif np.issubdtype(values.dtype, np.floating) and low >= 0 and high <= 255:
        low, high = 0.0, 1.0 if high <= 1 else 255.0
    scaled = (grey - low) * (255 / (high - low)) if high > low else np.zeros_like(grey)
    return np.rint(scaled).astype(np.uint8)


def _refuse_bomb(image: Image.Image, name: str) -> None:
    n_pixels = image.width * image.height
    if n_pixels > MAX_PIXELS:
        raise UnreadableImageError(
            name, f"it would unpack to {image.width} x {image.height} pixels, over the limit of {MAX_PIXELS}"
        )


def _verify_checksums(data: bytes) -> None:
    """Raise for a PNG with damaged chunks, which Pillow decodes without a word when the damage is in the pixels."""
    with Image.open(io.BytesIO(data)) as image:
        image.verify()


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB":
        return image.copy()  # detached from the file
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        # 16-bit files have a fixed white; PNG and PNM (scaled by Pillow) have it in mode I too.
        fixed = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
        try:
            grey = scale_to_8_bits(values, 65535.0 if fixed else None)
        except ValueError as error:
            raise UnreadableImageError(name, str(error)) from error
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("P", "PA", "La", "RGBa") or "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")  # directly, Pillow would warn, or refuse
    return image.convert("RGB")

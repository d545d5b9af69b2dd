"""Pictures of a run's images on sheets, as a page holds them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from semrsm_dist.progress import Stage
from semrsm_dist.report.page_data import Array, Pictures
from semrsm_dist.results.images import ImageReader

SHEET = 2048
"""Pixels along an edge of a sheet, at most: what every browser decodes quickly."""

SIZES = (64, 48, 40, 32, 24)
"""Pixels along an edge of a thumbnail, at most."""

LEAST = 8
"""Pixels along an edge of a thumbnail, at least: a line of an image 1 pixel wide is widened."""

QUALITY = 82
"""Of the JPEG files."""

THREADS, BATCH = 8, 64
"""Images that are read at once, and between two reports of progress."""


@dataclass(frozen=True)
class Gallery:
    """Pictures of some images, and what is wrong with those that are not shown, by their place among them."""

    pictures: Pictures | None
    problems: dict[int, str]


def read_thumbnails(reader: ImageReader, indices: Sequence[int], most_bytes: int, stage: Stage) -> Gallery:
    """Return whole images, of the largest of `SIZES` in which the files of all have at most this many bytes."""
    found, problems = _read(reader, indices, lambda image: _shrink(image, SIZES[0]), stage)
    for size in SIZES:
        pictures = _lay_out([image and _shrink(image.copy(), size) for image in found], size)
        if pictures is None or pictures.n_bytes <= most_bytes:
            break
    return Gallery(pictures, problems)


def read_seen(reader: ImageReader, indices: Sequence[int], size: int, stage: Stage) -> Gallery:
    """Return what the model sees of images, at most `size` pixels wide and high."""
    found, problems = _read(reader, indices, lambda image: reader.see(image, size), stage)
    return Gallery(_lay_out(found, size), problems)


def read_picture(reader: ImageReader, index: int, size: int, *, seen: bool) -> tuple[bytes | None, str]:
    """Return one image, whole or as the model sees it, as a JPEG file, and what is wrong with it, if anything."""
    image, problem = reader.load(index)
    if image is None:
        return None, problem
    return encode(reader.see(image, size) if seen else _shrink(image, size)), problem


def _shrink(image: Image.Image, size: int) -> Image.Image:
    """Return an image at most `size` pixels wide and high, and wide and high enough to be seen."""
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    visible = max(image.width, LEAST), max(image.height, LEAST)
    return image if visible == image.size else image.resize(visible, Image.Resampling.NEAREST)


def _read(
    reader: ImageReader, indices: Sequence[int], change: Callable[[Image.Image], Image.Image], stage: Stage
) -> tuple[list[Image.Image | None], dict[int, str]]:
    """Return changed images, None for those that are not shown, and what is wrong with some, by their place."""
    if reader.problem:
        return [], {}

    def load(index: int) -> tuple[Image.Image | None, str]:
        image, problem = reader.load(index)
        return None if image is None else change(image), problem

    found: list[Image.Image | None] = []
    problems: dict[int, str] = {}
    with ThreadPoolExecutor(THREADS) as threads:
        for start in range(0, len(indices), BATCH):
            part = indices[start : start + BATCH]
            for image, problem in threads.map(load, part):
                if problem:
                    problems[len(found)] = problem
                found.append(image)
            stage.advance(len(part))
    return found, problems


def _lay_out(images: Sequence[Image.Image | None], cell: int) -> Pictures | None:
    """Return pictures on sheets, each in the upper left corner of its cell; None if there are none."""
    if not any(images):
        return None
    per_edge = max(1, SHEET // cell)
    across = min(per_edge, max(1, int(np.ceil(np.sqrt(len(images))))))
    down = min(per_edge, -(-len(images) // across))
    sheets = []
    for start in range(0, len(images), across * down):
        part = images[start : start + across * down]
        sheet = Image.new("RGB", (across * cell, -(-len(part) // across) * cell))
        for place, image in enumerate(part):
            if image is not None:
                sheet.paste(image, (place % across * cell, place // across * cell))
        sheets.append(as_url(sheet))
    sizes = np.array([(0, 0) if image is None else image.size for image in images])
    return Pictures(sheets=sheets, cell=cell, across=across, down=down, sizes=Array.indices(sizes, cell + 1))


def as_url(image: Image.Image, kind: str = "jpeg") -> str:
    """Return an image as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(encode(image, kind)).decode()}"


def encode(image: Image.Image, kind: str = "jpeg") -> bytes:
    """Return an image as a file."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": QUALITY} if kind == "jpeg" else {"optimize": True}
    image.save(buffer, kind, **options)
    return buffer.getvalue()

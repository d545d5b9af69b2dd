"""Pictures of a run's images: read where the run read them, and shown only if they are still the same."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from semrsm_dist.data.entries import UnreadableImageError
from semrsm_dist.data.manifest import ManifestRow
from semrsm_dist.data.source import ImageSource, load_image
from semrsm_dist.data.sources import SOURCES
from semrsm_dist.data.sources.table import TableImages
from semrsm_dist.errors import SemrsmError, StorageError, first_line
from semrsm_dist.progress import Stage
from semrsm_dist.report.model import Array, Pictures
from semrsm_dist.results.run import Run

SHEET = 2048
"""Pixels along an edge of a sheet, at most: what every browser decodes quickly."""

QUALITY = 82
"""Of the JPEG files."""

THREADS, BATCH = 8, 64
"""Images that are read at once, and between two reports of progress."""

CHANGED = "this image has changed since the run: its content has another hash"
NO_HASH = "the run does not know the hash of this image, so it may have changed"

Transform = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Gallery:
    """Pictures of some images, and what is wrong with those that are not shown, by their place among them."""

    pictures: Pictures | None
    problems: dict[int, str]


class ImageReader:
    """The images of a side of a run.

    Parameters
    ----------
    run
        The run.
    side
        `images` or `queries`.
    """

    def __init__(self, run: Run, side: str) -> None:
        self._rows = [row for row in run.manifest(side).rows if row.status == "ok"]
        self._preprocessing = (
            run.record.cached.model.facts["preprocessing"] if run.record.cached.model else {}
        )
        self._source: ImageSource | None = None
        self.problem = ""
        """Why there is no picture at all, if so."""
        try:
            self._source = _open_source(run, side, self._rows)
        except SemrsmError as error:
            self.problem = f"The images of {side} cannot be read: {first_line(error)}"
        if self._source is None and not self.problem:
            self.problem = (
                f"The features of {side} came without images. To see them here, give the table of the features a "
                "column uri, and start the run's command again."
            )

    def thumbnails(self, indices: Sequence[int], size: int, stage: Stage) -> Gallery:
        """Return whole images, at most `size` pixels wide and high."""

        def shrink(image: Image.Image) -> Image.Image:
            image.thumbnail((size, size), Image.Resampling.LANCZOS)
            return image

        return self._read(indices, size, shrink, stage)

    def seen(self, indices: Sequence[int], size: int, stage: Stage) -> Gallery:
        """Return what the model sees of images, at most `size` pixels wide and high."""
        return self._read(indices, size, lambda image: see(image, self._preprocessing, size), stage)

    def _read(self, indices: Sequence[int], size: int, change: Transform, stage: Stage) -> Gallery:
        if self._source is None or not indices:
            return Gallery(None, {})
        found: list[Image.Image | None] = []
        problems: dict[int, str] = {}
        with ThreadPoolExecutor(THREADS) as threads:
            for start in range(0, len(indices), BATCH):
                part = [self._rows[index] for index in indices[start : start + BATCH]]
                for image, problem in threads.map(lambda row: self._load(row, change), part):
                    if problem:
                        problems[len(found)] = problem
                    found.append(image)
                stage.advance(len(part))
        return Gallery(_lay_out(found, size) if any(found) else None, problems)

    def _load(self, row: ManifestRow, change: Transform) -> tuple[Image.Image | None, str]:
        """Return the changed image, or what is wrong with it."""
        if not row.uri:
            return None, "the table names no image"
        try:
            loaded = load_image(self._source, row.entry)  # type: ignore[arg-type]  # there is one, see `_read`
        except UnreadableImageError as error:
            return None, error.cause
        except StorageError as error:
            return None, first_line(error)
        if row.sha256 is not None and loaded.sha256 != row.sha256:
            return None, CHANGED
        return change(loaded.image), "" if row.sha256 is not None else NO_HASH


def _open_source(run: Run, side: str, rows: Iterable[ManifestRow]) -> ImageSource | None:
    """Return the source of a side's images as it was when the run read them, or None if it had none.

    Raises
    ------
    ConfigError
        If the source is of a distribution that is no longer installed.
    """
    if run.record.cached.model is None:  # ready-made features, whose table may name images
        if not any(row.uri for row in rows):
            return None
        section = run.record.config["data" if side == "images" else "queries"]
        return TableImages(
            path=run.record.cached.listings[side], allow_outside=section.get("allow_outside", False)
        )
    listing: Mapping[str, Any] = run.record.cached.listings[side]
    source = SOURCES.load(listing["source"]).model_validate(listing)
    return source if isinstance(source, ImageSource) else None


def see(image: Image.Image, preprocessing: Mapping[str, Any], size: int) -> Image.Image:
    """Return what a model sees of an image: resized and cropped as timm does it, at most `size` pixels wide and high.

    Without preprocessing, it is the whole image. A border that timm adds is black.
    """
    if not preprocessing:
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
        return image
    _, height, width = preprocessing["input_size"]
    box = seen_box(image.size, (width, height), preprocessing["crop_pct"], preprocessing["crop_mode"])
    scale = min(1.0, size / max(width, height))
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    left, top, right, bottom = box
    if left >= 0 and top >= 0 and right <= image.width and bottom <= image.height:
        return image.resize(shape, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    return image.transform(shape, Image.Transform.EXTENT, box, Image.Resampling.BICUBIC)


def seen_box(
    image: tuple[int, int], model: tuple[int, int], crop_pct: float, crop_mode: str
) -> tuple[float, float, float, float]:
    """Return the part of an image that a model sees: left, top, right, bottom, in pixels.

    Parameters
    ----------
    image, model
        Width and height of the image, and of the model's input.
    crop_pct, crop_mode
        As timm's `create_transform` takes them.
    """
    ratios = [length / crop_pct / whole for length, whole in zip(model, image, strict=True)]
    # `squash` has a scale for each direction; `border` shows all of the image, `center` fills the model's input.
    one = min(ratios) if crop_mode == "border" else max(ratios)
    scales = ratios if crop_mode == "squash" else [one, one]
    shares = [length / scale for length, scale in zip(model, scales, strict=True)]
    shares = [
        min(share, whole) if crop_mode == "center" else share
        for share, whole in zip(shares, image, strict=True)
    ]
    left, top = ((whole - share) / 2 for whole, share in zip(image, shares, strict=True))
    return left, top, left + shares[0], top + shares[1]


def _lay_out(images: Sequence[Image.Image | None], cell: int) -> Pictures:
    """Return pictures on sheets, each in the upper left corner of its cell."""
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
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": QUALITY} if kind == "jpeg" else {"optimize": True}
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"

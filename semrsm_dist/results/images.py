"""The images of a run: read where the run read them, and returned only if they are still the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image

from semrsm_dist.data.entries import UnreadableImageError
from semrsm_dist.data.manifest import Manifest, ManifestRow
from semrsm_dist.data.source import ImageSource, load_image
from semrsm_dist.data.sources import SOURCES
from semrsm_dist.data.sources.table import TableImages
from semrsm_dist.errors import SemrsmError, StorageError, first_line
from semrsm_dist.results.reader import RunReader

CHANGED = "this image has changed since the run: its content has another hash"
NO_HASH = "the run does not know the hash of this image, so it may have changed"


class ImageReader:
    """The images of a side of a run; its manifest is read unless it is given.

    Attributes
    ----------
    problem : str
        Why there is no image at all; empty if there is one.
    n_unknown : int
        Images of which the run does not know the hash.
    """

    def __init__(self, run: RunReader, side: str, manifest: Manifest | None = None) -> None:
        self._rows = (manifest or run.manifest(side)).readable
        self.n_unknown = sum(row.sha256 is None and bool(row.uri) for row in self._rows)
        model = run.record.cached.model
        self._preprocessing = model.facts["preprocessing"] if model else {}
        self._source: ImageSource | None = None
        self.problem = ""
        try:
            self._source = _open_source(run, side, self._rows)
        except SemrsmError as error:
            self.problem = f"The images of {side} cannot be read: {first_line(error)}"
        if self._source is None and not self.problem:
            self.problem = (
                f"The features were given without pictures of the {side}. To see these here, add a column uri to the "
                "table of the features, and start the run's command again."
            )

    def load(self, index: int) -> tuple[Image.Image | None, str]:
        """Return a whole image, or None, and what is wrong with it."""
        row = self._rows[index]
        if self._source is None:
            return None, self.problem
        if not row.uri:
            return None, "the table names no image"
        try:
            loaded = load_image(self._source, row.entry)
        except UnreadableImageError as error:
            return None, error.cause
        except StorageError as error:
            return None, first_line(error)
        if row.sha256 is not None and loaded.sha256 != row.sha256:
            return None, CHANGED
        return loaded.image, "" if row.sha256 is not None else NO_HASH

    def see(self, image: Image.Image, size: int) -> Image.Image:
        """Return what the run's model sees of an image, at most `size` pixels wide and high."""
        return see(image, self._preprocessing, size)


def _open_source(run: RunReader, side: str, rows: Iterable[ManifestRow]) -> ImageSource | None:
    """Return the source of a side's images as it was when the run read them, or None if it had none.

    Raises ConfigError if the source is of a distribution that is no longer installed.
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

    `image` and `model` are width and height of the image and of the model's input, and the crop is as timm's
    `create_transform` takes it.
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

"""Shifted crops of the images of another source: the same content, higher up in the picture.

Each image is first cut to its central square. A crop is a smaller square, `share` of that wide, in the middle of
it from left to right, and at the top (shift 0) or further down. Shifts are shares of the crop's side, so they mean the
same in images of any size. Wald et al. (2024) cut 64 of 84 pixels, with a shift of 20: 44 rows are shared.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from semrsm_dist.data.entries import ImageEntry, LoadedImage
from semrsm_dist.data.source import ImageSource, list_entries, load_image
from semrsm_dist.data.sources import Images
from semrsm_dist.errors import InputError
from semrsm_dist.fields import AffectsResult, Count, Real, Seed

SHARE = 64 / 84
"""The paper's crops, as a share of the image."""

_MARK = "@"

Box = tuple[int, int, int, int]
"""Left, upper, right and lower border, in pixels, as Pillow has them."""


class ShiftedCrops(ImageSource):
    """Crops of the images of another source, ordered by shift and then by image; labels and groups are the images'.

    How much of a crop a label covers is unknown.
    """

    source: Literal["crops"] = "crops"
    of: Images
    share: Annotated[Real, Field(gt=0, le=1), AffectsResult(added=True)] = SHARE
    """Side of a crop as a share of the image's shorter side, above 0 and at most 1."""
    shifts: Annotated[tuple[Annotated[Real, Field(ge=0)], ...], Field(min_length=1)] = (0.0,)
    """How far down the crops lie, as shares of their side: different ones, from 0 to `largest_shift(share)`."""
    sample: Count | None = None
    """Size of a random sample of images, which keep their order; None takes all."""
    seed: Seed = 0
    """Of the sample."""

    @model_validator(mode="after")
    def _shifts_differ_and_fit(self) -> ShiftedCrops:
        largest = largest_shift(self.share)
        if max(self.shifts) > largest * (1 + 1e-9):
            raise ValueError(
                f"shifts are {list(self.shifts)}, but crops of {self.share:.4g} of an image can be moved by 0 to "
                f"{largest:.4g} of their side; give shifts in this range, or smaller crops"
            )
        if len({_tag(shift) for shift in self.shifts}) < len(self.shifts):
            raise ValueError(f"shifts are {list(self.shifts)}; give each once")
        return self

    def entries(self) -> list[ImageEntry]:
        """Return the crops, those of the first shift first."""
        images = list_entries(self.of)
        if self.sample is not None and self.sample < len(images):
            chosen = np.random.default_rng(self.seed).choice(len(images), self.sample, replace=False)
            images = [images[index] for index in np.sort(chosen)]
        return [
            replace(entry, image_id=crop_id(entry.image_id, shift), label_counts=None, label_areas=None)
            for shift in self.shifts
            for entry in images
        ]

    def load(self, entry: ImageEntry) -> LoadedImage:
        """Return the crop with a hash of the image's content and the place of the crop in it."""
        original, shift = self._original(entry)
        loaded = load_image(self.of, original)
        box = crop_box(loaded.image.size, self.share, shift)
        sha256 = hashlib.sha256(f"{loaded.sha256} {box}".encode()).hexdigest()
        return replace(loaded, image=loaded.image.crop(box), sha256=sha256)

    def stamp(self, entry: ImageEntry) -> tuple[int, int] | None:
        """Return the stamp that the image's own source returns."""
        return self.of.stamp(self._original(entry)[0])

    def would_list(self, location: str) -> bool:
        """Return what the images' own source returns."""
        return self.of.would_list(location)

    def _original(self, entry: ImageEntry) -> tuple[ImageEntry, float]:
        name, _, tag = entry.image_id.rpartition(_MARK)
        for shift in self.shifts:
            if tag == _tag(shift):
                return replace(entry, image_id=name), float(tag)  # so that equal ids are equal crops
        raise InputError(
            f"image {entry.image_id!r} is not one of these crops, whose ids end in "
            f"{', '.join(_MARK + _tag(shift) for shift in self.shifts)}; use the source that listed it"
        )


def crop_id(image_id: str, shift: float) -> str:
    """Return the id of an image's crop."""
    return f"{image_id}{_MARK}{_tag(shift)}"


def largest_shift(share: float) -> float:
    """Return how far down a crop can lie, as a share of its side."""
    return (1 - share) / share


def crop_box(size: tuple[int, int], share: float, shift: float) -> Box:
    """Return where a crop lies in an image of `size` (width, height): whole pixels, within the central square."""
    width, height = size
    square = min(size)
    side = max(1, round(share * square))
    left = (width - square) // 2 + (square - side) // 2
    top = (height - square) // 2 + min(round(shift * side), square - side)
    return left, top, left + side, top + side


def _tag(shift: float) -> str:
    return f"{shift:.4f}"

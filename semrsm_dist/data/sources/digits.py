"""Scenes of handwritten digits at random places: multi-object images that need no download.

scikit-learn ships 1 797 digits of 8 x 8 pixels. A scene enlarges a few of them and pastes them on a dark
canvas, so that two scenes can show the same objects at different positions, which is what semantic and
spatio-semantic similarity disagree about.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, ValidationInfo, field_validator, model_validator

from semrsm_dist.data.entries import ImageEntry, LoadedImage
from semrsm_dist.data.handwriting import DIGIT_SIDE, N_CLASSES, Split, digit_sources, enlarge, to_bytes
from semrsm_dist.data.placing import Corner, Window, place_boxes, regular_slots
from semrsm_dist.data.source import ImageSource
from semrsm_dist.errors import InputError
from semrsm_dist.fields import AffectsResult, Count, Pair, Real, Seed

Arrangement = Literal["free", "pair"]

_LAYOUT, _BACKGROUND = 0, 1  # independent random streams of one scene


@dataclass(frozen=True, slots=True)
class Placement:
    """One digit of a scene."""

    digit: int
    """What it shows, 0 to 9."""
    source: int
    """Which of scikit-learn's 1 797 digits it is."""
    top: int
    left: int
    """`top` and `left` are the upper left corner of its box on the canvas, in pixels."""
    size: int
    """Side of its square box, in pixels."""


@dataclass(frozen=True, slots=True)
class Scene:
    """The layout of scene number `index`: its digits, in the order of placing (largest first)."""

    index: int
    placements: tuple[Placement, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The set of digits shown, sorted, as strings."""
        return tuple(sorted({str(p.digit) for p in self.placements}))


class DigitScenes(ImageSource):
    """Generated scenes of handwritten digits, labelled with the set of digits they show.

    Scene k depends on the controls, `seed`, `split` and k alone: it is the same for every `n_images`.
    The digits of a scene are of different classes (up to ten digits; beyond, classes repeat evenly).
    The two splits share no digit image.

    Two controls set how informative positions are. `displacement` below 1 keeps each class near a home of its own,
    the same in all scenes. With `arrangement="pair"` a scene holds two digits, one in each half of the canvas, and
    the labels name digit and half: ``left:3``, ``right:7``; their homes are the centres of the halves.
    """

    generated: ClassVar[bool] = True

    source: Literal["digits"] = "digits"
    n_images: Annotated[Count, Field(le=10**7), AffectsResult()] = 400
    digits: Annotated[Pair, AffectsResult()] = (1, 4)
    """Smallest and largest number of digits in a scene, drawn uniformly."""
    canvas: Annotated[Count, Field(ge=DIGIT_SIDE), AffectsResult()] = 96
    """Side of the square scene, in pixels."""
    scale: Annotated[tuple[Real, Real], AffectsResult()] = (2.5, 4.0)
    """Smallest and largest enlargement of the 8 x 8 digits; a digit's box has a side of round(8 * scale) pixels."""
    overlap: Annotated[Real, Field(ge=0, le=1), AffectsResult()] = 0.1
    """Largest share of a digit's box that the box of any one other digit may cover: 0 keeps boxes apart, 1 allows every
    position."""
    split: Annotated[Split, AffectsResult()] = "evaluation"
    """Which digit images are used."""
    seed: Annotated[Seed, AffectsResult()] = 0
    """Seed of the scenes; the split of the digit images does not depend on it."""
    displacement: Annotated[Real, Field(ge=0, le=1), AffectsResult(added=True)] = 1.0
    """How far digits may be from home in each direction, as a share of the way across the canvas: 0 puts them there
    exactly, 1 anywhere (in their half). Scenes too crowded for that have them at home."""
    arrangement: Annotated[Arrangement, AffectsResult(added=True)] = "free"
    """Digits anywhere on the canvas, labelled with their set, or one in each half, labelled with its side."""

    @field_validator("digits", "scale")
    @classmethod
    def _smallest_first(cls, value: tuple[float, float], field: ValidationInfo) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("expected [smallest, largest], both positive; swap or correct them")
        if field.field_name == "scale" and value[0] < 0.5:
            raise ValueError("expected a smallest scale of at least 0.5; digits would vanish below")
        return value

    @model_validator(mode="after")
    def _digits_fit(self) -> DigitScenes:
        """Refuse digits that need not fit on the canvas, at home or in their halves."""
        capacity, (low, high) = len(self._slots()), self._sizes()
        if self.digits[1] > capacity:
            raise ValueError(
                f"{self.digits[1]} digits of up to {high} px (scale {self.scale[1]:g}) were requested, but a canvas of "
                f"{self.canvas} px is guaranteed to hold only {capacity} with overlap {self.overlap:g}; use fewer "
                f"digits, a smaller scale (boxes now have {low}-{high} px), a larger canvas or more overlap"
            )
        if self.arrangement == "pair":
            if self.digits != (2, 2) or high > self.canvas // 2:
                raise ValueError(
                    f"arrangement pair puts two digits into the halves of the canvas, but digits is {self.digits} and "
                    f"boxes have up to {high} px in halves of {self.canvas // 2} px; use digits [2, 2], and a smaller "
                    "scale or a larger canvas if they do not fit"
                )
        elif self.displacement < 1 and (self.digits[1] > N_CLASSES or len(self._homes()) < N_CLASSES):
            raise ValueError(
                f"displacement {self.displacement:g} needs a home for each of {N_CLASSES} classes, one digit each, but "
                f"a canvas of {self.canvas} px has room for {len(self._homes())} boxes of {high} px with overlap "
                f"{self.overlap:g}, and digits is {self.digits}; use at most {N_CLASSES} digits, a smaller scale or a "
                "larger canvas, or leave displacement at 1"
            )
        return self

    # --- the source ----------------------------------------------------------------------------------

    def entries(self) -> list[ImageEntry]:
        """Return the scenes in order, each labelled with its set of digits."""
        where = f"digits:{self.split}/{self.seed}"
        return [
            ImageEntry(f"{self.split}-{index:06d}", f"{where}/{index}", self.labels(self.scene(index)))
            for index in range(self.n_images)
        ]

    def load(self, entry: ImageEntry) -> LoadedImage:
        """Return the scene with the hash of its pixels."""
        pixels = self.render(self.scene(self._index_of(entry)))
        sha256 = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
        return LoadedImage(Image.fromarray(pixels).convert("RGB"), "L", sha256, pixels.nbytes)

    def _index_of(self, entry: ImageEntry) -> int:
        split, _, number = entry.image_id.partition("-")
        if split != self.split or not number.isdecimal() or int(number) >= self.n_images:
            raise InputError(
                f"image {entry.image_id!r} is not one of these {self.n_images} {self.split} scenes of digits; "
                f"use the source that listed it"
            )
        return int(number)

    def labels(self, scene: Scene) -> tuple[str, ...]:
        """Return the labels of a scene: its digits or, in pairs, each digit with its half."""
        if self.arrangement == "free":
            return scene.labels
        half = self.canvas // 2
        return tuple(sorted(f"{'right' if p.left >= half else 'left'}:{p.digit}" for p in scene.placements))

    # --- scenes --------------------------------------------------------------------------------------

    def scene(self, index: int) -> Scene:
        """Return which digits scene number `index` holds, and where.

        A scene can be changed (say, a digit moved with `dataclasses.replace`) and given to `render`.
        """
        rng = self._generator(index, _LAYOUT)
        n_digits = int(rng.integers(self.digits[0], self.digits[1], endpoint=True))
        rounds = math.ceil(n_digits / N_CLASSES)
        classes = np.concatenate([rng.permutation(N_CLASSES) for _ in range(rounds)])[:n_digits]
        members = digit_sources(self.split)
        sources = [int(rng.choice(members[digit])) for digit in classes]
        low, high = self._sizes()
        scales = rng.uniform(*self.scale, size=n_digits)
        sizes = np.sort(np.clip(np.rint(DIGIT_SIDE * scales), low, high).astype(int))[::-1].tolist()
        corners = self._place(classes.tolist(), sizes, rng)
        return Scene(
            index,
            tuple(
                Placement(int(digit), source, top, left, size)
                for digit, source, (top, left), size in zip(classes, sources, corners, sizes, strict=True)
            ),
        )

    def render(self, scene: Scene) -> NDArray[np.uint8]:
        """Return the pixels (canvas, canvas) of a scene, the brightest digit on top.

        The background belongs to the scene's index, so a changed layout keeps it. What lies beyond the
        canvas is cut off.
        """
        pixels = self._background(scene.index)
        for p in scene.placements:
            stroke = enlarge(p.source, p.size)
            top, left = max(p.top, 0), max(p.left, 0)
            bottom, right = min(p.top + p.size, self.canvas), min(p.left + p.size, self.canvas)
            if top < bottom and left < right:
                box = pixels[top:bottom, left:right]
                np.maximum(box, stroke[top - p.top : bottom - p.top, left - p.left : right - p.left], out=box)
        return pixels

    def _generator(self, index: int, stream: int) -> np.random.Generator:
        key = (get_args(Split).index(self.split), index, stream)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    def _background(self, index: int) -> NDArray[np.uint8]:
        """Return a dark, slightly noisy slope, which keeps positions without a digit from being identical."""
        rng = self._generator(index, _BACKGROUND)
        along = np.linspace(-1, 1, self.canvas, dtype=np.float32)
        base, down, right = rng.uniform((16, -8, -8), (32, 8, 8)).astype(np.float32)
        shade = base + down * along[:, None] + right * along[None, :]
        shade += 4 * rng.standard_normal((self.canvas, self.canvas), dtype=np.float32)
        return to_bytes(shade)

    # --- placing -------------------------------------------------------------------------------------

    def _sizes(self) -> tuple[int, int]:
        low, high = (round(DIGIT_SIDE * s) for s in self.scale)
        return low, high

    def _place(self, classes: list[int], sizes: list[int], rng: np.random.Generator) -> list[Corner]:
        """Return corners (top, left) for boxes of these sizes, each uniform over what the others leave."""
        whole = [Window((0, self.canvas - size), (0, self.canvas - size)) for size in sizes]
        if self.arrangement == "free" and self.displacement == 1:
            placed = place_boxes(sizes, whole, canvas=self.canvas, overlap=self.overlap, rng=rng)
            if placed is not None:
                return placed
            # Crowded: regular slots always work, as the constructor has made sure.
            slots = self._slots()
            chosen = rng.choice(len(slots), size=len(sizes), replace=False)
            return [self._centred(slots[slot], size) for slot, size in zip(chosen, sizes, strict=True)]
        if self.arrangement == "pair":
            sides = rng.permutation(2).tolist()  # or the larger digit would always be on the same side
            limits = [self._half(side, size) for side, size in zip(sides, sizes, strict=True)]
            homes = [(sum(w.top) // 2, sum(w.left) // 2) for w in limits]
        else:
            limits, slots = whole, self._homes()
            homes = [self._centred(slots[digit], size) for digit, size in zip(classes, sizes, strict=True)]
        windows = [
            limit.around(home, round(self.displacement * (self.canvas - size)))
            for limit, home, size in zip(limits, homes, sizes, strict=True)
        ]
        return place_boxes(sizes, windows, canvas=self.canvas, overlap=self.overlap, rng=rng) or homes

    def _half(self, side: int, size: int) -> Window:
        """Return where a box lies within the left (0) or the right (1) half of the canvas."""
        half = self.canvas // 2
        left = (half, self.canvas - size) if side else (0, half - size)
        return Window((0, self.canvas - size), left)

    def _centred(self, slot: Corner, size: int) -> Corner:
        margin = (self._sizes()[1] - size) // 2
        return slot[0] + margin, slot[1] + margin

    def _slots(self) -> list[Corner]:
        """Return corners at which boxes of the largest size respect `overlap`, and smaller ones in their middle."""
        low, high = self._sizes()
        if self.overlap == 1 and high <= self.canvas:
            return [(0, 0)] * max(self.digits[1], 1)
        return regular_slots(low, high, canvas=self.canvas, overlap=self.overlap)

    def _homes(self) -> list[Corner]:
        """Return the slot of each class, spread over the canvas; fewer where they do not all fit."""
        slots = regular_slots(*self._sizes(), canvas=self.canvas, overlap=self.overlap)
        if len(slots) < N_CLASSES:
            return slots
        return [slots[round(digit * (len(slots) - 1) / (N_CLASSES - 1))] for digit in range(N_CLASSES)]

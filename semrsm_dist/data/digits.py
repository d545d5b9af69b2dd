"""Scenes of handwritten digits at random places: multi-object images that need no download.

scikit-learn ships 1 797 digits of 8 x 8 pixels. A scene enlarges a few of them and pastes them on a dark
canvas, so that two scenes can show the same objects at different positions, which is what semantic and
spatio-semantic similarity disagree about.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semrsm_dist.data.records import ImageRecord, LoadedImage
from semrsm_dist.errors import ConfigError, InputError, did_you_mean

Split = Literal["training", "evaluation"]

DIGIT_SIDE = 8  # pixels of a digit as scikit-learn ships it
N_CLASSES = 10
EVALUATION_SHARE = 0.3
_SPLIT_SEED = 1797  # fixed for ever: the shipped weights must never have seen an evaluation digit
_LAYOUT_ATTEMPTS = 20
_LAYOUT, _BACKGROUND = 0, 1  # independent random streams of one scene


@dataclass(frozen=True, slots=True)
class Placement:
    """One digit of a scene.

    Attributes
    ----------
    digit : int
        What it shows, 0 to 9.
    source : int
        Which of scikit-learn's 1 797 digits it is.
    top, left : int
        Upper left corner of its box on the canvas, in pixels.
    size : int
        Side of its square box, in pixels.
    """

    digit: int
    source: int
    top: int
    left: int
    size: int


@dataclass(frozen=True, slots=True)
class Scene:
    """The layout of scene number `index`: its digits, in the order of placing (largest first)."""

    index: int
    placements: tuple[Placement, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The set of digits shown, sorted, as strings."""
        return tuple(sorted({str(p.digit) for p in self.placements}))


@dataclass(frozen=True)
class DigitScenes:
    """Generated scenes of handwritten digits, labelled with the set of digits they show.

    Scene k depends on the controls, `seed`, `split` and k alone: it is the same for every `n_images`.
    The digits of a scene are of different classes (up to ten digits; beyond, classes repeat evenly).
    The two splits share no digit image.

    Parameters
    ----------
    n_images : int
        Number of scenes.
    digits : (int, int)
        Smallest and largest number of digits in a scene, drawn uniformly.
    canvas : int
        Side of the square scene, in pixels.
    scale : (float, float)
        Smallest and largest enlargement of the 8 x 8 digits; a digit's box has round(8 * scale) pixels a side.
    overlap : float
        Largest share of a digit's box that the box of any one other digit may cover: 0 keeps boxes
        apart, 1 allows every position.
    split : {"evaluation", "training"}
        Which digit images are used.
    seed : int
        Seed of the scenes; the split of the digit images does not depend on it.

    Raises
    ------
    ConfigError
        For values out of range, and for digits that need not fit on the canvas within `overlap`.
    """

    n_images: int = 400
    digits: tuple[int, int] = (1, 4)
    canvas: int = 96
    scale: tuple[float, float] = (2.5, 4.0)
    overlap: float = 0.1
    split: Split = "evaluation"
    seed: int = 0

    def __post_init__(self) -> None:
        # Configuration files hold lists where tuples are meant.
        object.__setattr__(self, "digits", tuple(self.digits))
        object.__setattr__(self, "scale", tuple(self.scale))
        self._check_ranges()
        capacity = len(self._slots())
        if self.digits[1] > capacity:
            low, high = self._sizes()
            raise ConfigError(
                f"digit scenes: {self.digits[1]} digits of up to {high} px (scale {self.scale[1]:g}) were asked for, "
                f"but a canvas of {self.canvas} px is sure to hold only {capacity} of them with overlap "
                f"{self.overlap:g}. Ask for fewer digits, a smaller scale (boxes now {low}-{high} px), a larger "
                f"canvas or more overlap"
            )

    def _check_ranges(self) -> None:
        if self.split not in get_args(Split):
            raise ConfigError(
                f"digit scenes: split is {self.split!r}, but must be one of {', '.join(get_args(Split))}"
                + did_you_mean(str(self.split), get_args(Split))
            )
        rules = {
            "n_images": (self.n_images >= 1, "at least 1"),
            "digits": (
                len(self.digits) == 2 and 1 <= self.digits[0] <= self.digits[-1],
                "(smallest, largest) with 1 <= smallest <= largest",
            ),
            "scale": (
                len(self.scale) == 2 and 0.5 <= self.scale[0] <= self.scale[-1] < math.inf,
                "(smallest, largest) with 0.5 <= smallest <= largest",
            ),
            "canvas": (self.canvas >= DIGIT_SIDE, f"at least {DIGIT_SIDE} px"),
            "overlap": (0 <= self.overlap <= 1, "between 0 and 1"),
            "seed": (self.seed >= 0, "0 or larger"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ConfigError(f"digit scenes: {name} is {getattr(self, name)!r}, but must be {rule}")

    # --- the image set -------------------------------------------------------------------------------

    def records(self) -> list[ImageRecord]:
        """Return the scenes in order, each labelled with its set of digits."""
        return [self._record(index) for index in range(self.n_images)]

    def read(self, record: ImageRecord) -> Image.Image:
        """Return the scene as an RGB image of `canvas` x `canvas` pixels."""
        return self.load(record).image

    def load(self, record: ImageRecord) -> LoadedImage:
        """Return the scene with the hash of its pixels."""
        pixels = self.render(self.scene(self._index_of(record)))
        return LoadedImage(Image.fromarray(pixels).convert("RGB"), "L", _hash(pixels), pixels.nbytes)

    def stamp(self, record: ImageRecord) -> None:
        """Return None: a generated scene has no file to look at."""

    def describe(self) -> dict[str, object]:
        """Return the controls, in JSON types."""
        controls = asdict(self)
        return {"kind": "digits", **controls, "digits": list(self.digits), "scale": list(self.scale)}

    def _record(self, index: int) -> ImageRecord:
        name = f"{self.split}-{index:06d}"
        return ImageRecord(name, f"digits:{self.split}/{self.seed}/{index}", self.scene(index).labels)

    def _index_of(self, record: ImageRecord) -> int:
        split, _, number = record.image_id.partition("-")
        if split != self.split or not number.isdecimal() or int(number) >= self.n_images:
            raise InputError(
                f"image {record.image_id!r} is not one of these {self.n_images} {self.split} scenes of digits; "
                f"use the image set that listed it"
            )
        return int(number)

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
        corners = self._place(sizes, rng)
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
            stroke = _enlarged(p.source, p.size)
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
        return _to_bytes(shade)

    # --- placing -------------------------------------------------------------------------------------

    def _sizes(self) -> tuple[int, int]:
        low, high = (round(DIGIT_SIDE * s) for s in self.scale)
        return low, high

    def _place(self, sizes: list[int], rng: np.random.Generator) -> list[tuple[int, int]]:
        """Return corners (top, left) for boxes of these sizes, each uniform over what the others leave."""
        for _ in range(_LAYOUT_ATTEMPTS):
            corners: list[tuple[int, int]] = []
            for count, size in enumerate(sizes):
                free = self._free_corners(size, corners, sizes[:count])
                if not len(free):
                    break
                n_left = self.canvas - size + 1
                corners.append(divmod(int(free[rng.integers(len(free))]), n_left))
            else:
                return corners
        # Crowded: regular slots always work, as the constructor has made sure.
        slots = self._slots()
        high = self._sizes()[1]
        chosen = rng.choice(len(slots), size=len(sizes), replace=False)
        margins = [(high - size) // 2 for size in sizes]
        return [(slots[c][0] + m, slots[c][1] + m) for c, m in zip(chosen, margins, strict=True)]

    def _free_corners(self, size: int, corners: list[tuple[int, int]], sizes: list[int]) -> NDArray[np.intp]:
        """Return the corners (flattened) at which a box of `size` covers no placed box too much."""
        start = np.arange(self.canvas - size + 1)
        free = np.ones((len(start), len(start)), dtype=bool)
        for (top, left), other in zip(corners, sizes, strict=True):
            rows, columns = (
                np.clip(np.minimum(start + size, at + other) - np.maximum(start, at), 0, None)
                for at in (top, left)
            )
            free &= np.outer(rows, columns) <= self.overlap * min(size, other) ** 2
        return np.flatnonzero(free)

    def _slots(self) -> list[tuple[int, int]]:
        """Return corners of a regular grid of boxes of the largest size that respects `overlap`.

        Smaller boxes centred in such slots respect it too: two boxes a <= b at distance
        p >= max(b / 2, (1 - overlap) b) cover (a + b) / 2 - p <= overlap * a of each other's side.
        """
        low, high = self._sizes()
        if high > self.canvas:
            return []
        if self.overlap == 1:
            return [(0, 0)] * max(self.digits[1], 1)
        pitch = math.ceil(high * (1 - min(self.overlap, 0.5)) - 1e-9)
        if self.overlap > 0 and low < high:
            pitch += 1  # centring rounds by up to half a pixel a box
        starts = range(0, self.canvas - high + 1, pitch)
        return [(top, left) for top in starts for left in starts]


# --- the digits ------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _digit_images() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return scikit-learn's digits (1797, 8, 8), brightness 0 to 255, and their classes."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - slow to import

    images, classes = load_digits(return_X_y=True)
    side = (DIGIT_SIDE, DIGIT_SIDE)
    return (images.reshape(-1, *side) * (255 / 16)).astype(np.float32), classes.astype(np.int64)


@lru_cache(maxsize=2)
def digit_sources(split: Split) -> tuple[NDArray[np.int64], ...]:
    """Return, for each class 0 to 9, which of scikit-learn's digits belong to the split.

    The split is fixed and stratified: `EVALUATION_SHARE` of each class is held out for evaluation.
    """
    rng = np.random.default_rng(_SPLIT_SEED)
    classes = _digit_images()[1]
    chosen = []
    for digit in range(N_CLASSES):
        members = rng.permutation(np.flatnonzero(classes == digit))
        n_evaluation = round(EVALUATION_SHARE * len(members))
        chosen.append(np.sort(members[:n_evaluation] if split == "evaluation" else members[n_evaluation:]))
    return tuple(chosen)


@lru_cache(maxsize=65536)
def _enlarged(source: int, size: int) -> NDArray[np.uint8]:
    digit = Image.fromarray(_digit_images()[0][source]).resize((size, size), Image.Resampling.BICUBIC)
    return _to_bytes(np.asarray(digit))


def _hash(pixels: NDArray[np.uint8]) -> str:
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()


def _to_bytes(brightness: NDArray[np.float32]) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = np.clip(np.rint(brightness), 0, 255).astype(np.uint8)
    return pixels

"""Representations prepared for matching, once for many tiles."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from semrsm_dist.matching.compiled.jit import compiled
from semrsm_dist.matching.compiled.lane_packing import pack_lanes
from semrsm_dist.matching.compiled.lanes import LANES
from semrsm_dist.matching.compiled.product import inverse_factors, padded
from semrsm_dist.matching.representations import checked_representations, checked_squared_norms

_ALIGNMENT = 64
_AT_ONCE_BYTES = 2**18  # of images in float64 that are prepared together: they stay in the cache


def empty_aligned(shape: tuple[int, ...], dtype: type[np.floating[Any]]) -> NDArray[Any]:
    """Return an uninitialised array that starts on a cache line: vector loads are faster there."""
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = np.empty(n_bytes + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + n_bytes].view(dtype).reshape(shape)


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a view that cannot be written.

    Compiled functions are specialised on writability, and panels that travelled through shared
    memory are read-only: with all of them read-only there is one specialisation.
    """
    view = array.view()
    view.flags.writeable = False
    return view


Extended = TypeVar("Extended", bound="Panel")


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Panel:
    """T representations as given, with what bounds need. Arrays are read-only."""

    raw: NDArray[Any]
    """(T, S, C) in float32 or float64; float16 is widened. Images with fewer than S tokens end in zeros."""
    token_counts: NDArray[np.int64]
    """(T,) tokens that each image has, 1 to S."""
    squared_norms: NDArray[np.float64]
    """(T,) ``||Z||^2``."""
    means: NDArray[np.float64]
    """(T, C) the mean token."""
    token_norms: NDArray[np.float64]
    """(T, S) norms of the tokens after subtracting the mean, in descending order; 0 beyond an image's tokens."""

    @property
    def n_images(self) -> int:
        """T, the number of images."""
        return int(self.raw.shape[0])

    @property
    def n_tokens(self) -> int:
        """S, the largest number of tokens that an image of the panel may have."""
        return int(self.raw.shape[1])

    @property
    def n_channels(self) -> int:
        """C, the number of channels."""
        return int(self.raw.shape[2])

    def tokens(self, image: int) -> NDArray[Any]:
        """Return the representation (S_i, C) of one image, without padding."""
        return self.raw[image, : self.token_counts[image]]

    def part(self, images: slice) -> Self:
        """Return the panel of some of the images, without copying; so for panels among its fields."""

        def cut(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(cut, value))
            return value.part(images) if isinstance(value, Panel) else value[images]

        return type(self)(*(cut(getattr(self, field.name)) for field in fields(self)))

    def extended(self, kind: type[Extended], *more: Any) -> Extended:
        """Return a panel of a derived class, with the values of the fields that it adds."""
        return kind(*(getattr(self, field.name) for field in fields(Panel)), *more)


@dataclass(frozen=True, slots=True, eq=False)
class PackedPanel(Panel):
    """A panel with its centred representations in float32, packed for the product.

    The mean is taken out of every image because it changes no matching (``<Z_i, P Z_j>`` is
    ``S mu_i . mu_j`` plus the centred value for every P) but costs float32 digits. Each image is divided
    by a power of two, which is exact, so that its values neither overflow nor vanish in float32.

    Zero tokens that fill an image up to S are centred like all others, which makes them the negative mean: matching
    an image with a larger one is then matching two images of equal size (see `semrsm_dist.matching.matchers.auction`).
    """

    packed: NDArray[np.float32]
    """(T, padded(S) * C) centred and scaled tokens, see `semrsm_dist.matching.compiled.product`."""
    scales: NDArray[np.float64]
    """(T,) the powers of two."""
    centred_norms: NDArray[np.float64]
    rounding_norms: NDArray[np.float64]
    """(T,) norms of the scaled centred representation (without filling) and of what rounding it to float32 takes."""
    filling_norms: NDArray[np.float64]
    filling_rounding_norms: NDArray[np.float64]
    """(T,) the same of one token that fills the image up."""
    lengths: NDArray[np.float64]
    """(T, S) norms of the scaled centred tokens, in their order."""


def prepare_panel(z: ArrayLike, token_counts: ArrayLike | None = None) -> Panel:
    """Check representations (T, S, C) and return them as a panel.

    What `z` holds beyond the tokens of an image, at most S, is ignored: (T,) counts, by default S for all. Raises
    InputError if the array is not (T, S, C) of a floating type, is empty, holds NaN or infinity, its squares overflow
    or underflow float64, or the counts do not go with it.
    """
    raw, counts = checked_representations(z, token_counts)
    n_images, n_tokens, n_channels = raw.shape
    squared_norms = np.empty(n_images)
    means = np.empty((n_images, n_channels))
    token_norms = np.zeros((n_images, n_tokens))
    at_once = max(1, _AT_ONCE_BYTES // (8 * n_tokens * n_channels))
    for count in np.unique(counts):
        alike = np.flatnonzero(counts == count)
        for some in np.split(alike, range(at_once, alike.size, at_once)):
            images = raw[some, :count].astype(np.float64)
            squared_norms[some] = checked_squared_norms(images, some)
            with np.errstate(over="ignore", invalid="ignore", under="ignore"):
                means[some] = images.mean(axis=1)
                images -= means[some, None]
                norms = np.sqrt(np.einsum("tsc,tsc->ts", images, images))
            token_norms[some, :count] = np.sort(norms, axis=1)[:, ::-1]
    return Panel(*map(read_only, (raw, counts, squared_norms, means, token_norms)))


def prepare_packed_panel(z: ArrayLike, token_counts: ArrayLike | None = None) -> PackedPanel:
    """Check representations (T, S, C) and return them centred, scaled and packed as well; see `prepare_panel`.

    Raises InputError as `prepare_panel` does.
    """
    panel = prepare_panel(z, token_counts)
    packed = empty_aligned((panel.n_images, padded(panel.n_tokens) * panel.n_channels), np.float32)
    scales = np.empty(panel.n_images)
    norms = np.empty((4, panel.n_images))
    lengths = np.empty((panel.n_images, panel.n_tokens))
    _pack_images(panel.raw, panel.means, panel.token_counts, packed, scales, norms, lengths)
    return panel.extended(PackedPanel, *map(read_only, (packed, scales, *norms, lengths)))


@compiled
def _pack_images(
    z: NDArray[np.floating[Any]],
    means: NDArray[np.float64],
    counts: NDArray[np.int64],
    packed: NDArray[np.float32],
    scales: NDArray[np.float64],
    norms: NDArray[np.float64],
    lengths: NDArray[np.float64],
) -> None:
    """Write the packed tokens of images (T, S, C), their scales, norms (4, T) and lengths (T, S)."""
    for t in range(len(z)):
        found = _pack_image(z[t], means[t], counts[t], packed[t], lengths[t])
        scales[t], norms[0, t], norms[1, t], norms[2, t], norms[3, t] = found


@compiled
def _pack_image(
    z: NDArray[np.floating[Any]],
    mean: NDArray[np.float64],
    count: int,
    packed: NDArray[np.float32],
    lengths: NDArray[np.float64],
) -> tuple[float, float, float, float, float]:
    """Write the packed tokens of an image and their lengths; return its scale and its four norms."""
    n_tokens, n_channels = z.shape
    largest = np.zeros(n_channels)  # of each channel, so that channels are compared side by side
    for s in range(n_tokens):
        for c in range(n_channels):
            largest[c] = max(largest[c], abs(np.float64(z[s, c]) - mean[c]))
    for c in range(n_channels):
        largest[0] = max(largest[0], largest[c])
    scale = math.ldexp(1.0, math.frexp(largest[0])[1])
    factors = inverse_factors(scale)
    flat, sums = z.ravel(), np.empty(3 * LANES)
    squares, lost_squares, filling, lost_filling = 0.0, 0.0, 0.0, 0.0
    for first in range(0, n_tokens, LANES):
        n = min(LANES, n_tokens - first)
        pack_lanes(flat, first * n_channels, n, mean, factors, packed, first * n_channels, sums)
        for lane in range(n):
            lengths[first + lane] = np.sqrt(sums[lane])
            rounded, lost = sums[LANES + lane], sums[2 * LANES + lane]
            if first + lane < count:
                squares += rounded
                lost_squares += lost
            elif first + lane == count:
                filling, lost_filling = rounded, lost
    return scale, np.sqrt(squares), np.sqrt(lost_squares), np.sqrt(filling), np.sqrt(lost_filling)

"""Representations prepared for matching, once for many tiles."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from semrsm_dist.errors import InputError
from semrsm_dist.matching.product import pack, padded

_ALIGNMENT = 64


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


@dataclass(frozen=True, slots=True)
class Panel:
    """T representations as given, with what bounds need. Arrays are read-only.

    Attributes
    ----------
    raw : ndarray of float32 or float64, (T, S, C)
        The representations; float16 is widened.
    squared_norms : ndarray of float64, (T,)
        ``||Z||^2``.
    means : ndarray of float64, (T, C)
        The mean token.
    token_norms : ndarray of float64, (T, S)
        Norms of the tokens after subtracting the mean, in descending order.
    """

    raw: NDArray[Any]
    squared_norms: NDArray[np.float64]
    means: NDArray[np.float64]
    token_norms: NDArray[np.float64]

    @property
    def n_images(self) -> int:
        """T, the number of images."""
        return int(self.raw.shape[0])

    @property
    def n_tokens(self) -> int:
        """S, the number of tokens of each image."""
        return int(self.raw.shape[1])

    @property
    def n_channels(self) -> int:
        """C, the number of channels."""
        return int(self.raw.shape[2])

    def part(self, images: slice) -> Self:
        """Return the panel of some of the images, without copying."""
        return type(self)(*(getattr(self, field.name)[images] for field in fields(self)))


@dataclass(frozen=True, slots=True)
class PackedPanel(Panel):
    """A panel with its centred representations in float32, packed for the product.

    The mean is taken out of every image because it changes no matching (``<Z_i, P Z_j>`` is
    ``S mu_i . mu_j`` plus the centred value for every P) but costs float32 digits. Each image is divided
    by a power of two, which is exact, so that its values neither overflow nor vanish in float32.

    Attributes
    ----------
    packed : ndarray of float32, (T, padded(S) * C)
        Centred and scaled tokens, see `semrsm_dist.matching.product`.
    scales : ndarray of float64, (T,)
        The powers of two.
    centred_norms, rounding_norms : ndarray of float64, (T,)
        Norms of the scaled centred representation and of what rounding it to float32 took away.
    lengths : ndarray of float64, (T, S)
        Norms of the scaled centred tokens, in their order.
    """

    packed: NDArray[np.float32]
    scales: NDArray[np.float64]
    centred_norms: NDArray[np.float64]
    rounding_norms: NDArray[np.float64]
    lengths: NDArray[np.float64]


def prepare_panel(z: ArrayLike) -> Panel:
    """Check representations (T, S, C) and return them as a panel.

    Raises
    ------
    InputError
        The array is not (T, S, C) of a floating type, is empty, holds NaN or infinity, or its
        squares overflow float64.
    """
    raw = _checked(z)
    n_images, n_tokens, n_channels = raw.shape
    squared_norms = np.empty(n_images)
    means = np.empty((n_images, n_channels))
    token_norms = np.empty((n_images, n_tokens))
    for t in range(n_images):
        image = raw[t].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            squared_norms[t] = np.einsum("sc,sc->", image, image)
            if not np.isfinite(squared_norms[t]):
                raise InputError(_why_not_finite(image, t))
            means[t] = image.mean(axis=0)
            image -= means[t]
            token_norms[t] = np.sort(np.sqrt(np.einsum("sc,sc->s", image, image)))[::-1]
    return Panel(read_only(raw), read_only(squared_norms), read_only(means), read_only(token_norms))


def prepare_packed_panel(z: ArrayLike) -> PackedPanel:
    """Check representations (T, S, C) and return them centred, scaled and packed as well.

    Raises
    ------
    InputError
        As `prepare_panel`.
    """
    panel = prepare_panel(z)
    packed = empty_aligned((panel.n_images, padded(panel.n_tokens) * panel.n_channels), np.float32)
    scales = np.empty(panel.n_images)
    centred_norms = np.empty(panel.n_images)
    rounding_norms = np.empty(panel.n_images)
    lengths = np.empty((panel.n_images, panel.n_tokens))
    for t in range(panel.n_images):
        centred = panel.raw[t] - panel.means[t]
        scales[t] = np.ldexp(1.0, np.frexp(np.abs(centred).max())[1])
        scaled = centred / scales[t]
        rounded = scaled.astype(np.float32).astype(np.float64)
        centred_norms[t] = np.linalg.norm(rounded)
        lengths[t] = np.sqrt(np.einsum("sc,sc->s", scaled, scaled))
        rounding_norms[t] = np.linalg.norm(scaled - rounded)
        pack(panel.raw[t], panel.means[t], scales[t], packed[t])
    return PackedPanel(
        panel.raw,
        panel.squared_norms,
        panel.means,
        panel.token_norms,
        read_only(packed),
        read_only(scales),
        read_only(centred_norms),
        read_only(rounding_norms),
        read_only(lengths),
    )


def check_same_shape(rows: Panel, columns: Panel) -> None:
    """Raise InputError unless both panels have the same numbers of tokens and channels."""
    if rows.raw.shape[1:] != columns.raw.shape[1:]:
        raise InputError(
            f"representations of (S, C) = {rows.raw.shape[1:]} cannot be matched with "
            f"(S, C) = {columns.raw.shape[1:]}: both need the same number of tokens and channels; "
            "use the same layer and input size for all images"
        )


def _checked(z: ArrayLike) -> NDArray[Any]:
    array = np.asarray(z)
    if array.ndim != 3 or 0 in array.shape:
        hint = "; a feature map (N, C, H, W) becomes (N, S, C) by z.reshape(N, C, H * W).transpose(0, 2, 1)"
        raise InputError(
            f"expected representations of shape (images, tokens, channels), none of them 0, "
            f"found {array.shape}{hint if array.ndim == 4 else ''}"
        )
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise InputError(
            f"expected representations of float16, float32 or float64, found {array.dtype}: "
            "convert them with z.astype('float32')"
        )
    # float16 and foreign byte orders have no compiled code; both conversions are exact.
    wide = np.float64 if array.dtype == np.float64 else np.float32
    return np.ascontiguousarray(array, dtype=wide)


def _why_not_finite(image: NDArray[np.float64], index: int) -> str:
    if np.isfinite(image).all():
        return (
            f"image {index} of the panel holds values up to {np.abs(image).max():.3g}, whose squares overflow "
            "float64: rescale the representations"
        )
    n_bad = int(np.count_nonzero(~np.isfinite(image)))
    return (
        f"image {index} of the panel holds {n_bad} NaN or infinite values: it cannot be matched; "
        "extract its features again (in float32 where half precision overflowed) or leave it out"
    )

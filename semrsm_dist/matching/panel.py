"""Representations prepared for matching, once for many tiles."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from semrsm_dist.errors import InputError
from semrsm_dist.matching.compiled.jit import compiled
from semrsm_dist.matching.compiled.lanes import LANES
from semrsm_dist.matching.compiled.product import inverse_factors, pack, padded

_ALIGNMENT = 64
_AT_ONCE_BYTES = 2**18  # of images in float64 that are prepared together: they stay in the cache
_LEAST_SQUARED_NORM = 1e-270  # far enough above underflow for the squares of an image's tokens, too


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
    """T representations as given, with what bounds need. Arrays are read-only.

    Attributes
    ----------
    raw : ndarray of float32 or float64, (T, S, C)
        The representations; float16 is widened. Images with fewer than S tokens end in zeros.
    token_counts : ndarray of int64, (T,)
        Tokens that each image has, 1 to S.
    squared_norms : ndarray of float64, (T,)
        ``||Z||^2``.
    means : ndarray of float64, (T, C)
        The mean token.
    token_norms : ndarray of float64, (T, S)
        Norms of the tokens after subtracting the mean, in descending order; 0 beyond an image's tokens.
    """

    raw: NDArray[Any]
    token_counts: NDArray[np.int64]
    squared_norms: NDArray[np.float64]
    means: NDArray[np.float64]
    token_norms: NDArray[np.float64]

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

    Attributes
    ----------
    packed : ndarray of float32, (T, padded(S) * C)
        Centred and scaled tokens, see `semrsm_dist.matching.compiled.product`.
    scales : ndarray of float64, (T,)
        The powers of two.
    centred_norms, rounding_norms : ndarray of float64, (T,)
        Norms of the scaled centred representation (without filling) and of what rounding it to float32 took away.
    filling_norms, filling_rounding_norms : ndarray of float64, (T,)
        The same of one token that fills the image up.
    lengths : ndarray of float64, (T, S)
        Norms of the scaled centred tokens, in their order.
    """

    packed: NDArray[np.float32]
    scales: NDArray[np.float64]
    centred_norms: NDArray[np.float64]
    rounding_norms: NDArray[np.float64]
    filling_norms: NDArray[np.float64]
    filling_rounding_norms: NDArray[np.float64]
    lengths: NDArray[np.float64]


def prepare_panel(z: ArrayLike, token_counts: ArrayLike | None = None) -> Panel:
    """Check representations (T, S, C) and return them as a panel.

    Parameters
    ----------
    z
        The representations.
    token_counts
        (T,) tokens of each image, at most S: what `z` holds beyond them is ignored. By default, S for all.

    Raises
    ------
    InputError
        The array is not (T, S, C) of a floating type, is empty, holds NaN or infinity, its squares overflow
        or underflow float64, or the counts do not go with it.
    """
    raw, counts = _checked(z, token_counts)
    n_images, n_tokens, n_channels = raw.shape
    squared_norms = np.empty(n_images)
    means = np.empty((n_images, n_channels))
    token_norms = np.zeros((n_images, n_tokens))
    at_once = max(1, _AT_ONCE_BYTES // (8 * n_tokens * n_channels))
    for count in np.unique(counts):
        alike = np.flatnonzero(counts == count)
        for some in np.split(alike, range(at_once, alike.size, at_once)):
            images = raw[some, :count].astype(np.float64)
            squared_norms[some] = _checked_squared_norms(images, some)
            with np.errstate(over="ignore", invalid="ignore", under="ignore"):
                means[some] = images.mean(axis=1)
                images -= means[some, None]
                norms = np.sqrt(np.einsum("tsc,tsc->ts", images, images))
            token_norms[some, :count] = np.sort(norms, axis=1)[:, ::-1]
    return Panel(*map(read_only, (raw, counts, squared_norms, means, token_norms)))


def prepare_packed_panel(z: ArrayLike, token_counts: ArrayLike | None = None) -> PackedPanel:
    """Check representations (T, S, C) and return them centred, scaled and packed as well; see `prepare_panel`.

    Raises
    ------
    InputError
        As `prepare_panel`.
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
    largest = 0.0
    for s in range(n_tokens):
        for c in range(n_channels):
            largest = max(largest, abs(np.float64(z[s, c]) - mean[c]))
    scale = math.ldexp(1.0, math.frexp(largest)[1])
    pack(z, mean, scale, packed)
    first, second = inverse_factors(scale)
    squares, lost_squares, filling, lost_filling = 0.0, 0.0, 0.0, 0.0
    for s in range(n_tokens):
        exact, rounded, lost = 0.0, 0.0, 0.0
        start = s // LANES * LANES * n_channels + s % LANES
        for c in range(n_channels):
            value = (np.float64(z[s, c]) - mean[c]) * first * second
            single = np.float64(packed[start + c * LANES])
            exact += value * value
            rounded += single * single
            lost += (value - single) ** 2
        lengths[s] = np.sqrt(exact)
        if s < count:
            squares += rounded
            lost_squares += lost
        elif s == count:
            filling, lost_filling = rounded, lost
    return scale, np.sqrt(squares), np.sqrt(lost_squares), np.sqrt(filling), np.sqrt(lost_filling)


def stack_tokens(images: Sequence[ArrayLike]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return representations of (S_i, C) as one array (N, max S_i, C) filled up with zeros, and the S_i.

    Raises
    ------
    InputError
        If one is not (S_i, C), or they differ in channels or type.
    """
    arrays = [as_array(image) for image in images]
    for index, array in enumerate(arrays):
        if array.ndim != 2 or 0 in array.shape or array.shape[1] != arrays[0].shape[-1]:
            raise InputError(
                f"expected representations of shape (tokens, channels), with equal channels, found {array.shape} for "
                f"image {index} and {arrays[0].shape} for image 0"
            )
        if array.dtype != arrays[0].dtype:
            raise InputError(
                f"image {index} is of {array.dtype}, image 0 of {arrays[0].dtype}: convert them to one type"
            )
    counts = np.array([len(array) for array in arrays])
    stacked = np.zeros((len(arrays), counts.max(), arrays[0].shape[1]), arrays[0].dtype)
    for place, array in zip(stacked, arrays, strict=True):
        place[: len(array)] = array
    return stacked, counts


def fill_tokens(z: NDArray[Any], n_tokens: int) -> NDArray[Any]:
    """Return representations (T, S, C) filled up with zeros to `n_tokens`."""
    missing = n_tokens - z.shape[1]
    return np.pad(z, ((0, 0), (0, missing), (0, 0))) if missing else z


def as_array(z: ArrayLike) -> NDArray[Any]:
    """Return a NumPy array of native byte order: of an array, of lists of numbers, or of a tensor on any device.

    Tensors may require gradients. bfloat16, which NumPy lacks, becomes float32; whole numbers in lists become float64.

    Raises
    ------
    InputError
        If numbers are masked (what lies under the mask would be taken for numbers), or it is no such array.
    """
    given: Any = z
    if isinstance(given, Mapping):
        known = ", ".join(repr(key) for key in list(given)[:5])
        raise InputError(
            f"expected an array, found a mapping: choose one of its layers ({known}), as in z[NAME]"
        )
    if given is None or isinstance(given, str | bytes | PathLike | int | float):
        raise InputError(f"expected an array, found {given!r}: load it first, for instance with np.load")
    if hasattr(given, "toarray"):  # of scipy
        raise InputError("expected a dense array, found a sparse one: give its .toarray()")
    if hasattr(given, "detach"):  # a tensor of torch, which is not imported here
        given = _tensor_as_array(given)
    n_masked = _count_masked(given)
    if n_masked:
        raise InputError(
            f"the array has {n_masked} masked numbers, without similarities: leave their images out, or, where images "
            "end early, give the array without mask and with token counts"
        )
    try:
        array = np.asarray(given)
    except (TypeError, ValueError) as error:  # such as rows that differ in length
        raise InputError(
            f"expected representations of shape (tokens, channels), with equal channels: {error}"
        ) from error
    if array.dtype.name == "bfloat16":  # as JAX has it
        return array.astype(np.float32)
    if array.dtype.kind in "iu" and isinstance(z, Sequence):
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _tensor_as_array(tensor: Any) -> NDArray[Any]:
    """Return the numbers of a tensor of torch."""
    for wrong, remedy in (
        (str(tensor.layout) != "torch.strided", f"it is of layout {tensor.layout}: give its .to_dense()"),
        (tensor.is_meta, "it is on the device 'meta', which holds no numbers: compute it on another device"),
        ("float8" in str(tensor.dtype), f"it is of {tensor.dtype}, which NumPy lacks: give its .float()"),
    ):
        if wrong:
            raise InputError(f"the tensor cannot be read: {remedy}")
    tensor = tensor.detach()
    array: NDArray[Any] = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).cpu().numpy()
    return array


def _count_masked(given: object) -> int:
    """Return how many numbers of an array, or of the arrays in lists of any depth, are masked."""
    if isinstance(given, list | tuple):
        return sum(_count_masked(one) for one in given if isinstance(one, list | tuple | np.ma.MaskedArray))
    return int(np.count_nonzero(np.ma.getmaskarray(given))) if isinstance(given, np.ma.MaskedArray) else 0


def as_representations(z: ArrayLike) -> NDArray[Any]:
    """Return an array (T, S, C) of a floating type, or raise InputError."""
    array = as_array(z)
    if array.ndim != 3 or 0 in array.shape:
        hint = "; a feature map (N, C, H, W) becomes (N, S, C) by z.reshape(N, C, H * W).transpose(0, 2, 1)"
        raise InputError(
            f"expected representations of shape (images, tokens, channels), none of them 0, "
            f"found {array.shape}{hint if array.ndim == 4 else ''}"
        )
    require_floating(array)
    return array


def require_floating(array: NDArray[Any]) -> None:
    """Raise InputError unless representations are of a type that can be matched."""
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise InputError(
            f"expected representations of float16, float32 or float64, found {array.dtype}: "
            "convert them with z.astype('float32')"
        )


def _checked(z: ArrayLike, token_counts: ArrayLike | None) -> tuple[NDArray[Any], NDArray[np.int64]]:
    array = as_representations(z)
    wide = np.float64 if array.dtype == np.float64 else np.float32  # float16 has no compiled code
    raw = np.ascontiguousarray(array, dtype=wide)
    if token_counts is None:
        return raw, np.full(len(raw), raw.shape[1], np.int64)
    counts = check_token_counts(token_counts, *raw.shape[:2])
    beyond = np.arange(raw.shape[1]) >= counts[:, None]
    if raw[beyond].any():
        raw = np.where(beyond[:, :, None], raw.dtype.type(0), raw)
    return raw, counts


def check_token_counts(token_counts: ArrayLike, n_images: int, n_tokens: int) -> NDArray[np.int64]:
    """Return how many tokens each image has, or raise InputError unless there are N whole numbers from 1 to S."""
    counts = np.asarray(token_counts)
    if counts.shape != (n_images,) or not np.issubdtype(counts.dtype, np.integer):
        raise InputError(
            f"expected the token counts of {n_images} images as whole numbers of shape ({n_images},), found "
            f"{counts.dtype} of shape {counts.shape}"
        )
    wrong = np.flatnonzero((counts < 1) | (counts > n_tokens))
    if wrong.size:
        raise InputError(
            f"image {wrong[0]} is said to have {counts[wrong[0]]} tokens, but the array has room for 1 to {n_tokens} "
            f"({wrong.size} such images): correct the counts, or leave these images out"
        )
    return counts.astype(np.int64)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Name the argument in messages of errors."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _checked_squared_norms(images: NDArray[np.float64], names: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the squared norms of images (T, S, C), or raise InputError about the first that float64 cannot hold."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        squared_norms = np.einsum("tsc,tsc->t", images, images)
    for t in np.flatnonzero(~((squared_norms >= _LEAST_SQUARED_NORM) & (squared_norms < np.inf))):
        squared_norms[t] = checked_squared_norm(images[t], f"image {names[t]}")
    return np.asarray(squared_norms)


def checked_squared_norm(image: NDArray[np.float64], name: str) -> float:
    """Return the squared norm of an image (S, C), or raise InputError about `name` if float64 cannot hold it."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        squared_norm = float(np.einsum("sc,sc->", image, image))
    if _LEAST_SQUARED_NORM <= squared_norm < np.inf or not image.any():
        return squared_norm
    if np.isfinite(image).all():
        raise InputError(
            f"{name} holds values up to {np.abs(image).max():.3g}, whose squares "
            f"{'underflow' if squared_norm < 1.0 else 'overflow'} float64: rescale the representations"
        )
    n_bad = int(np.count_nonzero(~np.isfinite(image)))
    raise InputError(
        f"{name} holds {n_bad} NaN or infinite values: it cannot be matched; extract its features again (in float32 "
        "where half precision overflowed) or leave it out"
    )

"""Representations as users give them: taken as arrays, and refused where they cannot be matched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from semrsm_dist.errors import InputError

_LEAST_SQUARED_NORM = 1e-270  # far enough above underflow for the squares of an image's tokens, too


def as_array(z: ArrayLike) -> NDArray[Any]:
    """Return a NumPy array of native byte order: of an array, of lists of numbers, or of a tensor on any device.

    Tensors may require gradients. bfloat16, which NumPy lacks, becomes float32; whole numbers in lists become float64.
    Raises InputError if numbers are masked (what lies under the mask would be taken for numbers), or it is no such
    array.
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
    if isinstance(given, Iterator | Set):
        raise InputError(
            f"expected an array, or a list of arrays, found a {type(given).__name__}: make a list of it, as in "
            "[image for image in z]"
        )
    n_masked = _count_masked(given)
    if n_masked:
        raise InputError(
            f"the array has {n_masked} masked numbers, without similarities: leave their images out, or, where images "
            "end early, give a list of arrays of the tokens that they have"
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
    nested = getattr(tensor, "is_nested", False)
    for wrong, remedy in (
        (nested, "it is nested: give a list of its parts, as in list(z.unbind())"),
        (str(tensor.layout) != "torch.strided", f"it is of layout {tensor.layout}: give its .to_dense()"),
        (tensor.is_meta, "it is on the device 'meta', which holds no numbers: compute it on another device"),
        (tensor.is_quantized, f"it is of {tensor.dtype}, which NumPy lacks: give its .dequantize()"),
        ("float8" in str(tensor.dtype), f"it is of {tensor.dtype}, which NumPy lacks: give its .float()"),
    ):
        if wrong:
            raise InputError(f"the tensor cannot be read: {remedy}")
    tensor = tensor.detach().resolve_neg().resolve_conj()
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
        hint = ""
        if array.ndim == 4:
            hint = (
                "; a feature map (N, C, H, W) becomes (N, S, C) by z.reshape(N, C, H * W).transpose(0, 2, 1)"
            )
        elif array.dtype == object and array.ndim == 1:
            hint = ", an array of objects; give the arrays of its images as a list, as in list(z)"
        raise InputError(
            f"expected representations of shape (images, tokens, channels), none of them 0, "
            f"found {array.shape}{hint}"
        )
    require_floating(array)
    return array


def require_floating(array: NDArray[Any]) -> None:
    """Raise InputError unless representations are of a type that can be matched."""
    if array.dtype not in (np.float16, np.float32, np.float64):
        remedy = "convert them with z.astype('float32'), or z.float() where z is a tensor"
        if array.dtype.kind == "c":
            remedy = (
                "give their real and imaginary parts as channels, np.concatenate([z.real, z.imag], axis=-1)"
            )
        raise InputError(
            f"expected representations of float16, float32 or float64, found {array.dtype}: {remedy}"
        )


def stack_tokens(images: Sequence[ArrayLike]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return representations of (S_i, C) as one array (N, max S_i, C) filled up with zeros, and the S_i.

    Raises InputError if one is not (S_i, C), or they differ in channels or type.
    """
    arrays = [as_array(image) for image in images]
    for index, array in enumerate(arrays):
        if array.ndim != 2 or 0 in array.shape or array.shape[1] != arrays[0].shape[-1]:
            raise InputError(
                f"expected representations of shape (tokens, channels), none of them 0, with equal channels, found "
                f"{array.shape} for image {index} and {arrays[0].shape} for image 0"
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


def checked_representations(
    z: ArrayLike, token_counts: ArrayLike | None
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return representations (T, S, C), zeros beyond an image's tokens, and their token counts; or raise InputError."""
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


def checked_squared_norms(images: NDArray[np.float64], names: NDArray[np.intp]) -> NDArray[np.float64]:
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


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Name the argument in messages of errors."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from None

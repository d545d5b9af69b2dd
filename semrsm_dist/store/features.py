"""The feature store: per layer, the concept vectors of all images and small arrays derived from them.

A feature chunk is consecutive images that are written together. Beside the features there are token counts, squared
norms (float64) and pooled vectors (mean over the tokens). The features are written last, so a chunk whose features are
present is complete. Where images have fewer tokens than there is room for, zeros follow.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.store import arrays, chunks, groups, paths
from semrsm_dist.store.chunk_labels import origin
from semrsm_dist.store.paths import RunPath

FEATURES = "features"
SQUARED_NORM = "squared_norm"
POOLED = "pooled"

TOKEN_COUNT = "token_count"
VERIFIED = "verified"
"""Attribute of a layer's group."""

ARRAYS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    TOKEN_COUNT: ("int32", ("image",)),
    SQUARED_NORM: ("float64", ("image",)),
    POOLED: ("float32", ("image", "channel")),
    FEATURES: (None, ("image", "token", "channel")),
}
"""The arrays of a layer in the order in which a chunk of them is written: type, if it is fixed, and dimensions."""


def round_features(
    z: NDArray[np.floating[Any]], dtype: np.dtype[Any]
) -> tuple[NDArray[np.floating[Any]], NDArray[np.bool_]]:
    """Return finite features (T, S, C) in the type that is stored, and which images (T,) that type can hold.

    It cannot if values overflow, or lie so far below its range that digits are lost: if what rounding takes from an
    image is more than twice the type's precision, relative to the image's norm.
    """
    with np.errstate(over="ignore"):
        stored = z.astype(dtype, copy=False)
    if dtype.itemsize >= z.dtype.itemsize:
        return stored, np.ones(len(z), np.bool_)
    fits = np.empty(len(z), np.bool_)
    for t, image in enumerate(z):
        size = np.abs(image).max() or 1.0  # so that squares neither overflow nor vanish
        lost = np.linalg.norm((stored[t].astype(np.float64) - image) / size)
        fits[t] = lost <= np.finfo(dtype).eps * np.linalg.norm(image.astype(np.float64) / size)
    return stored, fits


def chunk_index(name: str, number: int) -> tuple[int, ...]:
    """Return the position of a chunk in an array's grid: only the images are divided."""
    return (number, *(0 for _ in ARRAYS[name][1][1:]))


@dataclass(frozen=True)
class FeatureStore:
    """The features of one side (`images` or `queries`) in one layer."""

    root: RunPath
    """The run's feature group."""
    side: str
    layer: str
    """`side` and `layer` are the name of the sub-group."""

    @cached_property
    def _arrays(self) -> arrays.OpenArrays:
        return arrays.OpenArrays(self.group)

    @property
    def group(self) -> RunPath:
        """Directory of the layer's group."""
        return self.root / self.side / self.layer

    @property
    def n_channels(self) -> int:
        """C."""
        return int(self._arrays[POOLED].shape[1])

    @property
    def chunk_size(self) -> int:
        """Images of a chunk."""
        return int(self._arrays[FEATURES].chunks[0])

    def create(
        self, n_images: int, n_tokens: int, n_channels: int, chunk_size: int, dtype: str, run: str
    ) -> None:
        """Make the arrays (N, S, C), labelled with the id `run`, or check that those that are there fit."""
        groups.create_group(self.root, f"{self.side}/{self.layer}")
        sizes = {"image": n_images, "token": n_tokens, "channel": n_channels}
        chunk_sizes = {"image": chunk_size}
        for name, (kind, dimensions) in ARRAYS.items():
            arrays.create_array(
                self.group,
                name,
                dimensions={each: (sizes[each], chunk_sizes.get(each, sizes[each])) for each in dimensions},
                dtype=kind or dtype,
                origin=origin(run, self.root.name, self.side, self.layer, name),
            )

    def write_chunk(
        self, index: int, z: NDArray[np.floating[Any]], token_counts: NDArray[np.int64] | None = None
    ) -> None:
        """Write a chunk with its norms and pooled vectors.

        Parameters
        ----------
        index
            Number of the chunk.
        z
            (T, S', C) features, S' as large as the largest count. Norms are those of the values as stored, after
            rounding to the store's type.
        token_counts
            (T,) tokens of each image; S for all if not given. Beyond them, `z` is ignored.

        Raises
        ------
        ValueError
            If the chunk is of another shape than the store has room for.
        OSError
            As the file system raises it.
        """
        features = self._arrays[FEATURES]
        room = tuple(part.stop - part.start for part in chunks.chunk_region(features, (index, 0, 0)))
        counts = np.full(room[0], room[1]) if token_counts is None else token_counts
        if z.ndim != 3 or z.shape[0::2] != room[0::2] or len(counts) != room[0] or z.shape[1] < counts.max():
            raise ValueError(f"chunk {index} of {self.group} takes features {room}, not {z.shape}")
        stored = np.zeros(room, features.dtype)
        norms, pooled = np.empty(len(z)), np.empty((len(z), z.shape[2]), np.float32)
        for t, count in enumerate(counts):
            stored[t, :count] = z[t, :count]
            wide = stored[t, :count].astype(np.float64)
            norms[t] = np.einsum("sc,sc->", wide, wide)
            pooled[t] = wide.mean(axis=0)
        chunks.write_chunk(self._arrays[TOKEN_COUNT], (index,), counts.astype(np.int32))
        chunks.write_chunk(self._arrays[SQUARED_NORM], (index,), norms)
        chunks.write_chunk(self._arrays[POOLED], (index, 0), pooled)
        chunks.write_chunk(features, (index, 0, 0), stored)

    def present(self) -> set[int]:
        """Return the numbers of the chunks that are complete."""
        return set.intersection(
            *({index[0] for index in chunks.list_chunks(self.group, name)} for name in ARRAYS)
        )

    def remove_damaged(self) -> list[int]:
        """Delete the chunks that are present but damaged, or others, and return their numbers."""
        numbers = self.present()
        removed = set()
        for name in ARRAYS:
            for index in chunks.find_damaged(self._arrays[name], [chunk_index(name, n) for n in numbers]):
                chunks.delete_chunk(self.group, name, index)
                removed.add(index[0])
        return sorted(removed)

    def remove(self, numbers: Collection[int] | None = None) -> None:
        """Delete chunks of these numbers, or all; raises StorageError if they cannot be removed."""
        for name in reversed(ARRAYS):  # features first: a chunk without them is not complete
            for index in chunks.list_chunks(self.group, name):
                if numbers is None or index[0] in numbers:
                    chunks.delete_chunk(self.group, name, index)

    def is_verified(self) -> bool:
        """Return whether the features were verified against the source that they were copied from."""
        return bool(groups.read_attributes(self.group).get(VERIFIED))

    def mark_verified(self) -> None:
        """Note that all features have been found to be those of their source."""
        group = groups.create_group(self.root, f"{self.side}/{self.layer}")
        with paths.writing(self.group):
            group.attrs.put({VERIFIED: True})

    def is_complete(self) -> bool:
        """Return whether the arrays and all their chunks are there."""
        if not paths.is_file(self.group.joinpath(FEATURES, "zarr.json")):
            return False
        array = self._arrays[FEATURES]
        return len(self.present()) == -(-array.shape[0] // array.chunks[0])

    def has_chunk(self, index: int) -> bool:
        """Return whether one chunk is complete."""
        places = (self.group.joinpath(name, "c", *map(str, chunk_index(name, index))) for name in ARRAYS)
        return all(map(paths.is_file, places))

    def dtype(self) -> np.dtype[Any]:
        """Return the type that features are stored in."""
        return np.dtype(self._arrays[FEATURES].dtype)

    def read(self, images: slice) -> NDArray[np.floating[Any]]:
        """Return (T, S, C) features of consecutive images, in the stored type; zeros beyond an image's tokens.

        Raises StorageError if they are missing or damaged.
        """
        return self._read(FEATURES, images)

    def read_token_counts(self, images: slice = slice(None)) -> NDArray[np.int64]:
        """Return how many tokens some consecutive images have, or all, (T,).

        Raises StorageError if some are missing or damaged.
        """
        return self._read(TOKEN_COUNT, images).astype(np.int64)

    def read_squared_norms(self) -> NDArray[np.float64]:
        """Return (N,) squared norms; raises StorageError if some are missing or damaged."""
        return self._read(SQUARED_NORM, slice(None))

    def read_pooled(self, images: slice = slice(None)) -> NDArray[np.float32]:
        """Return (n, C) mean concept vectors of some images, or of all.

        Raises StorageError if some are missing or damaged.
        """
        return self._read(POOLED, images)

    def read_chunk(self, number: int) -> tuple[NDArray[np.floating[Any]], NDArray[np.int64]]:
        """Return what `read` and `read_token_counts` return of the images of a chunk."""
        images = slice(number * self.chunk_size, (number + 1) * self.chunk_size)
        return self.read(images), self.read_token_counts(images)

    def _read(self, name: str, images: slice) -> NDArray[Any]:
        array = self._arrays[name]
        start, stop, _ = images.indices(array.shape[0])
        return chunks.read_region(
            array, (slice(start, stop), *(slice(0, length) for length in array.shape[1:]))
        )


class FeatureReader:
    """Reads the features of single images, each with its own number of tokens; keeps the `held` chunks read last."""

    def __init__(self, store: FeatureStore, held: int = 4) -> None:
        self._store = store
        self._read_chunk = lru_cache(held)(store.read_chunk)

    def __call__(self, image: int) -> NDArray[np.floating[Any]]:
        """Return (S_i, C) of an image; raises what `FeatureStore.read` raises."""
        number, place = divmod(image, self._store.chunk_size)
        z, counts = self._read_chunk(number)
        features: NDArray[np.floating[Any]] = z[place, : counts[place]]
        return features

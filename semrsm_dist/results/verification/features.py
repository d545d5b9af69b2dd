"""Verification of features: their numbers, what is derived of them, and the digests of the fingerprint."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.features.arrays import hash_token_counts
from semrsm_dist.results.verification.inspection import ArrayChunks, Inspection
from semrsm_dist.results.verification.numbers import Problem, check_features
from semrsm_dist.results.verification.report import Kind
from semrsm_dist.store.features import ARRAYS, FEATURES, FeatureReader, FeatureStore, chunk_index


@dataclass(frozen=True)
class SoundFeatures:
    """The features of one side of a layer, as far as they are sound."""

    store: FeatureStore
    chunk_size: int
    squared_norms: NDArray[np.float64]
    """(N,), NaN where they are not known, as the chunk is missing or at fault."""
    token_counts: NDArray[np.int64]
    """(N,), 0 there."""

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which images have sound features."""
        return self.token_counts > 0

    def reader(self) -> FeatureReader:
        """Return a reader of single images."""
        return FeatureReader(self.store)


def inspect_features(inspection: Inspection, side: str, layer: str, *, needed: bool) -> SoundFeatures:
    """Check the features of one side of a layer; `needed` says whether all must be there."""
    record, store = inspection.record, FeatureStore(inspection.directory.features, side, layer)
    n_images, sizes = record.counts[side], record.layers[layer]
    lengths = {"image": n_images, "token": sizes.n_tokens, "channel": sizes.n_channels}
    arrays = {}
    for name, (_, dimensions) in ARRAYS.items():
        shape = tuple(lengths[dimension] for dimension in dimensions)
        arrays[name] = ArrayChunks(
            inspection, store.group, name, layer, shape, (record.chunk_size, *shape[1:])
        )
    known = SoundFeatures(store, record.chunk_size, np.full(n_images, np.nan), np.zeros(n_images, np.int64))

    def check(number: int) -> None:
        read = [array.read(chunk_index(name, number)) for name, array in arrays.items()]
        parts = [part for part in read if part is not None]
        if inspection.fast or len(parts) < len(read):
            return
        counts, norms, pooled, z = parts
        problems = list(check_features(z, counts, norms, pooled))
        for name, problem in problems:
            arrays[name].add(chunk_index(name, number), problem)
        if not problems:
            images = slice(number * record.chunk_size, number * record.chunk_size + len(counts))
            known.squared_norms[images], known.token_counts[images] = norms, counts

    numbers = range(-(-n_images // record.chunk_size))
    there = [
        {index[0] for index in array.find([chunk_index(name, n) for n in numbers], needed=needed)}
        for name, array in arrays.items()
    ]
    inspection.each(
        f"features of {layer} ({side})", "feature chunks", sorted(set.intersection(*there)), check
    )
    if known.known.all():
        _check_digest(inspection, side, layer, known)
    return known


def _check_digest(inspection: Inspection, side: str, layer: str, known: SoundFeatures) -> None:
    """Compare imported features with the digest that the fingerprint has of their source."""
    expected = inspection.record.layers[layer].facts.get(f"{side}.{layer}.sha256")
    if expected is None:  # extracted: the fingerprint has the images' hashes
        return
    path = known.store.group / FEATURES
    source = inspection.record.cached.sources.get(f"{side}/{layer}")
    if source is None:
        inspection.unchecked.append(
            f"{path}: not part of the last session, which recorded how features are digested"
        )
        return
    counts = known.token_counts
    if source.token_counts_sha256 not in (None, hash_token_counts(counts)):
        text = "the token counts are not those of the fingerprint"
        inspection.add(known.store.group / "token_count", layer, "", Problem(Kind.FEATURES, text))
    if np.dtype(source.dtype).itemsize > known.store.dtype().itemsize:
        inspection.unchecked.append(
            f"{path}: features of type {source.dtype} were stored as {known.store.dtype()}, which their digest does "
            "not cover (--images compares them with their source)"
        )
        return
    sizes, dtype = source.sizes, np.dtype(source.dtype)
    digest = hashlib.sha256(f"{source.n_images} {sizes.n_tokens} {sizes.n_channels} {dtype}\n".encode())
    with inspection.reading(path, layer):
        for start in range(0, source.n_images, known.chunk_size):
            z = known.store.read(slice(start, min(start + known.chunk_size, source.n_images)))
            digest.update(np.ascontiguousarray(z[:, : sizes.n_tokens], dtype).data)
        if digest.hexdigest() != expected:
            text = "the features are not those of the fingerprint: their digest is another"
            inspection.add(path, layer, "", Problem(Kind.FEATURES, text))

"""What trials are made of: images from all over a run's own, and their features."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray
from pydantic import PrivateAttr

from semrsm_dist.data.entries import ImageEntry, Least, LoadedImage
from semrsm_dist.data.source import ImageSource, load_image
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.data.table import read_entries
from semrsm_dist.features.arrays import load_token_counts
from semrsm_dist.store.feature_source import open_array
from semrsm_dist.store.record import LayerSizes, Side


@dataclass(frozen=True)
class Pool:
    """Features of some images of each side, from which trials take theirs."""

    features: Mapping[str, Mapping[Side, NDArray[Any]]]
    """(T, S, C) by layer and side."""
    token_counts: Mapping[str, Mapping[Side, NDArray[np.int64]]]
    """(T,) likewise."""
    entries: Mapping[Side, Sequence[ImageEntry]]
    """Ids and labels by side."""


def spread(total: int, wanted: int, seed: int = 0) -> list[int]:
    """Return different indices below `total`: a random one of each of `wanted` parts of about equal length."""
    wanted = min(total, wanted)
    draws = np.random.default_rng(seed).random(wanted)
    bounds = [part * total // wanted for part in range(wanted + 1)]
    return [
        start + int(draw * (stop - start))
        for draw, (start, stop) in zip(draws, itertools.pairwise(bounds), strict=True)
    ]


def look_at_features(
    sides: Mapping[Side, FeaturesData],
) -> tuple[dict[Side, int], dict[str, LayerSizes]]:
    """Return the images of each side, and the sizes of the layers."""
    counts: dict[Side, int] = {}
    sizes: dict[str, LayerSizes] = {}
    for side, data in sides.items():
        for layer, path in data.layers.items():
            source = open_array(path, data.layout, layer)
            counts[side] = source.n_images
            known = sizes.get(layer)
            n_tokens = max(source.n_tokens, known.n_tokens if known else 0)
            sizes[layer] = LayerSizes(n_tokens=n_tokens, n_channels=source.n_channels)
    return counts, sizes


POOL_BYTES, POOL_SECONDS = 2**28, 5.0
"""Memory of the features for trials, and about how long it may take to obtain them."""


def read_features(sides: Mapping[Side, FeaturesData], counts: Mapping[Side, int], most: int) -> Pool:
    """Read images one by one, in random order, until there are `most` or it takes more than `POOL_SECONDS`."""
    features: dict[str, dict[Side, NDArray[Any]]] = {}
    token_counts: dict[str, dict[Side, NDArray[np.int64]]] = {}
    entries: dict[Side, list[ImageEntry]] = {}
    for side, data in sides.items():
        sources = {layer: open_array(path, data.layout, layer) for layer, path in data.layers.items()}
        read: dict[int, dict[str, NDArray[Any]]] = {}
        started = time.perf_counter()
        for index in np.random.default_rng(1).permutation(spread(counts[side], most)).tolist():
            read[index] = {layer: source.read(index, index + 1)[0] for layer, source in sources.items()}
            if len(read) >= min(8, counts[side]) and time.perf_counter() - started > POOL_SECONDS:
                break
        chosen = sorted(read)
        for layer, source in sources.items():
            features.setdefault(layer, {})[side] = np.stack([read[index][layer] for index in chosen])
            if layer in data.token_counts:
                every = load_token_counts(data.token_counts[layer], source.n_images, source.n_tokens)
                token_counts.setdefault(layer, {})[side] = every[chosen]
        table = data.find_table()
        listed = None if table is None else read_entries(table, needs_uri=False)
        entries[side] = [
            ImageEntry(str(index), "") if listed is None or index >= len(listed) else listed[index]
            for index in chosen
        ]
    return Pool(features, token_counts, entries)


def write_features(pool: Pool, side: Side, chosen: NDArray[np.int64], folder: Path) -> FeaturesData:
    """Write some images of a pool, and return them as the source of a run."""
    layers, counts = {}, {}
    for number, (layer, by_side) in enumerate(pool.features.items()):
        layers[layer] = folder / f"{side}-{number}.npy"
        np.save(layers[layer], by_side[side][chosen])
        if layer in pool.token_counts:
            counts[layer] = folder / f"{side}-{number}-counts.npy"
            np.save(counts[layer], pool.token_counts[layer][side][chosen])
    entries = [pool.entries[side][index] for index in chosen]
    table = folder / f"{side}.parquet"
    columns = {
        "image_id": [entry.image_id for entry in entries],
        "labels": [entry.labels for entry in entries],
    }
    schema = pa.schema({"image_id": pa.string(), "labels": pa.list_(pa.string())})
    pa.parquet.write_table(pa.table(columns, schema), table)
    return FeaturesData(layers=layers, token_counts=counts, layout="nsc", table=str(table))


class Sample(ImageSource):
    """Some images of another source."""

    source: str = "sample"
    _inner: ImageSource = PrivateAttr()
    _entries: list[ImageEntry] = PrivateAttr()

    @classmethod
    def of(cls, inner: ImageSource, entries: list[ImageEntry]) -> Sample:
        """Return the source of some of another's images."""
        sample = (_GeneratedSample if inner.generated else Sample)()
        sample._inner, sample._entries = inner, entries
        return sample

    def entries(self) -> list[ImageEntry]:
        """Return the chosen entries."""
        return self._entries

    def load(self, entry: ImageEntry) -> LoadedImage:
        """Load an image as the other source does."""
        return load_image(self._inner, entry)

    @property
    def has_drafts(self) -> bool:
        """Whether the other source has drafts."""
        return self._inner.has_drafts

    def load_draft(self, entry: ImageEntry, least: Least) -> LoadedImage:
        """Load a draft of an image as the other source does."""
        return load_image(self._inner, entry, least)

    def stamp(self, entry: ImageEntry) -> tuple[int, int] | None:
        """Return size and time of an image as the other source does."""
        return self._inner.stamp(entry)


class _GeneratedSample(Sample):
    generated: ClassVar[bool] = True

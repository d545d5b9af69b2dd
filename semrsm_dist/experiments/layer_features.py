"""A layer's features as experiments read them: both sides of a run, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.evaluation.entries import row_slices
from semrsm_dist.evaluation.pooling import pool_tokens
from semrsm_dist.evaluation.tokens import unit_tokens
from semrsm_dist.results.run import Run
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.record import Side


@dataclass(frozen=True, slots=True)
class LayerFeatures:
    """The features of one layer of a run."""

    run: Run
    layer: str

    @property
    def query_side(self) -> Side:
        """The side of the rows."""
        return self.run.record.row_side

    @property
    def n_tokens(self) -> int:
        """S."""
        return self.run.record.layers[self.layer].n_tokens

    @property
    def n_channels(self) -> int:
        """C."""
        return self.run.record.layers[self.layer].n_channels

    def count(self, side: Side) -> int:
        """Return the number of images of a side."""
        return self.run.record.counts[side]

    def store(self, side: Side) -> FeatureStore:
        """Return the feature store of `images` or `queries`."""
        return FeatureStore(self.run.directory.features, side, self.layer)

    def chunks(self, side: Side) -> Iterator[slice]:
        """Yield the images of a side, chunk by chunk."""
        return row_slices(self.count(side), self.run.record.chunk_size)

    def token_counts(self, side: Side) -> NDArray[np.int64]:
        """Return how many tokens each image of a side has, (N,)."""
        return self.store(side).read_token_counts()

    def pool(self, side: Side, power: float) -> NDArray[np.float32]:
        """Return one vector for each image of a side, (N, C), as `pool_tokens` makes it."""
        store, counts = self.store(side), self.token_counts(side)
        return np.concatenate(
            [pool_tokens(store.read(images), counts[images], power=power) for images in self.chunks(side)]
        )

    def read_pooled(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the mean tokens of the images of rows and columns, (N, C) each."""
        return self.store(self.query_side).read_pooled(), self.store("images").read_pooled()

    def mean_token(self) -> NDArray[np.float64]:
        """Return the mean, over the images of the database, of their mean tokens, (C,)."""
        mean: NDArray[np.float64] = self.store("images").read_pooled().mean(axis=0, dtype=np.float64)
        return mean

    def has_unequal_tokens(self) -> bool:
        """Return whether images differ in their number of tokens."""
        return any((self.token_counts(side) != self.n_tokens).any() for side in self.run.record.sides)

    def sample_tokens(self, n: int, seed: int) -> NDArray[np.float32]:
        """Return up to n tokens (n, C) of the database, scaled to length 1, drawn without replacement."""
        counts = self.token_counts("images")
        ends = np.cumsum(counts)
        total = int(ends[-1])
        drawn = np.sort(np.random.default_rng(seed).choice(total, size=min(n, total), replace=False))
        image = np.searchsorted(ends, drawn, side="right")
        token = drawn - (ends - counts)[image]
        store, parts = self.store("images"), []
        for images in self.chunks("images"):
            part = slice(*np.searchsorted(image, [images.start, images.stop]))
            if part.start < part.stop:
                parts.append(unit_tokens(store.read(images)[image[part] - images.start, token[part]]))
        return np.concatenate(parts)

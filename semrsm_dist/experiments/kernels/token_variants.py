"""The similarities of a run with tokens treated before matching: centred, scaled to unit length, or both.

Centring changes no matching (see `semrsm_dist.evaluation.centring`), so it is derived from what the run has found.
Unit length does: those variants are runs of their own, on features written beside the given run. So are the centred
ones where images differ in their number of tokens: then some tokens find no partner, and centring decides which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from semrsm_dist.config.schema import KernelConfig, RunConfig, StorageConfig
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.errors import ConfigError, IncompleteError
from semrsm_dist.evaluation.centring import Centring
from semrsm_dist.evaluation.entries import RowReader, row_slices
from semrsm_dist.evaluation.tokens import centred_tokens, unit_tokens
from semrsm_dist.experiments.layer_features import LayerFeatures
from semrsm_dist.matching.kernels import derive, squared_distances
from semrsm_dist.pipeline import driver
from semrsm_dist.progress import Reporter, Stage
from semrsm_dist.results.rbf_width import PAIRS
from semrsm_dist.results.run import Run
from semrsm_dist.store.npy import write_npy
from semrsm_dist.store.paths import writing
from semrsm_dist.store.tiles import KINDS

AS_THEY_ARE = "as they are"
CENTRED, CENTRED_EACH = "less the data set's mean", "less each image's mean"
UNIT, CENTRED_UNIT = "unit length", "less the data set's mean, then unit length"
MATCHED = {UNIT: "unit", CENTRED_UNIT: "centred-unit"}
"""Variants with a matching of their own, and the folder of each."""

MATCHED_IF_UNEQUAL = {CENTRED: "centred", CENTRED_EACH: "centred-each"}
"""Variants that have one too if images differ in their number of tokens."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Variant:
    """The inner products of a layer under one treatment of its tokens, and squared norms of rows and columns.

    `inner` reads rows of inner products by kind, and of their certified gap as `gap`.
    """

    name: str
    inner: Mapping[str, RowReader]
    norms_i: Matrix
    norms_j: Matrix
    rows_at_once: int
    symmetric: bool

    def rows(self, kernel: str, kind: str, sigma: float | None = None) -> RowReader:
        """Return a reader of rows of similarities; `rbf` needs its width."""
        read = self.inner[kind]
        return lambda rows: derive(kernel, read(rows), self.norms_i[rows], self.norms_j, sigma)

    def median_width(self, kind: str) -> float:
        """Return the paper's width, sqrt(median of the non-zero squared distances); 1 if there is none.

        It is that of all pairs, or of more than `PAIRS`, that of the pairs of evenly spaced rows.
        """
        n_pairs = len(self.norms_i) * len(self.norms_j) // (2 if self.symmetric else 1)
        step, parts = max(1, -(-n_pairs // PAIRS)), []
        for rows in self.blocks():
            squared = squared_distances(self.inner[kind](rows), self.norms_i[rows], self.norms_j)
            is_chosen = np.arange(rows.start, rows.stop) % step == 0
            parts.append(squared[self.is_pair(rows) & (squared > 0) & is_chosen[:, None]])
        distances = np.concatenate(parts)
        return float(np.sqrt(np.median(distances))) if distances.size else 1.0

    def blocks(self) -> Iterator[slice]:
        """Yield the rows in consecutive slices."""
        return row_slices(len(self.norms_i), self.rows_at_once)

    def is_pair(self, rows: slice) -> NDArray[np.bool_]:
        """Return which entries of some rows are pairs, each of a symmetric matrix once, none with itself."""
        columns = np.arange(len(self.norms_j))
        if not self.symmetric:
            return np.ones((rows.stop - rows.start, columns.size), dtype=bool)
        is_pair: NDArray[np.bool_] = columns > np.arange(rows.start, rows.stop)[:, None]
        return is_pair

    def largest_gap(self) -> float:
        """Return by how much a cosine can at most lie below that of the best permutation; NaN if none is defined."""
        largest = np.nan
        for rows in self.blocks():
            scale = np.sqrt(self.norms_i[rows])[:, None] * np.sqrt(self.norms_j)
            defined = self.is_pair(rows) & (scale > 0)
            if defined.any():
                largest = np.fmax(largest, (self.inner["gap"](rows)[defined] / scale[defined]).max())
        return float(largest)


def list_variants(run: Run, derived: Mapping[str, Run], layer: str) -> Iterator[Variant]:
    """Yield a layer's variants: those that follow from the run, then those of the derived runs."""
    plain = read_variant(run, layer, AS_THEY_ARE)
    yield plain
    if CENTRED not in derived:
        yield from _derive_centred(run, plain, layer)
    for name, other in derived.items():
        yield read_variant(other, layer, name)


def _derive_centred(run: Run, plain: Variant, layer: str) -> Iterator[Variant]:
    features = LayerFeatures(run, layer)
    pooled_i, pooled_j = features.read_pooled()
    mean = pooled_j.mean(axis=0, dtype=np.float64)
    for name, offsets_i, offsets_j in ((CENTRED, mean, mean), (CENTRED_EACH, pooled_i, pooled_j)):
        left = Centring(pooled_i, offsets_i, features.n_tokens)
        right = Centring(pooled_j, offsets_j, features.n_tokens)
        inner = {kind: _centred(plain.inner[kind], left, right) for kind in KINDS}
        yield Variant(
            name,
            {**inner, "gap": plain.inner["gap"]},
            left.squared_norms(plain.norms_i),
            right.squared_norms(plain.norms_j),
            plain.rows_at_once,
            plain.symmetric,
        )


def read_variant(run: Run, layer: str, name: str) -> Variant:
    """Return a layer's inner products as a run found them."""
    matrices = run.matrices(layer)

    def reader(quantity: str) -> RowReader:
        matrix = matrices.matrix(quantity)
        return lambda rows: matrix.read((rows, slice(None)))

    return Variant(
        name,
        {"gap": reader("gap"), **{kind: reader(quantity) for kind, quantity in KINDS.items()}},
        *matrices.squared_norms,
        run.chunk_size(layer),
        run.is_symmetric,
    )


def _centred(read: RowReader, left: Centring, right: Centring) -> RowReader:
    return lambda rows: left.inner(read(rows), right, rows)


# --- variants with a matching of their own ---------------------------------------------------------------


def match_variants(config: RunConfig, run: Run, folder: Path, reporter: Reporter) -> dict[str, Run]:
    """Return the runs on transformed tokens, one folder each, computed as far as they are missing."""
    found = {}
    is_unequal = any(LayerFeatures(run, layer).has_unequal_tokens() for layer in run.requested_layers)
    for name, place in {**(MATCHED_IF_UNEQUAL if is_unequal else {}), **MATCHED}.items():
        complete = _open_complete(folder / place, run.requested_layers)
        if complete is None:
            _compute(config, run, name, folder / place, reporter)
            complete = Run(folder / place)
        found[name] = complete
    return found


def _open_complete(path: Path, layers: Sequence[str]) -> Run | None:
    try:
        run = Run(path)
        for layer in layers:
            run.matrices(layer)
    except (ConfigError, IncompleteError):
        return None
    return run


def _compute(config: RunConfig, run: Run, name: str, path: Path, reporter: Reporter) -> None:
    """Write transformed features, match them, and remove them: the derived run keeps a copy of its own."""
    scratch = path.with_name(f"{path.name}-features")
    with writing(scratch):
        data = {side: _write_side(run, side, name, scratch, reporter) for side in run.record.sides}
    derived = config.model_copy(
        update={
            "run": path,
            "data": data["images"],
            "queries": data.get("queries"),
            "model": None,
            "features": StorageConfig(dtype="float32"),
            "kernels": (KernelConfig(name="cosine"),),
        }
    )
    driver.run(derived, reporter=reporter)
    with writing(scratch):
        for side in data.values():
            for file in side.layers.values():
                file.unlink(missing_ok=True)


def _write_side(run: Run, side: str, name: str, folder: Path, reporter: Reporter) -> FeaturesData:
    vectors, numbers = folder / side, folder / f"{side}-counts"
    for place in (vectors, numbers):
        place.mkdir(parents=True, exist_ok=True)
    manifest = run.manifest(side)
    table = pa.table(
        {
            "image_id": pa.array(manifest.image_ids(), pa.string()),
            "labels": pa.array(map(list, manifest.labels()), pa.list_(pa.string())),
            "group": pa.array(manifest.groups(), pa.string()),
        }
    )
    pyarrow.parquet.write_table(table, folder / f"{side}.parquet")
    layers, counts = {}, {}
    with reporter.stage(
        "transform", len(run.requested_layers) * len(manifest.image_ids()), "images"
    ) as shown:
        for layer in run.requested_layers:
            features = LayerFeatures(run, layer)
            layers[layer] = vectors / f"{layer}.npy"
            found = features.token_counts(side)
            if (found != features.n_tokens).any():
                counts[layer] = numbers / f"{layer}.npy"
                np.save(counts[layer], found)
            shape = (features.count(side), features.n_tokens, features.n_channels)
            write_npy(layers[layer], shape, np.float32, _transformed(features, side, name, shown))
    return FeaturesData(
        source="features", layers=layers, token_counts=counts, table=folder / f"{side}.parquet"
    )


def _transformed(
    features: LayerFeatures, side: str, name: str, shown: Stage
) -> Iterator[NDArray[np.float32]]:
    transform, store = _choose_transform(features, name), features.store(side)
    for images in features.chunks(side):
        yield transform(store.read(images), store.read_token_counts(images))
        shown.advance(images.stop - images.start)


def _choose_transform(
    features: LayerFeatures, name: str
) -> Callable[[NDArray[np.floating[Any]], NDArray[np.int64]], NDArray[np.float32]]:
    """Return what makes transformed tokens of (T, S, C) features and their (T,) token counts."""
    if name == UNIT:
        return lambda z, _: unit_tokens(z)
    if name == CENTRED_EACH:  # zeros fill up an image, so the sum is that of its tokens
        return lambda z, counts: centred_tokens(
            z, z.sum(axis=1, keepdims=True, dtype=np.float64) / counts[:, None, None]
        )
    mean = features.mean_token()
    if name == CENTRED:
        return lambda z, _: centred_tokens(z, mean)
    return lambda z, _: unit_tokens(centred_tokens(z, mean))

"""The inputs of a run of ready-made features: their sizes and hashes by layer and side."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semrsm_dist.config.schema import Data, FeaturesData
from semrsm_dist.data.locations import absolute
from semrsm_dist.data.manifest import Manifest
from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.features.token_counts import load_token_counts
from semrsm_dist.matching.matcher import Matcher, matchers_of_unequal
from semrsm_dist.pipeline.session import Session
from semrsm_dist.pipeline.stages.scan import list_feature_images
from semrsm_dist.store.feature_source import open_array
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.fingerprint import Fingerprint
from semrsm_dist.store.record import Answers, LayerSizes, Side, SourceAnswer

Features = tuple[dict[Side, Manifest], dict[str, LayerSizes], dict[str, Fingerprint], Answers]
"""Manifests by side, sizes and facts by layer, and what to keep in the record."""


def resolve_features(
    session: Session, matcher: Matcher, sides: Mapping[Side, Data], cached: Answers
) -> Features:
    """Resolve the ready-made features of a run.

    Parameters
    ----------
    session
        The session.
    matcher
        The configured matcher.
    sides
        The configured features by side.
    cached
        What an earlier session recorded.

    Raises
    ------
    InputError, ConfigError
        If they cannot be read, or do not fit each other or the matcher.
    """
    manifests: dict[Side, Manifest] = {}
    layers: dict[str, LayerSizes] = {}
    layer_facts: dict[str, Fingerprint] = {}
    sources: dict[str, SourceAnswer] = {}
    tables: dict[Side, str | None] = {}
    for side, data in sides.items():
        if not isinstance(data, FeaturesData):
            raise ConfigError(f"{side}: expected ready-made features on both sides")
        counts: dict[str, int] = {}
        for layer, path in data.layers.items():
            source = _identify_source(session, side, layer, data, cached.sources.get(f"{side}/{layer}"))
            counts[layer] = source.n_images
            layers[layer] = _join_sizes(layers.get(layer), source, matcher, layer=layer, side=side, path=path)
            sources[f"{side}/{layer}"] = source
            layer_facts[layer] = layer_facts.get(layer, {}) | _facts(side, layer, source)
        if len(set(counts.values())) > 1:
            raise InputError(
                f"{side}: the layers hold different numbers of images ({counts}); all must hold the same images in the "
                "same order"
            )
        tables[side] = None if data.table is None else absolute(data.table)
        manifests[side] = _identify_images(
            session, side, data, next(iter(counts.values())), cached.tables.get(side)
        )
    for layer, sizes in layers.items():
        here = [source for key, source in sources.items() if key.split("/", 1)[1] == layer]
        if any(source.unequal or source.sizes != sizes for source in here):
            session.warn(
                f"layer {layer}: images differ in their number of tokens; all tokens of the smaller one of a pair are "
                "matched, and spatio-semantic similarities of such pairs are undefined (NaN)"
            )
        layer_facts[layer] |= {f"{layer}.{name}": size for name, size in sizes}
    return manifests, layers, layer_facts, Answers(sources=sources, tables=tables)


def _identify_images(
    session: Session, side: Side, data: FeaturesData, n_images: int, known_table: str | None
) -> Manifest:
    """Return the table of images, or the run's copy of it if the table is gone."""
    if isinstance(data.table, Path) and not data.table.exists() and known_table == absolute(data.table):
        kept = session.directory.manifest(side)
        if kept.exists():
            session.warn(f"{data.table}: this table is gone; the run continues with its own copy")
            return Manifest.from_parquet(kept)
    return list_feature_images(side, data, n_images)


def _facts(side: str, layer: str, source: SourceAnswer) -> Fingerprint:
    facts = {f"{side}.{layer}.sha256": source.sha256}
    if source.token_counts_sha256:
        facts[f"{side}.{layer}.token_counts_sha256"] = source.token_counts_sha256
    return facts


def _join_sizes(
    known: LayerSizes | None, source: SourceAnswer, matcher: Matcher, *, layer: str, side: str, path: Path
) -> LayerSizes:
    """Return the sizes of a layer over all sides so far: channels must agree, tokens are the maximum."""
    sizes = source.sizes
    if known is not None and (
        known.n_channels != sizes.n_channels
        or (known.n_tokens != sizes.n_tokens and not matcher.takes_unequal)
    ):
        raise InputError(
            f"{path}: layer {layer!r} has S = {sizes.n_tokens} and C = {sizes.n_channels} on the side "
            f"{side}, but {known.n_tokens} and {known.n_channels} on the other; matcher {matcher.name!r} cannot "
            "match them: give features of one model and one input size, or, if they differ in S alone, use "
            f"{matchers_of_unequal()}"
        )
    if source.unequal and not matcher.takes_unequal:
        raise ConfigError(
            f"{side}: token_counts: the images of layer {layer!r} differ in their number of tokens, which matcher "
            f"{matcher.name!r} cannot match: use {matchers_of_unequal()}"
        )
    return sizes if known is None or known.n_tokens < sizes.n_tokens else known


def _identify_source(
    session: Session, side: str, layer: str, data: FeaturesData, known: SourceAnswer | None
) -> SourceAnswer:
    """Return size and hash of ready-made features; as recorded, if the run has them all and the source is gone."""
    path, counts_path = data.layers[layer], data.token_counts.get(layer)
    here = known if known and known.path == str(path.absolute()) else None
    store = FeatureStore(session.directory.features, side, layer)
    if here and not path.exists() and store.group.is_dir() and store.is_complete() and store.is_verified():
        session.warn(f"{path}: these features are gone; the run continues with its own copy")
        return _with_counts(here, counts_path, here)
    source = open_array(path, data.layout)
    signature = source.signature()
    if here and here.signature != signature and store.group.is_dir() and not store.is_verified():
        store.remove()  # who knows what was copied
    answer = SourceAnswer(
        path=str(path.absolute()),
        signature=signature,
        sha256=here.sha256 if here and here.signature == signature else source.digest(),
        n_images=source.n_images,
        sizes=LayerSizes(n_tokens=source.n_tokens, n_channels=source.n_channels),
    )
    return _with_counts(answer, counts_path, None)


def _with_counts(features: SourceAnswer, path: Path | None, known: SourceAnswer | None) -> SourceAnswer:
    """Return the features with their token counts; as recorded, if these are gone with the features."""
    facts: dict[str, Any] = {"token_counts_path": None, "token_counts_sha256": None, "unequal": False}
    if path is not None:
        place = str(path.absolute())
        if known and known.token_counts_path == place and not path.exists():
            return known
        n_tokens = features.sizes.n_tokens
        counts = load_token_counts(path, features.n_images, n_tokens)
        facts = {
            "token_counts_path": place,
            "token_counts_sha256": hashlib.sha256(counts.tobytes()).hexdigest(),
            "unequal": bool(counts.min() < n_tokens),
        }
    return features.model_copy(update=facts)

"""The inputs of a run of ready-made features: their sizes and hashes by layer and side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.data.manifest import Manifest
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.data.table import read_entries
from semrsm_dist.errors import ConfigError, InputError, MissingInputError, counted
from semrsm_dist.features.arrays import FeatureArray, hash_token_counts, is_read_as, load_token_counts
from semrsm_dist.matching.matcher import Matcher, matchers_of_unequal
from semrsm_dist.pipeline.gone_inputs import continue_without, read_copy, with_absolute_paths
from semrsm_dist.pipeline.session import Session
from semrsm_dist.store.feature_source import open_array
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.fingerprint import Fingerprint
from semrsm_dist.store.paths import is_folder
from semrsm_dist.store.record import Answers, LayerSizes, Side, SourceAnswer

Features = tuple[dict[Side, Manifest], dict[str, LayerSizes], dict[str, Fingerprint], Answers]
"""Manifests by side, sizes and facts by layer, and what to keep in the record."""


def resolve_features(
    session: Session, matcher: Matcher, sides: Mapping[Side, FeaturesData], cached: Answers
) -> Features:
    """Resolve the ready-made features of a run; `cached` is what an earlier session recorded.

    Raises InputError or ConfigError if they cannot be read, or do not fit each other or the matcher.
    """
    manifests: dict[Side, Manifest] = {}
    layers: dict[str, LayerSizes] = {}
    layer_facts: dict[str, Fingerprint] = {}
    sources: dict[str, SourceAnswer] = {}
    listings: dict[Side, Any] = {}
    for side, data in sides.items():
        counts: dict[str, int] = {}
        for layer, path in data.layers.items():
            source = _identify_source(session, side, layer, data, cached.sources.get(f"{side}/{layer}"))
            counts[layer] = source.n_images
            layers[layer] = _join_sizes(layers.get(layer), source, matcher, layer=layer, side=side, path=path)
            sources[f"{side}/{layer}"] = source
            layer_facts[layer] = layer_facts.get(layer, {}) | _facts(side, layer, source)
        _require_equal(side, counts)
        listings[side] = with_absolute_paths(data.find_table(cached.listings.get(side)))
        manifests[side] = _identify_images(
            session, side, data, next(iter(counts.values())), cached.listings.get(side)
        )
    for layer, sizes in layers.items():
        here = [source for key, source in sources.items() if key.split("/", 1)[1] == layer]
        if _is_unequal(sizes, here):
            session.warn(
                f"layer {layer}: images differ in their number of tokens; all tokens of the smaller one of a pair are "
                "matched, and spatio-semantic similarities of such pairs are undefined (NaN)"
            )
        layer_facts[layer] |= {f"{layer}.{name}": size for name, size in sizes}
    return manifests, layers, layer_facts, Answers(sources=sources, listings=listings)


def check_features(sides: Mapping[Side, FeaturesData], matcher: Matcher) -> list[str]:
    """Find what `resolve_features` would refuse, without reading the features; it raises the same errors.

    Returns the layers whose images differ in their number of tokens.
    """
    layers: dict[str, LayerSizes] = {}
    answers: dict[str, list[SourceAnswer]] = defaultdict(list)
    for side, data in sides.items():
        counts: dict[str, int] = {}
        for layer, path in data.layers.items():
            array = open_array(path, data.layout, layer)
            counts[layer], n_tokens = array.n_images, array.n_tokens
            n_valid = load_token_counts(data.token_counts.get(layer), array.n_images, n_tokens)
            answer = _describe(path, array).model_copy(update={"unequal": bool(n_valid.min() < n_tokens)})
            layers[layer] = _join_sizes(layers.get(layer), answer, matcher, layer=layer, side=side, path=path)
            answers[layer].append(answer)
        _require_equal(side, counts)
        _list_images(side, data, next(iter(counts.values())))
    return [layer for layer, sizes in layers.items() if _is_unequal(sizes, answers[layer])]


def _is_unequal(sizes: LayerSizes, sides: Iterable[SourceAnswer]) -> bool:
    """Return whether a layer's images differ in their number of tokens."""
    return any(side.unequal or side.sizes != sizes for side in sides)


def _require_equal(side: str, counts: Mapping[str, int]) -> None:
    if len(set(counts.values())) > 1:
        raise InputError(
            f"{side}: the layers hold different numbers of images ({dict(counts)}); all must hold the same images in "
            "the same order"
        )


def _identify_images(
    session: Session, side: Side, data: FeaturesData, n_images: int, known: object
) -> Manifest:
    """Return the manifest, from the run's copy if the table is gone: ids from the table or, without one, the index."""
    try:
        return _list_images(side, data, n_images, known)
    except MissingInputError as error:
        copy = read_copy(session, side)
        if copy is None or known != with_absolute_paths(data.find_table(known)):
            raise
        continue_without(session, str(error), [])  # no features are made from it
        return copy


def _list_images(side: str, data: FeaturesData, n_images: int, known: object = None) -> Manifest:
    table = data.find_table(known)
    if table is None:
        return Manifest.from_ids([str(index) for index in range(n_images)])
    entries = read_entries(table, needs_uri=False)
    if len(entries) != n_images:
        raise InputError(
            f"{table}: {counted(len(entries), 'row')}, but the features of {side} hold {counted(n_images, 'image')}"
            "; give one row for each image, in the order of the features"
        )
    return Manifest.from_entries(entries)


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
    session: Session, side: Side, layer: str, data: FeaturesData, known: SourceAnswer | None
) -> SourceAnswer:
    """Return what is known of ready-made features, or what is found there, whose numbers are then read for a digest."""
    source, counts, found = _find_source(session, side, layer, data, known)
    if source is None:
        return found
    if known is not None:
        answer = found.model_copy(update={"sha256": known.sha256})
        if answer == known.model_copy(update={"token_counts_path": found.token_counts_path}):
            return answer
        store = FeatureStore(session.directory.features, side, layer)
        if is_folder(store.group) and not store.is_verified():
            store.remove()  # who knows what was copied
    return found.model_copy(update={"sha256": source.digest(counts)})


def _find_source(
    session: Session, side: Side, layer: str, data: FeaturesData, known: SourceAnswer | None
) -> tuple[FeatureArray | None, NDArray[np.int64], SourceAnswer]:
    """Return features, their token counts and a description without digest; or, if they are gone, what is known."""
    path, counts_path = data.layers[layer], data.token_counts.get(layer)
    source: FeatureArray | None = None
    try:
        source = open_array(path, data.layout, layer)
    except MissingInputError as error:
        if (
            known is None
            or known.path != with_absolute_paths(path)
            or not is_read_as(data.layout, known.layout)
        ):
            raise
        continue_without(session, str(error), [(side, layer)])
        found = known
    else:
        found = _describe(path, source)
    counts = _load_counts(session, side, layer, data, found, known)
    about_counts = {
        "token_counts_path": with_absolute_paths(counts_path),
        "token_counts_sha256": None if counts_path is None else hash_token_counts(counts),
        "unequal": bool(counts.min() < found.sizes.n_tokens),
    }
    return source, counts, found.model_copy(update=about_counts)


def _describe(path: Path, source: FeatureArray) -> SourceAnswer:
    """Return what is found by opening features, without their digest."""
    return SourceAnswer(
        path=with_absolute_paths(path),
        signature=source.signature(),
        layout=source.layout,
        sha256="",
        n_images=source.n_images,
        sizes=LayerSizes(n_tokens=source.n_tokens, n_channels=source.n_channels),
        dtype=source.dtype.name,
    )


def _load_counts(
    session: Session,
    side: Side,
    layer: str,
    data: FeaturesData,
    features: SourceAnswer,
    known: SourceAnswer | None,
) -> NDArray[np.int64]:
    """Return the token counts of ready-made features, or the run's copy of them."""
    path = data.token_counts.get(layer)
    try:
        return load_token_counts(path, features.n_images, features.sizes.n_tokens)
    except MissingInputError as error:
        if known is None or known.token_counts_path != with_absolute_paths(path):
            raise
        continue_without(session, str(error), [(side, layer)])
        return FeatureStore(session.directory.features, side, layer).read_token_counts()

"""What a run of ready-made features is: their sizes and hashes, told apart by layer and side."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semrsm_dist.config.schema import Data, FeaturesData
from semrsm_dist.data.files import absolute
from semrsm_dist.data.manifest import Manifest
from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.features.token_counts import load_token_counts
from semrsm_dist.matching.matcher import Matcher, matchers_of_unequal
from semrsm_dist.pipeline.session import Session
from semrsm_dist.pipeline.stages.scan import list_feature_images
from semrsm_dist.store.feature_source import open_array
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.fingerprint import Fingerprint

Sizes = dict[str, int]
Features = tuple[dict[str, Manifest], dict[str, Sizes], dict[str, Fingerprint], dict[str, Any]]
"""Manifests by side, sizes and facts by layer, and what to keep in the record."""

COUNTS_FACTS = ("token_counts_path", "token_counts_sha256", "unequal")
"""What is kept of token counts beside the features that they belong to."""

LONGEST_NAME = 200
"""Bytes of a layer's name: file systems allow 255, and exported files add the kernel."""


def resolve_features(
    session: Session, matcher: Matcher, sides: Mapping[str, Data], cached: Mapping[str, Any]
) -> Features:
    """Find out what ready-made features a run has.

    Parameters
    ----------
    session
        The session.
    matcher
        The configured matcher.
    sides
        The configured features by side.
    cached
        What an earlier session kept.

    Raises
    ------
    InputError, ConfigError
        If they cannot be read, or do not go with each other or with the matcher.
    """
    manifests: dict[str, Manifest] = {}
    layers: dict[str, Sizes] = {}
    layer_facts: dict[str, Fingerprint] = {}
    sources: dict[str, Any] = {}
    tables: dict[str, str | None] = {}
    for side, data in sides.items():
        if not isinstance(data, FeaturesData):
            raise ConfigError(f"{side}: expected ready-made features on both sides")
        counts: dict[str, int] = {}
        for layer, path in data.layers.items():
            _require_plain_name(side, layer)
            known = cached.get("sources", {}).get(f"{side}/{layer}")
            source = _identify_source(session, side, layer, data, known)
            counts[layer] = source["n_images"]
            layers[layer] = _join_sizes(layers.get(layer), source, matcher, layer=layer, side=side, path=path)
            sources[f"{side}/{layer}"] = source
            layer_facts[layer] = layer_facts.get(layer, {}) | _facts(side, layer, source)
        if len(set(counts.values())) > 1:
            raise InputError(
                f"{side}: the layers hold different numbers of images ({counts}); all must hold the same images in the "
                "same order"
            )
        tables[side] = None if data.table is None else absolute(data.table)
        known_table = cached.get("tables", {}).get(side)
        manifests[side] = _identify_images(session, side, data, next(iter(counts.values())), known_table)
    for layer, sizes in layers.items():
        here = [source for key, source in sources.items() if key.split("/", 1)[1] == layer]
        if any(source.get("unequal") or source["sizes"] != sizes for source in here):
            session.warn(
                f"layer {layer}: images differ in their number of tokens; all tokens of the smaller one of a pair are "
                "matched, and spatio-semantic similarities of such pairs are undefined (NaN)"
            )
        layer_facts[layer] |= {f"{layer}.{name}": size for name, size in sizes.items()}
    return manifests, layers, layer_facts, {"sources": sources, "tables": tables}


def _identify_images(
    session: Session, side: str, data: FeaturesData, n_images: int, known_table: str | None
) -> Manifest:
    """Return what the table of images says; what the run noted of it, if the table is gone."""
    if isinstance(data.table, Path) and not data.table.exists() and known_table == absolute(data.table):
        kept = session.directory.manifest(side)
        if kept.exists():
            session.warn(f"{data.table}: is gone; the run goes on with its own copy of this table")
            return Manifest.from_parquet(kept)
    return list_feature_images(side, data, n_images)


def _facts(side: str, layer: str, source: Mapping[str, Any]) -> Fingerprint:
    facts = {f"{side}.{layer}.sha256": source["sha256"]}
    if source.get("token_counts_sha256"):
        facts[f"{side}.{layer}.token_counts_sha256"] = source["token_counts_sha256"]
    return facts


def _join_sizes(
    known: Sizes | None, source: Mapping[str, Any], matcher: Matcher, *, layer: str, side: str, path: Path
) -> Sizes:
    """Return the sizes of a layer on all sides so far: channels must agree, of tokens there is room for the most."""
    sizes = dict(source["sizes"])
    if known is not None and (
        known["n_channels"] != sizes["n_channels"]
        or (known["n_tokens"] != sizes["n_tokens"] and not matcher.takes_unequal)
    ):
        raise InputError(
            f"{path}: layer {layer!r} has S = {sizes['n_tokens']} and C = {sizes['n_channels']} on the side "
            f"{side}, but {known['n_tokens']} and {known['n_channels']} on the other; matcher {matcher.name!r} cannot "
            "match them: give features of one model and one input size, or, if they differ in S alone, use "
            f"{matchers_of_unequal()}"
        )
    if source.get("unequal") and not matcher.takes_unequal:
        raise ConfigError(
            f"{side}: token_counts: the images of layer {layer!r} differ in their number of tokens, which matcher "
            f"{matcher.name!r} cannot match: use {matchers_of_unequal()}"
        )
    return sizes if known is None else {**sizes, "n_tokens": max(known["n_tokens"], sizes["n_tokens"])}


def _identify_source(
    session: Session, side: str, layer: str, data: FeaturesData, known: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return size and hash of ready-made features; as recorded, if the run has them all and the source is gone."""
    path, counts_path = data.layers[layer], data.token_counts.get(layer)
    here = known if known and known.get("path") == str(path.absolute()) else None
    if here and not path.exists():
        store = FeatureStore(session.directory.features, side, layer)
        if store.group.is_dir() and store.is_complete():
            session.warn(f"{path}: is gone; the run goes on with its own copy of these features")
            facts = {name: value for name, value in here.items() if name not in COUNTS_FACTS}
            return facts | _identify_counts(counts_path, facts, here)
    source = open_array(path, data.layout)
    signature = source.signature()
    facts = {
        "path": str(path.absolute()),
        "signature": signature,
        "sha256": here["sha256"] if here and here["signature"] == signature else source.digest(),
        "n_images": source.n_images,
        "sizes": {"n_tokens": source.n_tokens, "n_channels": source.n_channels},
    }
    return facts | _identify_counts(counts_path, facts, None)


def _identify_counts(
    path: Path | None, features: Mapping[str, Any], known: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return hash and kind of the token counts of some features; as known, if they are gone with the features."""
    if path is None:
        return {}
    place = str(path.absolute())
    same_place = known is not None and known.get("token_counts_path", place) == place
    if known and "token_counts_sha256" in known and same_place and not path.exists():
        return {name: known[name] for name in COUNTS_FACTS if name in known}
    n_tokens = features["sizes"]["n_tokens"]
    counts = load_token_counts(path, features["n_images"], n_tokens)
    return {
        "token_counts_path": place,
        "token_counts_sha256": hashlib.sha256(counts.tobytes()).hexdigest(),
        "unequal": bool(counts.min() < n_tokens),
    }


def _require_plain_name(side: str, layer: str) -> None:
    """Refuse a name of a layer that cannot be the name of a folder in the store."""
    if (
        not layer.strip(".")
        or layer != layer.strip()
        or not layer.isprintable()
        or "/" in layer
        or "\\" in layer
        or layer == "zarr.json"
        or layer.startswith("__")
        or len(layer.encode()) > LONGEST_NAME
    ):
        raise ConfigError(
            f"{side}: {layer!r} cannot name a layer: it becomes the name of folders and files in the run; use "
            f"printable characters without slashes, at most {LONGEST_NAME} bytes, for instance block-3 or layer.4"
        )

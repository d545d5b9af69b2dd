"""The features of a run: extracted or copied if an unfinished layer lacks them."""

from __future__ import annotations

from collections.abc import Mapping

from semrsm_dist.data.manifest import Manifest
from semrsm_dist.data.source import ImageSource
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.pipeline.session import Session
from semrsm_dist.pipeline.stages.extraction import extract_features
from semrsm_dist.pipeline.stages.importing import import_features
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.record import RunRecord, Side
from semrsm_dist.store.results import result_store


def provide_features(session: Session, record: RunRecord, manifests: Mapping[Side, Manifest]) -> None:
    """Import or extract what is missing of the features of the requested layers.

    Raises
    ------
    InputError, ResumeError, WorkError
        As `import_features` and `extract_features`.
    """
    config = session.config
    unfinished = [
        layer
        for layer in record.requested
        if not result_store(session.directory, record, layer).is_done(record.layout(layer))
    ]
    to_extract: dict[Side, tuple[ImageSource, Manifest]] = {}
    for side, manifest in manifests.items():
        for layer in record.requested:
            FeatureStore(session.directory.features, side, layer).create(
                record.counts[side],
                record.layers[layer].n_tokens,
                record.layers[layer].n_channels,
                record.chunk_size,
                config.features.dtype,
                record.id_of(layer),
            )
        for layer in unfinished:
            _remove_damaged(session, side, layer)
        data = config.data if side == "images" else config.queries
        if isinstance(data, FeaturesData):
            import_features(session, record, side, data, manifest)
        elif isinstance(data, ImageSource):
            to_extract[side] = data, manifest
    if to_extract:
        sizes = {layer: record.model.layers[layer] for layer in record.requested}
        extract_features(session, record, to_extract, sizes)


def _remove_damaged(session: Session, side: Side, layer: str) -> None:
    """Read the features of an unfinished layer once, so that those that cannot be decoded are made again."""
    with session.timed("check"):
        damaged = FeatureStore(session.directory.features, side, layer).remove_damaged()
    if damaged:
        session.warn(
            f"layer {layer}: damaged features of {side} were removed (chunks: {len(damaged)}) and are made again"
        )

"""The features of a run: extracted or copied if an unfinished layer lacks them."""

from __future__ import annotations

from collections.abc import Mapping

from semrsm_dist.data.manifest import Manifest
from semrsm_dist.data.source import ImageSource
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.pipeline.session import Session
from semrsm_dist.pipeline.stages.extraction import extract_features
from semrsm_dist.pipeline.stages.importing import import_features
from semrsm_dist.store import chunks
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.inventory import Inventory
from semrsm_dist.store.paths import RunPath
from semrsm_dist.store.record import RunRecord, Side
from semrsm_dist.store.results import result_store


def provide_features(session: Session, record: RunRecord, manifests: Mapping[Side, Manifest]) -> None:
    """Import or extract what is missing of the features of the requested layers.

    Raises InputError, ResumeError or WorkError as `import_features` and `extract_features` do.
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
            with session.timed("check"):
                if layer in unfinished:
                    _remove_damaged(session, side, layer)
                else:
                    group = FeatureStore(session.directory.features, side, layer).group
                    warn_of_damaged(session, session.inventory, group)
        data = config.data if side == "images" else config.queries
        if isinstance(data, FeaturesData):
            import_features(session, record, side, data, manifest)
        elif isinstance(data, ImageSource):
            to_extract[side] = data, manifest
    if to_extract:
        sizes = {layer: record.model.layers[layer] for layer in record.requested}
        extract_features(session, record, to_extract, sizes)


def _remove_damaged(session: Session, side: Side, layer: str) -> None:
    """Read the features of a layer that have changed since the last session, and remove those that are damaged."""
    group = FeatureStore(session.directory.features, side, layer).group
    damaged = session.inventory.find_damaged(group)
    for (_, name), places in damaged.items():
        for place in places:
            chunks.delete_chunk(group, name, place)
    if damaged:
        numbers = {place[0] for places in damaged.values() for place in places}
        session.warn(
            f"layer {layer}: damaged features of {side} were removed (chunks: {len(numbers)}) and are made again"
        )


def warn_of_damaged(session: Session, known: Inventory, folder: RunPath) -> None:
    """Read the features below a folder that have changed since an inventory, and warn of those that are damaged.

    They are left: their inputs may be gone, and what is finished does not need them.
    """
    for (group, name), places in known.find_damaged(folder).items():
        session.warn(
            f"{group / name}: damaged chunks: {len(places)}; what is finished does not need them; semrsm verify "
            "--repair makes them again"
        )

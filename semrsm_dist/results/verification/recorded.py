"""The configuration that a run's record has, with paths that mean the same in any working directory."""

from __future__ import annotations

import copy

from semrsm_dist.config.schema import RunConfig, parse_config
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.features.spec import WEIGHTS
from semrsm_dist.store.directory import RECORD, RunDirectory
from semrsm_dist.store.record import RunRecord

SECTIONS = {"images": "data", "queries": "queries"}


def recorded_config(directory: RunDirectory, record: RunRecord) -> RunConfig:
    """Return the configuration of a run's last session.

    Raises ConfigError if this installation does not understand it: a plugin is missing.
    """
    document = copy.deepcopy(record.config) | {"run": str(directory.path.absolute())}
    for side in record.sides:
        section = document[SECTIONS[side]]
        listing = record.cached.listings.get(side)
        if section["source"] != FeaturesData.model_fields["source"].default:
            document[SECTIONS[side]] = section | (listing or {})
            continue
        section["table"] = listing
        for layer in section["layers"]:
            source = record.cached.sources[f"{side}/{layer}"]
            section["layers"][layer] = source.path
            if source.token_counts_path is not None:
                section["token_counts"][layer] = source.token_counts_path
    model = record.cached.model
    if model is not None and model.weights is not None and document["model"]["weights"] not in WEIGHTS:
        document["model"]["weights"] = model.weights
    return parse_config(document, origin=str(directory.path / RECORD))

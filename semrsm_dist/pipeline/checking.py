"""Finding mistakes before a run begins."""

from __future__ import annotations

from collections.abc import Mapping

from semrsm_dist.config.schema import RunConfig, check_sources
from semrsm_dist.data.sources import Data
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.pipeline.feature_inputs import check_features
from semrsm_dist.pipeline.inputs import check_model
from semrsm_dist.store.record import Side


def check_run(config: RunConfig) -> None:
    """Find what a run would refuse, as far as that takes neither the content of images nor a download.

    Raises InputError or ConfigError if there are no such images or features, features do not fit their token counts,
    their table, each other or the matcher, or there is no such model, layer or pretrained weights.
    """
    check_sources(config)
    sides: Mapping[Side, Data | None] = {"images": config.data, "queries": config.queries}
    ready = {side: data for side, data in sides.items() if isinstance(data, FeaturesData)}
    check_features(ready, config.matching.make_matcher())
    if config.model is not None:
        check_model(config.model)

"""Outputs of a model's head for a run's images: extracted like a layer of one token, kept beside the features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.config.schema import RunConfig
from semrsm_dist.data.source import ImageSource
from semrsm_dist.errors import ConfigError
from semrsm_dist.pipeline.inputs import measure_layer, model_spec
from semrsm_dist.pipeline.session import Session
from semrsm_dist.pipeline.stages.extraction import extract_features
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.record import RunRecord, Side

if TYPE_CHECKING:
    from semrsm_dist.features.models import LoadedModel

SIDE: Side = "images"


@dataclass(frozen=True, slots=True, eq=False)
class ModelOutputs:
    """The outputs of a model's head."""

    logits: NDArray[np.float32]
    """(N, K) before softmax or sigmoid."""
    meaning: str
    """`classes` if exactly one of K applies, `labels` if each of K applies or not."""


def require_outputs(config: RunConfig, meaning: str | None = None) -> tuple[LoadedModel, str]:
    """Return the model of a configuration and what its outputs mean, before anything is computed.

    Raises ConfigError if there is no model, or no probabilities can be made of its outputs; see
    `semrsm_dist.features.outputs.find_meaning`.
    """
    if config.model is None or not isinstance(config.data, ImageSource):
        raise ConfigError(
            "ready-made features come without a model, so there are no class probabilities of the images; give its "
            "probabilities as an array (images, classes): --with probabilities=FILE.npy"
        )
    from semrsm_dist.features.models import load_model  # noqa: PLC0415 - torch only where a model is needed
    from semrsm_dist.features.outputs import find_meaning  # noqa: PLC0415

    model = load_model(model_spec(config.model))
    return model, find_meaning(model, meaning)


def extract_outputs(session: Session, record: RunRecord | None, given: str | None) -> ModelOutputs:
    """Extract what is missing of the outputs for a run's images, and read them; `given` is their meaning, if known.

    Raises
    ------
    ConfigError
        If there is no run yet, or no probabilities can be made of the outputs.
    InputError, ResumeError, WorkError
        As `extract_features`.
    """
    config = session.config
    model, meaning = require_outputs(config, given)
    if record is None or config.model is None or not isinstance(config.data, ImageSource):
        raise ConfigError(
            f"{session.directory.path}: there is no run here yet, so there are no images to classify; start it"
        )
    from semrsm_dist.features.outputs import OUTPUTS, describe_outputs  # noqa: PLC0415 - as above

    manifest = session.directory.read_manifest(SIDE)
    sizes = measure_layer(describe_outputs(model))
    store = FeatureStore(session.directory.features, SIDE, OUTPUTS)
    n_images, run = manifest.n_readable, record.id_of()
    store.create(n_images, sizes.n_tokens, sizes.n_channels, record.chunk_size, "float32", run)
    store.remove_damaged()
    extract_features(session, record, {SIDE: (config.data, manifest)}, {OUTPUTS: sizes})
    logits = store.read(slice(0, n_images))[:, 0].astype(np.float32, copy=False)
    return ModelOutputs(logits, meaning)

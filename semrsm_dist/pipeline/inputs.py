"""What a run is: its images, its model and layers, and the fingerprint that a resume is held against.

The answers are kept in the run's record, so that a resume whose questions have not changed needs neither the
model nor a second look at unchanged files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semrsm_dist.config.schema import (
    Data,
    FeaturesData,
    ModelConfig,
    RunConfig,
    StorageConfig,
    fingerprint_fields,
)
from semrsm_dist.data.manifest import Manifest
from semrsm_dist.errors import ConfigError
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.pipeline.feature_inputs import resolve_features
from semrsm_dist.pipeline.session import Session
from semrsm_dist.pipeline.stages.scan import scan_images
from semrsm_dist.store.fingerprint import Fingerprint, flatten

if TYPE_CHECKING:
    from semrsm_dist.features.layers import LayerInfo
    from semrsm_dist.features.models import LoadedModel

FORMAT = 1
"""Version of the run directory's layout."""

Record = dict[str, Any]


@dataclass(frozen=True)
class RunInputs:
    """What a run is.

    Attributes
    ----------
    manifests
        By side: `images`, and `queries` in a rectangular run.
    layers
        For each layer that is asked for, in network order: n_tokens and n_channels.
    facts
        What the fingerprint is made of, nested.
    layer_facts
        The same for each layer; only layers that both sides of a comparison have are compared.
    cached
        Answers to keep in the record, so that they need not be found again.
    """

    manifests: dict[str, Manifest]
    layers: dict[str, dict[str, int]]
    facts: Fingerprint
    layer_facts: dict[str, Fingerprint] = field(default_factory=dict)
    cached: Record = field(default_factory=dict)

    @property
    def row_side(self) -> str:
        """The side of the matrix's rows."""
        return "queries" if "queries" in self.manifests else "images"

    def counts(self) -> dict[str, int]:
        """Return the number of usable images on each side."""
        return {side: len(manifest.readable) for side, manifest in self.manifests.items()}


def resolve_inputs(session: Session, matcher: Matcher, record: Record | None) -> RunInputs:
    """Find out what the configuration's run is.

    Parameters
    ----------
    session
        The session.
    matcher
        The configured matcher.
    record
        The run's record, or None for a new run.

    Raises
    ------
    InputError, ConfigError
        If images, features, model or layers cannot be used.
    """
    config = session.config
    sides: dict[str, Data] = {"images": config.data}
    if config.queries is not None:
        sides["queries"] = config.queries
    cached = (record or {}).get("cached", {})
    if isinstance(config.data, FeaturesData):
        manifests, layers, layer_facts, kept = resolve_features(session, matcher, sides, cached)
        inputs = RunInputs(manifests, layers, {}, layer_facts, kept)
    else:
        manifests = {side: scan_images(session, side, data) for side, data in sides.items()}  # type: ignore[arg-type]
        layers, facts, kept = _identify_model(session, _require_model(config), cached)
        inputs = RunInputs(manifests, layers, facts, cached=kept)
    facts = flatten(
        {
            "format": FORMAT,
            **{
                side: {
                    **fingerprint_fields(sides[side]),
                    "count": len(manifest.readable),
                    "sha256": manifest.digest(),
                }
                for side, manifest in inputs.manifests.items()
            },
            "features": {"dtype": config.features.dtype},
            "matching": {"matcher": matcher.name, "version": matcher.version, **matcher.parameters},
        }
    )
    return RunInputs(inputs.manifests, inputs.layers, facts | inputs.facts, inputs.layer_facts, inputs.cached)


def model_spec(config: ModelConfig) -> Any:
    """Return the `ModelSpec` of a configuration's section; torch and timm load here."""
    from semrsm_dist.features.models import ModelSpec  # noqa: PLC0415 - torch only where a model is needed

    local = _weights_file(config)
    weights = str(local.absolute()) if local is not None and config.weights != "digits" else config.weights
    return ModelSpec(config.name, weights, config.input_size, config.seed, config.prompt)


def _require_model(config: RunConfig) -> ModelConfig:
    if config.model is None:
        raise ConfigError("images need a model; add the section model with name, weights and layers")
    return config.model


def _identify_model(
    session: Session, config: ModelConfig, cached: Mapping[str, Any]
) -> tuple[dict[str, dict[str, int]], Fingerprint, Record]:
    """Return layers, facts and what to keep; the model is loaded only if the question is a new one."""
    local = _weights_file(config)
    question = {
        "name": config.name,
        "weights": config.weights if local is None else hash_file(local),
        "input_size": list(config.input_size) if config.input_size else None,
        "seed": config.seed if config.weights == "random" else None,
        "prompt": config.prompt,
        "layers": list(config.layers),
        # Other versions may build or feed the network otherwise.
        "timm": metadata.version("timm"),
        "transformers": _version_if_installed("transformers"),
    }
    known = cached.get("model")
    precision = config.precision
    if precision == "auto":
        # A run keeps the precision it began with, wherever it goes on.
        precision = known["precision"] if known else ("float16" if session.engine.gpus else "float32")
    if known and known["question"] == question:
        facts, layers = known["facts"], known["layers"]
    else:
        with session.timed("model"):
            facts, layers = _load_and_describe(config)
    kept = {"model": {"question": question, "precision": precision, "facts": facts, "layers": layers}}
    return layers, flatten({"model": {**facts, "precision": precision}}), kept


def _load_and_describe(config: ModelConfig) -> tuple[dict[str, Any], dict[str, dict[str, int]]]:
    from semrsm_dist.features.layers import resolve_layers  # noqa: PLC0415 - torch only where a model is needed
    from semrsm_dist.features.models import load_model  # noqa: PLC0415

    model = load_model(model_spec(config))
    return describe_model(model, resolve_layers(model, config.layers))


def describe_model(
    model: LoadedModel, layers: Sequence[LayerInfo]
) -> tuple[dict[str, Any], dict[str, dict[str, int]]]:
    """Return what a model's features depend on, and the sizes of its layers: the same wherever it is loaded."""
    description = model.describe()
    facts = {
        "name": description["name"],
        "weights_sha256": description["weights_sha256"],
        "preprocessing": description["data_config"],
        "n_prefix_tokens": description["n_prefix_tokens"],
        **{key: description[key] for key in ("prompt", "build_options") if description[key]},
    }
    sizes = {layer.name: {"n_tokens": layer.n_tokens, "n_channels": layer.n_channels} for layer in layers}
    return facts, sizes


def _version_if_installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _weights_file(config: ModelConfig) -> Path | None:
    """Return the file that the weights come from, if they come from one that is here."""
    if config.weights in ("pretrained", "random"):
        return None
    if config.weights == "digits":
        shipped = resources.files("semrsm_dist.features").joinpath(
            "weights", f"{config.name}.digits.safetensors"
        )
        path = Path(str(shipped))
    else:
        path = Path(os.path.expandvars(config.weights)).expanduser()
    return path if path.is_file() else None


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def compare(inputs: RunInputs, record: Record) -> tuple[Fingerprint, Fingerprint]:
    """Return the recorded and the requested fingerprint, cut to the layers that both have."""
    recorded, requested = dict(record["fingerprint"]), dict(inputs.facts)
    for layer, facts in inputs.layer_facts.items():
        if layer in record["layers"]:
            recorded |= record["layers"][layer].get("facts", {})
            requested |= facts
    return recorded, requested


def storage_itemsize(config: StorageConfig) -> int:
    """Return the bytes of one stored feature."""
    return 2 if config.dtype == "float16" else 4

"""The inputs of a run: its images, its model and layers, and the fingerprint that a resume is compared with.

They are kept in the run's record, so that a resume with an unchanged configuration loads no model and does not read
unchanged files again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semrsm_dist.config.schema import ModelConfig
from semrsm_dist.data.entries import ImageEntry
from semrsm_dist.data.manifest import Manifest
from semrsm_dist.data.opening import require_input
from semrsm_dist.data.source import ImageSource
from semrsm_dist.data.sources import Data
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.errors import ConfigError, MissingInputError
from semrsm_dist.features.spec import WEIGHTS, ModelSpec, resolve_precision, weights_path
from semrsm_dist.fields import fingerprint_fields
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.pipeline.feature_inputs import resolve_features
from semrsm_dist.pipeline.gone_inputs import continue_without, read_copy, with_absolute_paths
from semrsm_dist.pipeline.session import Session
from semrsm_dist.pipeline.stages.scan import list_images, scan_images, warn_of_copies
from semrsm_dist.store.fingerprint import Fingerprint, flatten
from semrsm_dist.store.record import Answers, LayerSizes, ModelAnswer, RunRecord, Side

if TYPE_CHECKING:
    from semrsm_dist.features.models import LoadedModel
    from semrsm_dist.features.probing import LayerInfo


@dataclass(frozen=True)
class RunInputs:
    """What a run is made of."""

    manifests: dict[Side, Manifest]
    """By side: `images`, and `queries` in a rectangular run."""
    layers: dict[str, LayerSizes]
    """The sizes of each requested layer, in network order."""
    facts: Fingerprint
    """What the numbers of all layers depend on."""
    layer_facts: dict[str, Fingerprint] = field(default_factory=dict)
    """The same for each layer; only layers that both sides of a comparison have are compared."""
    cached: Answers = field(default_factory=Answers)
    """Facts to keep in the record, so that they need not be found again."""

    def counts(self) -> dict[Side, int]:
        """Return the number of usable images on each side."""
        return {side: manifest.n_readable for side, manifest in self.manifests.items()}


def resolve_inputs(session: Session, matcher: Matcher, record: RunRecord | None) -> RunInputs:
    """Resolve a configuration to the inputs of its run; `record` is None for a new one.

    Raises InputError or ConfigError if images, features, model or layers cannot be used.
    """
    config = session.config
    sides: dict[Side, Data] = {"images": config.data}
    if config.queries is not None:
        sides["queries"] = config.queries
    cached = record.cached if record else Answers()
    if isinstance(config.data, FeaturesData):
        ready = {side: data for side, data in sides.items() if isinstance(data, FeaturesData)}
        manifests, layers, layer_facts, cached = resolve_features(session, matcher, ready, cached)
        facts = {}
    else:
        sources = {side: data for side, data in sides.items() if isinstance(data, ImageSource)}
        manifests, model = _resolve_images(session, sources, cached)
        layers, layer_facts = model.layers, {}
        listings = {side: with_absolute_paths(source) for side, source in sources.items()}
        cached = Answers(model=model, listings=listings)
        facts = flatten({"model": {**model.facts, "precision": model.precision}})
        facts |= {f"model.{key}": True for key in ("compile", "jpeg_draft") if getattr(config.model, key)}
    facts |= flatten(
        {
            **{
                side: {
                    **fingerprint_fields(sides[side]),
                    "count": manifest.n_readable,
                    "sha256": manifest.digest(),
                }
                for side, manifest in manifests.items()
            },
            "features": {"dtype": config.features.dtype},
            "matching": {"matcher": matcher.name, "version": matcher.version, **matcher.parameters},
        }
    )
    if config.output.neighbours is not None:
        neighbours = {
            **fingerprint_fields(config.output.neighbours),
            "groups_sha256": _digest_groups(manifests),
        }
        facts |= flatten({"output": {"neighbours": neighbours}})
    return RunInputs(manifests, layers, facts, layer_facts, cached)


def _digest_groups(manifests: Mapping[Side, Manifest]) -> str | None:
    """Return a hash of the images' groups, whose images are no neighbours of each other; None if there are none."""
    groups = {side: manifest.groups() for side, manifest in manifests.items()}
    if not any(group is not None for names in groups.values() for group in names):
        return None
    return hashlib.sha256(json.dumps(groups, sort_keys=True).encode()).hexdigest()


def _resolve_images(
    session: Session, sources: Mapping[Side, ImageSource], cached: Answers
) -> tuple[dict[Side, Manifest], ModelAnswer]:
    """Return the images and the model; what is quickly found wrong comes first, reading the images last."""
    config = session.config.model
    if config is None:
        raise ConfigError("images need a model; add the section model with name, weights and layers")
    entries: dict[Side, list[ImageEntry]] = {}
    copies: dict[Side, tuple[Manifest, str]] = {}
    for side, source in sources.items():
        try:
            entries[side] = list_images(session, source)
        except MissingInputError as error:
            copy = read_copy(session, side)
            if copy is None or cached.listings.get(side) != with_absolute_paths(source):
                raise
            copies[side] = copy, str(error)
    model = _identify_model(session, config, cached.model, tuple(sources))
    manifests = {}
    for side, source in sources.items():
        if side in copies:
            manifests[side], gone = copies[side]
            continue_without(session, f"{side}: {gone}", [(side, layer) for layer in model.layers])
        else:
            manifests[side] = scan_images(session, side, source, entries[side], model)
    warn_of_copies(session, manifests)
    return manifests, model


def model_spec(config: ModelConfig) -> ModelSpec:
    """Return the model of a configuration, with the absolute path of its weights."""
    spec = ModelSpec(
        config.name, config.weights, config.input_size, config.seed, config.prompt, config.preprocessing
    )
    file = spec.weights_file()
    return spec if file is None or config.weights in WEIGHTS else replace(spec, weights=str(file.absolute()))


def _identify_model(
    session: Session, config: ModelConfig, known: ModelAnswer | None, sides: Sequence[Side]
) -> ModelAnswer:
    """Return the facts about the model, which is loaded only if they are not recorded yet."""
    precision = resolve_precision(config.precision, gpu=bool(session.engine.gpus))
    if known and config.precision == "auto":
        precision = known.precision  # a run keeps the precision it began with, wherever it continues
    question: dict[str, Any] = {
        "name": config.name,
        "input_size": list(config.input_size) if config.input_size else None,
        "seed": config.seed if config.weights == "random" else None,
        "prompt": config.prompt,
        "preprocessing": config.preprocessing,
        "layers": list(config.layers),
    }
    try:
        file = model_spec(config).weights_file()
    except MissingInputError as error:
        is_known = known and known.weights == _origin(config)
        if known is None or not is_known or not question.items() <= known.question.items():
            raise
        continue_without(session, str(error), [(side, layer) for side in sides for layer in known.layers])
        return known.model_copy(update={"precision": precision})
    question |= {
        "weights": config.weights if file is None else hash_file(file),
        # Other versions may build or feed the network differently.
        "timm": metadata.version("timm"),
        "transformers": find_version("transformers"),
    }
    weights = None if file is None else _origin(config)
    if known and known.question == question:
        return known.model_copy(update={"weights": weights, "precision": precision})
    from semrsm_dist.features.layers import resolve_layers  # noqa: PLC0415 - torch only where a model is needed
    from semrsm_dist.features.models import load_model  # noqa: PLC0415

    with session.timed("model"):
        model = load_model(model_spec(config))
        facts, layers = describe_model(model, resolve_layers(model, config.layers))
    return ModelAnswer(question=question, facts=facts, layers=layers, weights=weights, precision=precision)


def _origin(config: ModelConfig) -> str:
    """Return the absolute path of a file of weights, or the word for them."""
    return config.weights if config.weights in WEIGHTS else str(weights_path(config.weights))


def check_model(config: ModelConfig) -> None:
    """Find what is wrong with the model of a run, without downloading weights.

    Raises ConfigError or InputError if there is no such model, layer, input size, file of weights or pretrained
    weights.
    """
    spec = model_spec(config)
    from semrsm_dist.features import registry  # noqa: PLC0415 - timm only where a model is needed
    from semrsm_dist.features.layers import resolve_layers  # noqa: PLC0415
    from semrsm_dist.features.models import load_model  # noqa: PLC0415

    if spec.weights == "pretrained":
        if spec.name not in registry.CLIPSEG:
            registry.require_tag(spec.name)
        spec = replace(spec, weights="random")  # which layers there are does not depend on them
    resolve_layers(load_model(spec), config.layers)


def describe_model(
    model: LoadedModel, layers: Sequence[LayerInfo]
) -> tuple[dict[str, Any], dict[str, LayerSizes]]:
    """Return what a model's features depend on, and the sizes of its layers: the same wherever it is loaded."""
    description = model.describe()
    facts = {
        "name": description["name"],
        "weights_sha256": description["weights_sha256"],
        "preprocessing": description["data_config"],
        "n_prefix_tokens": description["n_prefix_tokens"],
        **{key: description[key] for key in ("revision", "prompt", "build_options") if description[key]},
    }
    return facts, {layer.name: measure_layer(layer) for layer in layers}


def measure_layer(layer: LayerInfo) -> LayerSizes:
    """Return the sizes of a layer of a loaded model."""
    return LayerSizes(n_tokens=layer.n_tokens, n_channels=layer.n_channels)


def find_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal digits; errors as `require_input`."""
    require_input(path)
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def compare(inputs: RunInputs, record: RunRecord) -> tuple[Fingerprint, Fingerprint]:
    """Return the recorded and the requested fingerprint, restricted to the layers that both have."""
    recorded, requested = dict(record.fingerprint), dict(inputs.facts)
    for layer, facts in inputs.layer_facts.items():
        if layer in record.layers:
            recorded |= record.layers[layer].facts
            requested |= facts
    return recorded, requested

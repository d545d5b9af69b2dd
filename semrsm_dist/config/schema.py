"""The configuration of a run: strict, small, and explicit about what a change means for resuming.

A configuration is a YAML file. Unknown keys, wrong types and impossible values are refused with the file,
the line, the key, the value and the remedy. Fields fall into two groups:

* those marked `AffectsResult` alter the entries of the matrix: what they resolve to (pixels, weights, parameters) is
  the run's fingerprint, and a run directory refuses to continue when it differs;
* all others (engine, workers, memory, retries, kernels, evaluation) may change from one start to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from semrsm_dist.config.matching import MatchingConfig, matching_keys
from semrsm_dist.config.problems import SIDES, explain
from semrsm_dist.config.reading import Places, apply_overrides, read_document
from semrsm_dist.data.sources import SOURCES, Data
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.engine import ENGINES
from semrsm_dist.errors import ConfigError, InputError, did_you_mean
from semrsm_dist.fields import AffectsResult, AutoCount, AutoPair, Count, Real, RunLocation, Section, Seed


class ModelConfig(Section):
    """The vision model, its layers to read, and how it runs."""

    name: Annotated[str, AffectsResult()]
    weights: Annotated[str, AffectsResult()] = "pretrained"
    layers: Annotated[
        tuple[str, ...],
        BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
        Field(min_length=1),
    ]
    input_size: Annotated[AutoPair, AffectsResult()] = None
    preprocessing: Annotated[Literal["crop", "squash", "pad"] | None, AffectsResult()] = None
    prompt: Annotated[str | None, AffectsResult()] = None
    seed: Annotated[Seed, AffectsResult()] = 0
    precision: Annotated[Literal["auto", "float32", "float16", "bfloat16"], AffectsResult()] = "auto"
    compile: Annotated[bool, AffectsResult(added=True)] = False
    jpeg_draft: Annotated[bool, AffectsResult(added=True)] = False
    batch_size: Count = 32
    actors: AutoCount = None


class StorageConfig(Section):
    """How features are kept on disk."""

    dtype: Annotated[Literal["float32", "float16"], AffectsResult()] = "float32"

    @property
    def itemsize(self) -> int:
        """Bytes of one stored number."""
        return 2 if self.dtype == "float16" else 4


class KernelConfig(Section):
    """A kernel of the run's matrices; `sigma` is the RBF width, from the median distance when absent."""

    name: Literal["linear", "cosine", "rbf"]
    sigma: Annotated[Real, Field(gt=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _only_rbf_has_a_width(self) -> KernelConfig:
        if self.sigma is not None and self.name != "rbf":
            raise ValueError(f"sigma belongs to the kernel rbf, not to {self.name}; remove it")
        return self


class RetrievalConfig(Section):
    """Retrieval on the images' labels, reported in the summary when there are labels."""

    k: tuple[Count, ...] = (1,)
    kernel: Literal["linear", "cosine", "rbf"] = "cosine"


class NeighboursConfig(Section):
    """The most similar images of each, by the cosine similarity after matching."""

    k: Annotated[Count, AffectsResult()] = 10
    """How many. Images of the same group are none of them."""
    threshold: Annotated[Annotated[Real, Field(ge=-1, le=1)] | None, AffectsResult()] = None
    """Least similarity; None is none."""

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: object) -> object:
        return {"k": value} if isinstance(value, int) and not isinstance(value, bool) else value


class OutputConfig(Section):
    """What a run leaves."""

    matrices: Literal["derived", "stored"] = "derived"
    """`derived`: matrices are computed from the tiles when they are read; `stored`: they are written, too, as plain
    Zarr for other programs."""
    neighbours: NeighboursConfig | None = None
    """Keep only the neighbours of each image, and no matrices; `output: neighbours` keeps ten."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        if isinstance(value, str) and value != "neighbours":
            raise ValueError(f"expected neighbours, or keys and values{did_you_mean(value, ['neighbours'])}")
        return {"neighbours": {}} if value == "neighbours" else value

    @model_validator(mode="after")
    def _one_or_the_other(self) -> OutputConfig:
        if self.neighbours is not None and self.matrices == "stored":
            raise ValueError(
                "a run that keeps neighbours has no matrices to store; remove one of the two keys"
            )
        return self


class RunConfig(Section):
    """One run: one directory, one set of images (or queries against images), some layers."""

    run: RunLocation
    data: Data
    queries: Data | None = None
    model: ModelConfig | None = None
    features: StorageConfig = StorageConfig()
    matching: MatchingConfig = Field(default_factory=MatchingConfig)
    kernels: tuple[KernelConfig, ...] = (KernelConfig(name="cosine"),)
    output: OutputConfig = OutputConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    unreadable: Literal["refuse", "skip"] = "refuse"
    engine: str = "local"
    address: str | None = None
    workers: AutoCount = None

    @field_validator("engine")
    @classmethod
    def _engine_is_known(cls, name: str) -> str:
        known = ENGINES.names()
        if name not in known:
            raise ValueError(f"expected one of {', '.join(known)}{did_you_mean(name, known)}")
        return name

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> RunConfig:
        """Return the configuration that nested mappings describe, as in a file.

        Raises
        ------
        ConfigError
            With one line per problem: key, value, what is expected.
        """
        return parse_config(document)

    @model_validator(mode="after")
    def _images_need_a_model(self) -> RunConfig:
        ready = isinstance(self.data, FeaturesData)
        if self.queries is not None and isinstance(self.queries, FeaturesData) != ready:
            raise _refusal(
                "queries",
                "data and queries must both be images or both be ready-made features; give both of one kind",
            )
        if isinstance(self.queries, FeaturesData) and isinstance(self.data, FeaturesData):
            missing = set(self.queries.layers) ^ set(self.data.layers)
            if missing:
                raise _refusal(
                    "queries",
                    f"data and queries must name the same layers; only one has {', '.join(sorted(missing))}: "
                    "add them to the other, or remove them",
                )
        if ready and self.model is not None:
            raise _refusal("model", "ready-made features need no model; remove the section model")
        if not ready and self.model is None:
            raise _refusal("data", "images need a model; add the section model with name, weights and layers")
        return self

    @model_validator(mode="after")
    def _drafts_are_of_whole_images(self) -> RunConfig:
        if self.model is not None and self.model.jpeg_draft:
            for key in SIDES:
                source = getattr(self, key)
                if source is not None and not source.has_drafts:
                    raise _refusal(
                        "model",
                        f"model.jpeg_draft decodes files at a part of their size, but the images of the source "
                        f"{source.source} ({key}) are not files as they are; remove jpeg_draft",
                    )
        return self

    @model_validator(mode="after")
    def _neighbours_need_bounds(self) -> RunConfig:
        if self.output.neighbours is not None and self.matching.matcher != "auction":
            raise _refusal(
                "output",
                f"neighbours are found by bounds that hold for the matcher auction alone, not for "
                f"{self.matching.matcher}: use it, or remove output.neighbours",
            )
        return self

    @model_validator(mode="after")
    def _kernels_are_distinct(self) -> RunConfig:
        names = [kernel.name for kernel in self.kernels]
        if len(set(names)) != len(names):
            raise _refusal("kernels", f"duplicate kernels: {', '.join(names)}; remove the repeated one")
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration file.

    Parameters
    ----------
    path
        A YAML file.
    overrides
        `dotted.key=value` settings that replace what the file says; the value is YAML.

    Returns
    -------
    RunConfig
        With paths of data and run as written, except for `~`: relative to the working directory.

    Raises
    ------
    ConfigError
        If the file cannot be read or anything in it is not understood. The message has one line per problem.
    """
    if not isinstance(path, str | Path):
        raise ConfigError(
            f"expected the path of a YAML file, found {path!r}; RunConfig.from_dict takes nested mappings"
        )
    document, places = read_document(Path(path), overrides)
    return parse_config(document, origin=str(path), places=places)


def as_config(config: RunConfig | Mapping[str, Any] | str | Path) -> RunConfig:
    """Return a configuration that is given as such, as nested mappings, or as the path of a YAML file.

    Raises ConfigError if it cannot be read or anything in it is not understood.
    """
    if isinstance(config, RunConfig):
        return config
    if isinstance(config, Mapping):
        return RunConfig.from_dict(config)
    if isinstance(config, str | Path):
        return load_config(config)
    raise ConfigError(
        f"expected a configuration (RunConfig, nested mappings or the path of a YAML file), found {config!r}"
    )


def check_sources(config: RunConfig) -> None:
    """Look whether what a configuration's data sources name is there.

    Raises InputError with one line for `data` and one for `queries`.
    """
    problems = []
    for key in SIDES:
        source = getattr(config, key)
        try:
            if source is not None:
                source.check()
        except InputError as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise InputError("\n".join(problems))


def default_config(document: Mapping[str, Any], overrides: Sequence[str], *, origin: str) -> RunConfig:
    """Return a configuration that ships as nested mappings, with overrides as in `load_config`.

    Raises ConfigError if an override is not understood.
    """
    own, places = deepcopy(dict(document)), Places()
    apply_overrides(own, places, overrides)
    return parse_config(own, origin=origin, places=places)


def parse_config(
    document: Mapping[str, Any], *, origin: str = "configuration", places: Places | None = None
) -> RunConfig:
    """Validate a configuration given as nested mappings; `places` says where each key is written, by its path.

    Raises ConfigError with one line per problem: place, key, value, what is expected.
    """
    if not isinstance(document, Mapping):
        raise ConfigError(f"{origin}: expected nested mappings, found {document!r}")
    places = places or {}
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        keys = _section_keys() | matching_keys(document)
        raise ConfigError("\n".join(explain(error.errors(), document, origin, places, keys))) from error


def _refusal(key: str, reason: str) -> PydanticCustomError:
    """Return an error of the whole configuration to be reported at one of its keys."""
    return PydanticCustomError("refused", "{reason}", {"key": key, "reason": reason})


def _section_keys() -> dict[str, list[str]]:
    """Return the keys of the sections, as `explain` takes them."""
    fields = RunConfig.model_fields
    sections = {name: _section_in(field.annotation) for name, field in fields.items() if name not in SIDES}
    keys = {"": list(fields)}
    for name, source in SOURCES.usable():
        keys[f"data (source: {name})"] = list(source.model_fields)
    return keys | {name: list(section.model_fields) for name, section in sections.items() if section}


def _section_in(annotation: Any) -> type[Section] | None:
    """Return the section that a type holds, such as `KernelConfig` for `tuple[KernelConfig, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)

"""The configuration of a run: strict, small, and explicit about what a change means for resuming.

A configuration is a YAML file. Unknown keys, wrong types and impossible values are refused with the file,
the line, the key, the value and the remedy. Fields fall into two groups:

* those marked `AffectsResult` alter the entries of the matrix: what they resolve to (pixels, weights, parameters) is
  the run's fingerprint, and a run directory refuses to continue when it differs;
* all others (engine, workers, memory, retries, kernels, evaluation) may change from one start to the next.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from semrsm_dist.config.problems import SIDES, explain
from semrsm_dist.config.reading import Places, apply_overrides, read_document
from semrsm_dist.data.sources import SOURCES, Data
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.engine import ENGINES
from semrsm_dist.errors import ConfigError, InputError, did_you_mean
from semrsm_dist.fields import (
    AffectsResult,
    AutoCount,
    AutoPair,
    Count,
    Real,
    RunLocation,
    Section,
    Seed,
)

if TYPE_CHECKING:
    from semrsm_dist.matching.matcher import Matcher


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
    batch_size: Count = 32
    actors: AutoCount = None


class StorageConfig(Section):
    """How features are kept on disk."""

    dtype: Annotated[Literal["float32", "float16"], AffectsResult()] = "float32"


def _matcher_name(value: str) -> str:
    from semrsm_dist.matching.matchers import MATCHERS  # noqa: PLC0415 - loads numba; not needed for --help

    if value not in MATCHERS.names():
        raise ValueError(
            f"expected one of {', '.join(MATCHERS.names())}{did_you_mean(value, MATCHERS.names())}"
        )
    return value


class _Matching(Section):
    """The keys of `matching` that are not a matcher's own."""

    matcher: Annotated[str, AfterValidator(_matcher_name), AffectsResult()] = "auction"
    """Its name."""
    tile: AutoCount = None
    """Images along an edge of a tile, which workers match at a time; None chooses by time. Of very many images, tiles
    are written in larger squares, so that there are not too many files."""
    worker_memory: ByteSize = Field(default=ByteSize(1024**3), ge=16 * 1024**2)
    """Memory of a worker, of matching and of every other stage: features beyond it are cut into smaller chunks and
    tiles, and a machine runs only as many workers at once as it has memory for."""
    task_seconds: Annotated[Real, Field(gt=0)] = 15.0
    """How long a task of matching is to take."""
    attempts: Count = 3
    """How often a unit of work is tried in all before it is set aside: a tile, and likewise images in extraction,
    chunks in import and assembly."""
    stall_seconds: Annotated[Real, Field(gt=0)] = 1800.0
    """A worker hangs if nothing has come of its task for so long, and for ten times as long as the task should take.
    Another one takes its place, and that was one attempt."""


class MatchingConfig(_Matching, extra="allow"):
    """The matcher and the resources of matching; other keys are the matcher's parameters."""

    @model_validator(mode="before")
    @classmethod
    def _matcher_takes_the_rest(cls, value: object) -> object:
        """Validate all keys at once: those of this section, and those that the matcher declares."""
        if not isinstance(value, Mapping):
            return value
        own = {name: given for name, given in value.items() if name in _Matching.model_fields}
        section = _section_of_matcher(value.get("matcher", "auction"))
        if section is None:  # the matcher is unknown, and so are its parameters
            return own
        parameters = {name: given for name, given in value.items() if name not in own and given is not None}
        return section.model_validate(own | parameters).model_dump(exclude_unset=True)

    @property
    def parameters(self) -> dict[str, Any]:
        """Return the matcher's parameters that were given."""
        return dict(self.model_extra or {})


def _section_of_matcher(name: object) -> type[Section] | None:
    """Return the section `matching` for one matcher, or None if there is no such matcher."""
    from semrsm_dist.matching.matchers import MATCHERS  # noqa: PLC0415 - as above

    if name not in MATCHERS.names():
        return None
    return _section_of(MATCHERS.load(str(name)))


@functools.cache
def _section_of(kind: type[Matcher]) -> type[Section]:
    """Return the section `matching` with the parameters of a matcher; making it takes longer than all else."""
    taken = kind.model_fields.keys() & _Matching.model_fields.keys()
    if taken:
        raise ConfigError(
            f"matcher {kind.name!r} has parameters named like keys of the section matching "
            f"({', '.join(sorted(taken))}): rename them in the matcher"
        )
    return create_model("Matching", __base__=(_Matching, kind))


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

    Raises
    ------
    ConfigError
        If it cannot be read or anything in it is not understood.
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

    Raises
    ------
    InputError
        With one line for `data` and one for `queries`.
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

    Raises
    ------
    ConfigError
        If an override is not understood.
    """
    own, places = deepcopy(dict(document)), Places()
    apply_overrides(own, places, overrides)
    return parse_config(own, origin=origin, places=places)


def parse_config(
    document: Mapping[str, Any], *, origin: str = "configuration", places: Places | None = None
) -> RunConfig:
    """Validate a configuration given as nested mappings; `places` says where each key is written, by its path.

    Raises
    ------
    ConfigError
        With one line per problem: place, key, value, what is expected.
    """
    if not isinstance(document, Mapping):
        raise ConfigError(f"{origin}: expected nested mappings, found {document!r}")
    places = places or {}
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        keys = _section_keys() | _matching_keys(document)
        raise ConfigError("\n".join(explain(error.errors(), document, origin, places, keys))) from error


def result_fields(section: BaseModel) -> dict[str, Any]:
    """Return the fields of a section that are marked `AffectsResult`, by name."""
    return {
        name: getattr(section, name)
        for name, field in type(section).model_fields.items()
        if any(isinstance(mark, AffectsResult) for mark in field.metadata)
    }


def fingerprint_fields(section: BaseModel) -> dict[str, Any]:
    """Return `result_fields` as a fingerprint knows them, and those of the sections within this one.

    Added fields that are at their defaults are left out.
    """
    fields = type(section).model_fields
    own = {
        name: value
        for name, value in result_fields(section).items()
        if value != fields[name].default or AffectsResult(added=True) not in fields[name].metadata
    }
    within = {name: getattr(section, name) for name in fields}
    return own | {
        name: fingerprint_fields(value) for name, value in within.items() if isinstance(value, BaseModel)
    }


def _matching_keys(document: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the keys of `matching` for the configured matcher, and those of other matchers."""
    from semrsm_dist.matching.matchers import MATCHERS  # noqa: PLC0415 - as above

    given = document.get("matching")
    chosen = str(given.get("matcher", "auction")) if isinstance(given, Mapping) else "auction"
    parameters = {name: list(kind.model_fields) for name, kind in MATCHERS.usable()}
    own = parameters.pop(chosen, [])
    others = {
        f"matching (matcher: {name})": [key for key in keys if key not in own]
        for name, keys in parameters.items()
    }
    return {"matching": [*_Matching.model_fields, *own]} | others


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

"""The configuration of a run: strict, small, and explicit about what a change means for resuming.

A configuration is a YAML file. Unknown keys, wrong types and impossible values are refused with the file,
the line, the key, the value and the remedy. Fields fall into two groups:

* those marked `Numbers` alter the entries of the matrix: what they resolve to (pixels, weights, parameters) is
  the run's fingerprint, and a run directory refuses to continue when it differs;
* all others (engine, workers, memory, retries, kernels, evaluation) may change from one start to the next.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, ValidationError, model_validator

from semrsm_dist.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Numbers:
    """Marks a field whose value alters the entries of the matrix."""


def _one_or_two(value: object) -> object:
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _auto_is_none(value: object) -> object:
    return None if value == "auto" else value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


Count = Annotated[int, Field(ge=1)]
Pair = Annotated[tuple[Count, Count], BeforeValidator(_one_or_two)]
AutoCount = Annotated[Count | None, BeforeValidator(_auto_is_none)]
Digits = Annotated[Pair, Numbers()]


class DigitScenesData(_Section):
    """Scenes of handwritten digits, generated from a package that is installed with this one."""

    source: Literal["digits"]
    n_images: Annotated[Count, Numbers()] = 400
    digits: Digits = (1, 4)
    canvas: Annotated[Count, Numbers()] = 96
    scale: Annotated[tuple[float, float], Numbers()] = (2.5, 4.0)
    overlap: Annotated[float, Field(ge=0, le=1), Numbers()] = 0.1
    split: Annotated[Literal["evaluation", "training"], Numbers()] = "evaluation"
    seed: Annotated[int, Field(ge=0), Numbers()] = 0


class FolderData(_Section):
    """A folder of images; the first folder level below it is the class."""

    source: Literal["folder"]
    path: Path


class TableData(_Section):
    """A Parquet or CSV table with the columns `image_id`, `uri`, `labels` and, if wanted, `group`."""

    source: Literal["table"]
    path: Path


class FeaturesData(_Section):
    """Ready-made features: one array per layer, (N, S, C) or (N, C, H, W), in `.npy` or Zarr."""

    source: Literal["features"]
    layers: Annotated[dict[str, Path], Field(min_length=1)]
    layout: Literal["auto", "nsc", "nchw"] = "auto"
    table: Path | None = None


Data = Annotated[DigitScenesData | FolderData | TableData | FeaturesData, Field(discriminator="source")]


class ModelConfig(_Section):
    """The vision model, what of it is read, and how it runs."""

    name: Annotated[str, Numbers()]
    weights: Annotated[str, Numbers()] = "pretrained"
    layers: Annotated[tuple[str, ...], Field(min_length=1)]
    input_size: Annotated[Pair | None, BeforeValidator(_auto_is_none), Numbers()] = None
    seed: Annotated[int, Field(ge=0), Numbers()] = 0
    precision: Annotated[Literal["auto", "float32", "float16", "bfloat16"], Numbers()] = "auto"
    batch_size: Count = 32
    actors: AutoCount = None


class StorageConfig(_Section):
    """How features are kept on disk."""

    dtype: Annotated[Literal["float32", "float16"], Numbers()] = "float32"


class MatchingConfig(_Section):
    """How two images' concept vectors are matched, and with what means."""

    matcher: Annotated[str, Numbers()] = "auction"
    tolerance: Annotated[float | None, Numbers()] = None
    window: Annotated[int | None, Numbers()] = None
    k: Annotated[int | None, Numbers()] = None
    tile: AutoCount = None
    worker_memory: ByteSize = Field(default=ByteSize(1024**3), ge=16 * 1024**2)
    task_seconds: float = Field(default=15.0, gt=0)
    attempts: Count = 3

    @property
    def parameters(self) -> dict[str, int | float]:
        """Return the matcher's parameters that were given."""
        given = {"tolerance": self.tolerance, "window": self.window, "k": self.k}
        return {name: value for name, value in given.items() if value is not None}


class KernelConfig(_Section):
    """A kernel to materialise; `sigma` is the RBF width, from the median distance when absent."""

    name: Literal["linear", "cosine", "rbf"]
    sigma: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _only_rbf_has_a_width(self) -> KernelConfig:
        if self.sigma is not None and self.name != "rbf":
            raise ValueError(f"sigma belongs to the kernel rbf, not to {self.name}; remove it")
        return self


class RetrievalConfig(_Section):
    """Retrieval on the images' labels, reported in the summary when there are labels."""

    k: tuple[Count, ...] = (1,)
    kernel: Literal["linear", "cosine", "rbf"] = "cosine"


class RunConfig(_Section):
    """One run: one directory, one set of images (or queries against images), some layers."""

    run: Path
    data: Data
    queries: Data | None = None
    model: ModelConfig | None = None
    features: StorageConfig = StorageConfig()
    matching: MatchingConfig = MatchingConfig()
    kernels: tuple[KernelConfig, ...] = (KernelConfig(name="cosine"),)
    retrieval: RetrievalConfig = RetrievalConfig()
    unreadable: Literal["refuse", "skip"] = "refuse"
    engine: Literal["local", "ray"] = "local"
    address: str | None = None
    workers: AutoCount = None

    @model_validator(mode="after")
    def _images_need_a_model(self) -> RunConfig:
        ready = isinstance(self.data, FeaturesData)
        if self.queries is not None and isinstance(self.queries, FeaturesData) != ready:
            raise ValueError(
                "data and queries must both be images or both be ready-made features; give both of one kind"
            )
        if isinstance(self.queries, FeaturesData) and isinstance(self.data, FeaturesData):
            missing = set(self.queries.layers) ^ set(self.data.layers)
            if missing:
                raise ValueError(
                    f"data and queries must name the same layers; only one has {sorted(missing)}"
                )
        if ready and self.model is not None:
            raise ValueError("ready-made features need no model; remove the section model")
        if not ready and self.model is None:
            raise ValueError("images need a model; add the section model with name, weights and layers")
        return self

    @model_validator(mode="after")
    def _kernels_are_distinct(self) -> RunConfig:
        names = [kernel.name for kernel in self.kernels]
        if len(set(names)) != len(names):
            raise ValueError(f"each kernel may stand once, found {names}; remove the repeated one")
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
        With paths of data and run as written: relative to the working directory.

    Raises
    ------
    ConfigError
        If the file cannot be read or anything in it is not understood. The message has one line per problem.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the configuration cannot be read ({error}); check the path") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected keys and values such as `run: runs/mine`, found {document!r}")
    document = _read_scientific(document)
    for override in overrides:
        _apply_override(document, override)
    return parse_config(document, origin=str(path), lines=dict(_key_lines(node)))


def parse_config(
    document: Mapping[str, Any],
    *,
    origin: str = "configuration",
    lines: Mapping[tuple[str, ...], int] | None = None,
) -> RunConfig:
    """Validate a configuration given as nested mappings.

    Raises
    ------
    ConfigError
        With one line per problem: origin, line, key, value, what is expected.
    """
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        problems = [_explain(problem, document, origin, lines or {}) for problem in error.errors()]
        raise ConfigError("\n".join(problems)) from error


def numbers_of(section: BaseModel) -> dict[str, Any]:
    """Return the fields of a section that are marked `Numbers`, by name."""
    return {
        name: getattr(section, name)
        for name, field in type(section).model_fields.items()
        if any(isinstance(mark, Numbers) for mark in field.metadata)
    }


def _read_scientific(value: Any) -> Any:
    """Turn `1e-3` into a number: YAML 1.1 reads it as text because the dot is missing."""
    if isinstance(value, dict):
        return {key: _read_scientific(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_read_scientific(item) for item in value]
    if isinstance(value, str) and value[:1] in "+-.0123456789" and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: expected key=value, for example --set matching.tolerance=1e-4")
    *parents, last = key.split(".")
    target = document
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {override}: {parent!r} is a value in the file, not a section")
    try:
        target[last] = _read_scientific(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML: {error}") from error


def _key_lines(node: yaml.Node | None, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*prefix, str(key.value))
            yield path, key.start_mark.line + 1
            yield from _key_lines(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _key_lines(value, (*prefix, str(index)))


def _explain(
    problem: Mapping[str, Any], document: Mapping[str, Any], origin: str, lines: Mapping[tuple[str, ...], int]
) -> str:
    location = _location(problem["loc"], document)
    line = next((lines[location[:n]] for n in range(len(location), 0, -1) if location[:n] in lines), None)
    where = f"{origin}:{line}" if line else origin
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(location[:-1], document)
        hint = did_you_mean(location[-1], known) or f"; known here: {', '.join(known)}"
        return f"{where}: unknown key {key!r}{hint}"
    if problem["type"] == "missing":
        return f"{where}: the key {key!r} is missing; add it"
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        sources = ("digits", "folder", "table", "features")
        given = problem["input"].get("source") if isinstance(problem["input"], dict) else problem["input"]
        hint = did_you_mean(str(given), sources) if given is not None else ""
        return f"{where}: {key}.source is {given!r}; expected one of {', '.join(sources)}{hint}"
    message = problem["msg"].removeprefix("Value error, ")
    hint = ""
    if problem["type"] == "literal_error":
        hint = did_you_mean(str(problem["input"]), re.findall(r"'([^']+)'", message))
    subject = f"{key}: {problem['input']!r}: " if key else ""
    return f"{where}: {subject}{message[:1].lower()}{message[1:]}{hint}"


def _location(loc: Sequence[str | int], document: Mapping[str, Any]) -> tuple[str, ...]:
    """Drop the union tags that pydantic puts into a location, so that it reads as a path in the file."""
    path: list[str] = []
    for index, part in enumerate(loc):
        if index == 1 and loc[0] in ("data", "queries") and part in ("digits", "folder", "table", "features"):
            section = document.get(str(loc[0]))
            if isinstance(section, Mapping) and section.get("source") == part:
                continue
        if isinstance(part, str) and ("[" in part or part in ("float", "int", "none")):
            continue
        path.append(str(part))
    return tuple(path)


def _fields_at(path: Sequence[str], document: Mapping[str, Any]) -> list[str]:
    sections: dict[str, type[BaseModel]] = {
        "model": ModelConfig,
        "features": StorageConfig,
        "matching": MatchingConfig,
        "kernels": KernelConfig,
        "retrieval": RetrievalConfig,
    }
    sources: dict[str, type[BaseModel]] = {
        "digits": DigitScenesData,
        "folder": FolderData,
        "table": TableData,
        "features": FeaturesData,
    }
    if not path:
        return list(RunConfig.model_fields)
    if path[0] in ("data", "queries"):
        return list(sources[document[path[0]]["source"]].model_fields)
    return list(sections[path[0]].model_fields)

"""The types of fields that users set: what a value must look like, and whether the matrix depends on it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from semrsm_dist.errors import ConfigError, counted, did_you_mean, hide_secrets

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

Problem = Mapping[str, Any]
"""One of the errors of a `pydantic.ValidationError`."""

OBJECT_STORES = ("s3", "gs", "az")
"""Schemes of the URIs of a run."""

_RUN_EXPECTED = (
    "expected a path in a file system, or a folder in an object store "
    f"({', '.join(f'{scheme}://bucket/folder' for scheme in OBJECT_STORES)})"
)
_NO_SECRETS = (
    "expected a URI without user, password and options (not shown here, as they may be secret); credentials, region "
    "and endpoint come from the environment"
)

LONGEST_NAME = 200
"""Bytes of a layer's name: file systems allow 255, and exported files add the kernel."""


@dataclass(frozen=True)
class AffectsResult:
    """Marks a field whose value alters the entries of the matrix.

    One that was `added` when runs already existed is not in the fingerprint at its default, so that these can resume.
    """

    added: bool = False


def _one_or_two(value: object) -> object:
    if not isinstance(value, int | list | tuple):
        raise ValueError("expected one or two whole numbers")  # noqa: TRY004 - pydantic reports ValueError
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _auto_is_none(value: object) -> object:
    return None if value == "auto" else value


def _is_number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("expected a number")  # noqa: TRY004 - pydantic reports ValueError
    if isinstance(value, str) and value.strip().lstrip("+-.")[:1].isdigit():
        raise ValueError("expected a number, not text: write it without quotes")
    return value


def _location(value: object) -> object:
    """Return a path with its home directory written out, or a URI as it is: `Path` would drop a slash."""
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise ValueError(  # noqa: TRY004 - pydantic reports ValueError
            f"expected a path{'; write it in quotes' if isinstance(value, int | float) else ''}"
        )
    if not value or "\0" in value:
        raise ValueError("expected a path")
    if "://" in value:
        if hide_secrets(value) != value:
            raise ValueError(
                "expected a URI without passwords, keys or tokens, which would be kept in the run for all who can read "
                "it: put them into the environment (docs/own-data.md names the variables)"
            )
        return value
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"expected a path: {error}") from error


def _path(value: object) -> object:
    location = _location(value)
    if isinstance(location, str):
        raise ValueError(  # noqa: TRY004 - pydantic reports ValueError
            "expected a path in a file system, not a URI; on a cluster, one that all nodes share"
        )
    return location


def check_run_uri(uri: str) -> str:
    """Return the URI of a run's folder in an object store, without a slash at its end.

    Raises ConfigError if it is none. What may be secret in it is not shown.
    """
    if _may_hold_secrets(uri):
        raise ConfigError(f"run: {_NO_SECRETS}")
    if not _is_folder_of_objects(uri):
        raise ConfigError(f"run: {uri!r}: {_RUN_EXPECTED}")
    return uri.rstrip("/")


def _run_location(value: object) -> object:
    location = _location(value)
    if isinstance(location, Path):
        return location
    uri = str(location)
    if _may_hold_secrets(uri):  # reported without the value, and without its place, which for --set has it
        raise PydanticCustomError("refused", "{message}", {"key": "", "message": f"run: {_NO_SECRETS}"})
    if not _is_folder_of_objects(uri):
        raise ValueError(_RUN_EXPECTED)
    return uri.rstrip("/")


def _may_hold_secrets(uri: str) -> bool:
    return "@" in uri.partition("://")[2].partition("/")[0] or "?" in uri or "#" in uri


def _is_folder_of_objects(uri: str) -> bool:
    scheme, _, rest = uri.partition("://")
    bucket, _, folder = rest.partition("/")
    return scheme in OBJECT_STORES and bool(bucket) and all(folder.rstrip("/").split("/"))


def _layer_name(value: str) -> str:
    """Check that a name is valid for a folder in the store and for exported files."""
    if (
        not value.strip(".")
        or value != value.strip()
        or not value.isprintable()
        or {"/", "\\"} & set(value)
        or value == "zarr.json"
        or value.startswith("__")
        or len(value.encode()) > LONGEST_NAME
    ):
        raise ValueError(
            f"expected the name of a layer, which becomes the name of folders and files: printable characters without "
            f"slashes, at most {LONGEST_NAME} bytes, for instance block-3 or layer.4"
        )
    return value


class _SectionType(ModelMetaclass):
    """Makes a section that is created in Python report what is wrong with it as one from a file does."""

    def __call__(self, *values: Any, **fields: Any) -> Any:
        section = cast("type[BaseModel]", self)
        try:
            return super().__call__(*values, **fields)
        except ValidationError as error:
            lines = [f"{self.__name__}: {_explain_argument(section, one)}" for one in error.errors()]
            raise ConfigError("\n".join(lines)) from None


class Section(BaseModel, metaclass=_SectionType):
    """Fields that users set together: unknown keys are refused, values are checked and frozen.

    Raises ConfigError, with one line per problem, if one is created with values that are not allowed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)


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


Count = Annotated[int, BeforeValidator(_is_number), Field(ge=1, lt=2**63)]
Seed = Annotated[int, BeforeValidator(_is_number), Field(ge=0, lt=2**63)]
Real = Annotated[float, BeforeValidator(_is_number), Field(allow_inf_nan=False)]
Positive = Annotated[Real, Field(gt=0)]
Tolerance = Annotated[Real, Field(ge=0, le=1)]  # of the norms' product, which no value exceeds
LayerName = Annotated[str, AfterValidator(_layer_name)]
LocalPath = Annotated[Path, BeforeValidator(_path)]
RunLocation = Annotated[Path | str, BeforeValidator(_run_location)]
Location = Annotated[Path | str, BeforeValidator(_location)]
Pair = Annotated[tuple[Count, Count], BeforeValidator(_one_or_two)]
AutoCount = Annotated[Count | None, BeforeValidator(_auto_is_none)]
AutoPair = Annotated[Pair | None, BeforeValidator(_auto_is_none)]
AutoSize = Annotated[ByteSize | None, BeforeValidator(_auto_is_none)]

_EXPECTED = {
    "tuple_type": "expected a list in brackets, such as [a, b]",
    "dict_type": "expected keys and values",
    "model_type": "expected keys and values below it",
    "model_attributes_type": "expected keys and values below it",
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "string_type": "expected text",
    "finite_number": "expected a finite number",
    "byte_size": "expected a size such as 512MiB or 1GiB",
    "byte_size_unit": "expected a size such as 512MiB or 1GiB",
}


def expected(problem: Problem) -> str:
    """Return what a field expects, for a problem of `pydantic.ValidationError.errors`."""
    kind, given, message = problem["type"], problem["input"], problem["msg"].removeprefix("Value error, ")
    limits = problem.get("ctx", {})
    if kind == "too_short":
        return f"expected at least {counted(limits['min_length'], 'item')}"
    if kind == "too_long":
        return f"expected at most {counted(limits['max_length'], 'item')}"
    text: str = _EXPECTED.get(kind, message.replace("Input should be", "must be"))
    if kind == "string_type" and isinstance(given, int | float):
        text += "; write it in quotes"
    if kind == "greater_than_equal" and limits["ge"] and limits["ge"] % 2**20 == 0:
        text = (
            f"must be at least {limits['ge'] // 2**20}MiB"  # a number of bytes that people write with a unit
        )
    if kind == "literal_error":
        text += did_you_mean(str(given), re.findall(r"'([^']+)'", message))
    return text


def explain_problem(problem: Problem, key: str) -> str:
    """Return what is wrong with a key: its value, what is expected, and the remedy where it is not obvious."""
    kind, given, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "missing":
        known = f": one of {context['known']}" if "known" in context else ""
        return f"the key {key!r} is missing; add it{known}"
    if kind == "value_error" and isinstance(given, Mapping | BaseModel):  # about keys that do not go together
        return f"{key}: {expected(problem)}" if key else expected(problem)
    shown = "no value" if given is None and kind != "unknown_source" else repr(given)
    return f"{key}: {shown}: {expected(problem)}"


def _explain_argument(section: type[BaseModel], problem: Problem) -> str:
    key, known = ".".join(map(str, problem["loc"])), section.model_fields
    if problem["type"] == "extra_forbidden":
        hint = did_you_mean(key, known) or f"; known here: {', '.join(known)}"
        return f"unknown key {key!r}{hint if len(problem['loc']) == 1 else ''}"
    return str(problem["msg"]) if problem["type"] == "refused" else explain_problem(problem, key)

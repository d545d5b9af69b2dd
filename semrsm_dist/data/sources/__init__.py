"""The data sources, one per module: found by name, and loaded when a configuration names them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from semrsm_dist.data.source import DataSource, ImageSource
from semrsm_dist.errors import did_you_mean
from semrsm_dist.plugins import Plugins, check_name


def _check_source(name: str, source: object) -> Iterator[str]:
    if not isinstance(source, type):
        yield "it is an object, not a class"
    elif issubclass(source, DataSource):
        yield from check_name(name, source.model_fields["source"].default)
        if not issubclass(source, ImageSource) and not source.__module__.startswith(__name__):
            yield "it does not derive from ImageSource"


SOURCES: Plugins[type[DataSource]] = Plugins("data source", __name__, DataSource, check=_check_source)


def _read_source(value: object, *, images: bool = False) -> object:
    """Return the data source, or source of images, that a mapping describes; pydantic handles anything else."""
    if not isinstance(value, Mapping):
        return value
    if value.get("source") not in SOURCES.names():
        raise _unknown_source(value, _known_sources(images))
    source = SOURCES.load(value["source"])  # a broken one says here what is wrong with it
    if images and not issubclass(source, ImageSource):
        raise _unknown_source(value, _known_sources(images))
    return source.model_validate(value)


def _known_sources(images: bool) -> Sequence[str]:
    if not images:
        return SOURCES.names()
    return [name for name, source in SOURCES.usable() if issubclass(source, ImageSource)]


def _unknown_source(section: Mapping[str, Any], known: Sequence[str]) -> ValidationError:
    given, listed = section.get("source"), ", ".join(known)
    if "source" in section:
        hint = did_you_mean(str(given), known)
        error = PydanticCustomError(
            "unknown_source", "expected one of {known}{hint}", {"known": listed, "hint": hint}
        )
    else:
        error = PydanticCustomError("missing", "one of {known}", {"known": listed})
    problem = InitErrorDetails(type=error, loc=("source",), input=given)
    return ValidationError.from_exception_data("data source", [problem])


Data = Annotated[SerializeAsAny[DataSource], BeforeValidator(_read_source)]
"""A field that holds any data source; in a file, a section whose key `source` names it."""

Images = Annotated[SerializeAsAny[ImageSource], BeforeValidator(partial(_read_source, images=True))]
"""A field that holds a source of images."""

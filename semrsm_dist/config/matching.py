"""The section `matching` of a configuration: its own keys, and the parameters of the matcher that it names."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, create_model, model_validator

from semrsm_dist.errors import ConfigError, did_you_mean
from semrsm_dist.fields import AffectsResult, AutoCount, AutoSize, Count, Real, Section

if TYPE_CHECKING:
    from semrsm_dist.matching.matcher import Matcher

CPU_MEMORY = 2**30
"""Memory of a worker on CPUs where none is configured, in bytes."""


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
    worker_memory: AutoSize = Field(default=None, ge=16 * 1024**2)
    """Memory of a worker, of matching and of every other stage: features beyond it are cut into smaller chunks and
    tiles, and a machine runs only as many workers at once as it has memory for. None is 1 GiB; a worker that matches on
    a GPU takes up to 16 GiB, but no more than its share of half the memory of its machine."""
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
    def cpu_memory(self) -> int:
        """Memory of a worker on CPUs, in bytes."""
        return CPU_MEMORY if self.worker_memory is None else int(self.worker_memory)

    def make_matcher(self) -> Matcher:
        """Return the matcher with the parameters that were given; raises ConfigError as the matcher's own."""
        from semrsm_dist.matching.matcher import make_matcher  # noqa: PLC0415 - loads numba; not needed for --help

        return make_matcher(self.matcher, **(self.model_extra or {}))


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


def matching_keys(document: Mapping[str, Any]) -> dict[str, list[str]]:
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

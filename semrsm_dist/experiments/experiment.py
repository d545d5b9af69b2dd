"""What an experiment declares: what it answers, its parameters, and where its computation is."""

from __future__ import annotations

import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeVar, cast

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from semrsm_dist.errors import ConfigError
from semrsm_dist.experiments.embedded import DIGITS
from semrsm_dist.fields import Section

if TYPE_CHECKING:
    from semrsm_dist.config.schema import RunConfig
    from semrsm_dist.experiments.evidence import Findings
    from semrsm_dist.progress import Reporter

T = TypeVar("T")


def _plain(value: object) -> object:
    """Return NumPy's numbers and arrays as Python's, which JSON knows."""
    return value.tolist() if hasattr(value, "tolist") else value


def _many(value: object) -> object:
    if isinstance(value, str | Path | Real):
        return (value,)
    return tuple(_plain(item) for item in value) if isinstance(value, list | tuple) else value


Many = Annotated[tuple[T, ...], BeforeValidator(_many)]
"""A list; one value alone counts as a list of one."""

RESERVED = ("name", "config", "reporter", "folder")
"""Arguments of `evaluate`, which parameters cannot be called."""

Kernel = Literal["linear", "cosine", "rbf"]
Positive = Annotated[int, Field(ge=1)]


class Parameters(Section):
    """The parameters of an experiment. Each field has a default and a description; None stands for the default."""

    model_config = ConfigDict(strict=True)

    seed: int = Field(
        0, ge=0, le=2**32 - 1, description="random seed of the bootstrap and of everything else that is drawn"
    )

    @model_validator(mode="before")
    @classmethod
    def _take(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        return {name: _plain(value) for name, value in given.items() if value is not None}


P_contra = TypeVar("P_contra", bound=Parameters, contravariant=True)


class Computation(Protocol[P_contra]):
    """The function of an experiment."""

    def __call__(self, config: RunConfig, parameters: P_contra, reporter: Reporter) -> Findings:
        """Compute what is missing of a run, and return what is found.

        Parameters
        ----------
        config
            The run. What is derived from it is kept below its directory, in `evaluation`.
        parameters
            Checked.
        reporter
            Where progress is reported.

        Raises
        ------
        ConfigError, InputError
            If the run is not of the kind that the experiment judges: before anything is computed where that is known.
        """
        ...


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment, declared in a module that loads nothing heavy.

    Attributes
    ----------
    summary
        What it answers, in a line.
    parameters
        The model of its parameters.
    computation
        Where its `Computation` is, as `package.module:function`; loaded when it is used.
    default
        The configuration that it runs on when none is given.
    """

    summary: str
    parameters: type[Parameters]
    computation: str
    default: Mapping[str, Any] = field(default_factory=lambda: DIGITS)

    def load(self) -> Computation[Any]:
        """Return its function.

        Raises ConfigError if there is none, or it does not take a configuration, parameters and a reporter.
        """
        try:
            found = pkgutil.resolve_name(self.computation)
            inspect.signature(found).bind("config", "parameters", "reporter")
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{self.computation} cannot be used as the function of an experiment ({error}): it must be "
                "package.module:function, a function of config, parameters and reporter; correct it, or update or "
                "remove the distribution that provides the experiment"
            ) from error
        return cast(Computation[Any], found)


def find_problems(name: str, experiment: Experiment) -> Iterator[str]:
    """Yield what is wrong with a declaration, as far as it can be known without loading the function: for `Plugins`."""
    model: Any = experiment.parameters
    if not (inspect.isclass(model) and issubclass(model, Parameters)):
        yield f"its parameters are {_name(model)}, not a model derived from {_name(Parameters)}"
    else:
        for parameter, about in model.model_fields.items():
            if about.is_required():
                yield f"the parameter {parameter!r} of {_name(model)} has no default"
            if parameter in RESERVED:
                yield f"the parameter {parameter!r} of {_name(model)} has the name of an argument of `evaluate`"
    module, _, function = str(experiment.computation).partition(":")
    try:
        is_there = bool(function) and (module in sys.modules or importlib.util.find_spec(module) is not None)
    except (ImportError, ValueError):
        is_there = False
    if not is_there:
        yield f"there is no module {module!r} for its computation {experiment.computation!r} (package.module:function)"
    elif module in sys.modules and not callable(getattr(sys.modules[module], function, None)):
        yield f"the module {module!r} has no function {function!r}, which is its computation"


def _name(value: object) -> str:
    return f"{value.__module__}.{value.__qualname__}" if inspect.isclass(value) else repr(value)

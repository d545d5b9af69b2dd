"""Where the work runs: engines behind one interface, such as threads of this process or a Ray cluster."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping

from semrsm_dist.engine.protocol import Engine, Finished, Pool, Progress, Receipt, Resources, Task, Worker
from semrsm_dist.engine.schedule import Failure
from semrsm_dist.engine.scheduler import run_tasks
from semrsm_dist.errors import ConfigError
from semrsm_dist.plugins import Plugins, check_name

__all__ = [
    "ENGINES",
    "Engine",
    "Failure",
    "Finished",
    "Pool",
    "Progress",
    "Receipt",
    "Resources",
    "Task",
    "Worker",
    "make_engine",
    "require_engine",
    "run_tasks",
]

_DESCRIBED = {"engine", "nodes", "cpus", "gpus", "memory"}


def _check(name: str, engine: type[Engine]) -> Iterator[str]:
    """Yield what is wrong with the class of an engine."""
    yield from check_name(name, getattr(engine, "name", None))
    try:
        inspect.signature(engine).bind(workers=None, address=None)
    except TypeError:
        yield "its constructor does not take workers and address"


ENGINES: Plugins[type[Engine]] = Plugins("engine", "semrsm_dist.engine.engines", Engine, check=_check)
"""Every engine by its name in configurations, loaded when it is used."""


def make_engine(name: str, *, address: str | None = None, workers: int | None = None) -> Engine:
    """Return a running engine; the caller closes it.

    Raises ConfigError if the name is unknown, or the engine cannot run or cannot be reached.

    Parameters
    ----------
    name
        A name in `ENGINES`: `local` for threads of this process, `ray` for a Ray cluster.
    address, workers
        As in `Engine`.
    """
    return require_engine(ENGINES.load(name)(workers=workers, address=address))


def require_engine(engine: object) -> Engine:
    """Return an engine whose properties can be used.

    Raises ConfigError if it is none, or a property is of a wrong type.
    """
    if not isinstance(engine, Engine):
        raise ConfigError(
            f"engine: {engine!r}: expected an engine, as semrsm_dist.engine.make_engine makes one; to choose one by "
            "its name, set the key engine of the configuration"
        )
    about = engine.describe()
    found = {"slots": engine.slots, "gpus": engine.gpus}
    wrong = [
        f"{name} is {value!r}, not a whole number" for name, value in found.items() if type(value) is not int
    ]
    if not isinstance(about, Mapping) or not about.keys() >= _DESCRIBED:
        wrong.append(f"describe returns {about!r}, not a mapping with {', '.join(sorted(_DESCRIBED))}")
    if wrong:
        raise ConfigError(
            f"engine {engine.name!r} ({type(engine).__module__}.{type(engine).__qualname__}) cannot be used: "
            f"{'; '.join(wrong)}. Repair it, or choose another engine"
        )
    return engine

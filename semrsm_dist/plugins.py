"""Plugins: matchers, data sources, experiments and engines, each found by name and loaded when it is used.

Nothing lists them. A plugin of this package is a module in the folder of its kind, named after it with `_` for `-`
(`batch_optimal.py` holds `batch-optimal`). A plugin of another distribution is an entry point in its kind's group::

    [project.entry-points."semrsm_dist.matchers"]
    my-matcher = "my_package.my_module:MyMatcher"

A plugin is checked once, when it is loaded, so that an incomplete one is refused before any work.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from types import ModuleType
from typing import Any, Generic, TypeVar, cast

from semrsm_dist.errors import ConfigError, require_known

T = TypeVar("T")


class Plugins(Generic[T]):
    """The plugins of one kind.

    Parameters
    ----------
    kind
        Its name in messages, such as `matcher`; the group of entry points is `semrsm_dist.<kind>s`.
    package
        The package whose modules are the plugins that ship.
    base
        The class that every plugin derives from, or that it is an instance of.
    packages
        Plugins that ship are packages; the modules beside them are shared code.
    check
        Called with the name and a plugin of the right type, whose abstract methods are all there: yields what else is
        wrong with it, each as in `it has no attribute 'name'`. `check_name` is a part of most.

    Attributes
    ----------
    kind, group, check
        As above.

    Examples
    --------
    >>> from semrsm_dist.matching.matchers import MATCHERS
    >>> "batch-optimal" in MATCHERS.names()
    True
    """

    def __init__(
        self,
        kind: str,
        package: str,
        base: type,
        *,
        packages: bool = False,
        check: Callable[[str, T], Iterable[str]] = lambda name, plugin: (),
    ) -> None:
        self.kind = kind
        self.group = f"semrsm_dist.{kind.replace(' ', '_')}s"
        self._package = package
        self._base = base
        self._packages = packages
        self.check = check
        self._loaded: dict[str, T] = {}

    def names(self) -> tuple[str, ...]:
        """Return the names of all plugins, those that ship first; none is loaded."""
        return tuple(dict.fromkeys([*self._shipped(), *self._installed()]))

    def load(self, name: str) -> T:
        """Return a plugin.

        Raises ConfigError if there is no such plugin, there are two of this name, or it cannot be used: the message
        names the distribution, the class and what is missing.
        """
        require_known(self.kind, name, self.names())
        if name not in self._loaded:
            plugin, home = self._find(name)
            wrong = list(self._problems(name, plugin))
            if wrong:
                raise ConfigError(
                    f"{self.kind} {name!r} ({home}) cannot be used: {'; '.join(wrong)}. Complete it, or update or "
                    f"remove the distribution that provides it; docs/extending.md has a complete {self.kind}"
                )
            self._loaded[name] = cast(T, plugin)
        return self._loaded[name]

    def usable(self) -> Iterator[tuple[str, T]]:
        """Yield all plugins by name but those of broken distributions, which are reported when they are requested."""
        for name in self.names():
            with contextlib.suppress(ConfigError):
                yield name, self.load(name)

    def __iter__(self) -> Iterator[T]:
        """Load every plugin, in the order of their names."""
        return iter([self.load(name) for name in self.names()])

    @functools.cache  # noqa: B019 - one object a kind, which lives as long as the process
    def _shipped(self) -> dict[str, str]:
        """Return the modules that ship, by the names of their plugins."""
        package = importlib.import_module(self._package)
        found = pkgutil.iter_modules(package.__path__)
        modules = [module.name for module in found if module.ispkg or not self._packages]
        return {name.replace("_", "-"): f"{self._package}.{name}" for name in modules if name[0] != "_"}

    @functools.cache  # noqa: B019 - as above
    def _installed(self) -> dict[str, list[metadata.EntryPoint]]:
        """Return the entry points of other distributions, by name."""
        found: dict[str, list[metadata.EntryPoint]] = {}
        for point in metadata.entry_points(group=self.group):
            found.setdefault(point.name, []).append(point)
        return found

    def _find(self, name: str) -> tuple[object, str]:
        """Return a plugin that is not checked yet, and what to call its home in messages."""
        module, points = self._shipped().get(name), self._installed().get(name, [])
        homes = ([f"module {module}"] if module else []) + [_home(point) for point in points]
        if len(homes) > 1:
            raise ConfigError(
                f"{self.kind} {name!r} is provided {len(homes)} times ({'; '.join(homes)}), and which one is meant "
                "cannot be known: remove a distribution, or rename its entry point"
            )
        if module:
            return self._load_shipped(name, module), homes[0]
        try:
            return points[0].load(), homes[0]
        except Exception as error:
            raise ConfigError(
                f"{self.kind} {name!r} ({homes[0]}) cannot be loaded ({type(error).__name__}: {error}): repair or "
                "remove the distribution that provides it"
            ) from error

    def _load_shipped(self, name: str, module: str) -> object:
        try:
            return self._only_plugin(importlib.import_module(module))
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("semrsm_dist"):
                raise
            raise ConfigError(
                f"{self.kind} {name!r} needs the package {error.name!r}, which is not installed: install it, or choose "
                f"another {self.kind}"
            ) from error

    def _only_plugin(self, module: ModuleType) -> object:
        own = [value for value in vars(module).values() if self._is_defined_in(module.__name__, value)]
        if len(own) != 1:
            raise TypeError(f"{module.__name__} must define one {self.kind}, but defines {len(own)}")
        return own[0]

    def _is_defined_in(self, module: str, value: object) -> bool:
        if not inspect.isclass(value):
            return isinstance(value, self._base)
        return issubclass(value, self._base) and value.__module__ == module and value.__name__[0] != "_"

    def _problems(self, name: str, plugin: object) -> Iterable[str]:
        """Return what is wrong with a plugin."""
        if inspect.isclass(plugin) and issubclass(plugin, self._base):
            missing = sorted(getattr(plugin, "__abstractmethods__", ()))
            if missing:
                return [f"it does not define {', '.join(missing)}"]
            return [*_unlike_methods(plugin), *self.check(name, cast(T, plugin))]
        if isinstance(plugin, self._base):
            return self.check(name, cast(T, plugin))
        return [f"it is {plugin!r}, not a {self._base.__name__}"]


def check_name(name: str, own: object) -> Iterator[str]:
    """Yield that a plugin calls itself otherwise than its entry point or file, if it does: for checks of `Plugins`."""
    if own != name:
        calls = "does not say its name" if own is None else f"calls itself {own!r}"
        yield f"it {calls}, but its entry point, or its file, says {name!r}: they must agree"


def _home(point: metadata.EntryPoint) -> str:
    provider = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"
    return f"{point.value} of the distribution {provider}"


def _unlike_methods(plugin: type) -> Iterator[str]:
    """Yield the methods that do not take the arguments of the abstract methods that they implement."""
    for base in plugin.__mro__:
        for name in sorted(getattr(base, "__abstractmethods__", frozenset()) & vars(base).keys()):
            declared, own = vars(base)[name], inspect.getattr_static(plugin, name)
            if inspect.isfunction(declared) and not _takes_arguments_of(own, declared):
                yield f"its {name} does not take {inspect.signature(declared)}"


def _takes_arguments_of(own: Any, declared: Callable[..., Any]) -> bool:
    if not inspect.isfunction(own):
        return callable(own) or isinstance(own, classmethod | staticmethod)
    parameters = inspect.signature(declared).parameters.values()
    named = {one.name: None for one in parameters if one.kind is one.KEYWORD_ONLY}
    try:
        inspect.signature(own).bind(*[None] * (len(parameters) - len(named)), **named)
    except TypeError:
        return False
    return True

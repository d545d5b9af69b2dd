"""Plugins: matchers, data sources, experiments and engines, each found by name and loaded when it is used.

Nothing lists them. A plugin of this package is a module in the folder of its kind, named after it with `_` for `-`
(`batch_optimal.py` holds `batch-optimal`). A plugin of another distribution is an entry point in its kind's group::

    [project.entry-points."semrsm_dist.matchers"]
    my-matcher = "my_package.my_module:MyMatcher"
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType
from typing import Generic, TypeVar, cast

from semrsm_dist.errors import ConfigError, did_you_mean

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

    Examples
    --------
    >>> from semrsm_dist.matching.matchers import MATCHERS
    >>> "batch-optimal" in MATCHERS.names()
    True
    """

    def __init__(self, kind: str, package: str, base: type, *, packages: bool = False) -> None:
        self.kind = kind
        self.group = f"semrsm_dist.{kind.replace(' ', '_')}s"
        self._package = package
        self._base = base
        self._packages = packages
        self._loaded: dict[str, T] = {}

    def names(self) -> tuple[str, ...]:
        """Return the names of all plugins, those that ship first; none is loaded."""
        return tuple(dict.fromkeys([*self._shipped(), *self._installed()]))

    def load(self, name: str) -> T:
        """Return a plugin.

        Raises
        ------
        ConfigError
            If there is no such plugin, or one from another distribution cannot be used.
        """
        if name not in self._loaded:
            if name in self._shipped():
                self._loaded[name] = self._load_shipped(name)
            elif name in self._installed():
                self._loaded[name] = self._load_installed(self._installed()[name])
            else:
                raise ConfigError(
                    f"unknown {self.kind} {name!r}: known are {', '.join(self.names())}"
                    f"{did_you_mean(name, self.names())}"
                )
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
    def _installed(self) -> dict[str, metadata.EntryPoint]:
        """Return the entry points of other distributions, by name; what ships cannot be replaced."""
        points = metadata.entry_points(group=self.group)
        return {point.name: point for point in points if point.name not in self._shipped()}

    def _load_shipped(self, name: str) -> T:
        try:
            return self._find(importlib.import_module(self._shipped()[name]))
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("semrsm_dist"):
                raise
            raise ConfigError(
                f"{self.kind} {name!r} needs the package {error.name!r}, which is not installed: install it, or choose "
                f"another {self.kind}"
            ) from error

    def _find(self, module: ModuleType) -> T:
        own = [value for value in vars(module).values() if self._is_plugin(value, module.__name__)]
        if len(own) != 1:
            raise TypeError(f"{module.__name__} must define one {self.kind}, but defines {len(own)}")
        return own[0]  # type: ignore[no-any-return]

    def _is_plugin(self, value: object, module: str) -> bool:
        if isinstance(value, self._base):
            return True
        return (
            inspect.isclass(value)
            and issubclass(value, self._base)
            and value.__module__ == module
            and not value.__name__.startswith("_")
        )

    def _load_installed(self, point: metadata.EntryPoint) -> T:
        try:
            plugin = point.load()
        except Exception as error:
            raise ConfigError(
                f"{self.kind} {point.name!r}: {point.value} cannot be loaded ({error}): repair or remove "
                "the distribution that provides it"
            ) from error
        if not (
            isinstance(plugin, self._base) or (inspect.isclass(plugin) and issubclass(plugin, self._base))
        ):
            raise ConfigError(
                f"{self.kind} {point.name!r}: {point.value} is not a {self._base.__name__}: repair or remove "
                "the distribution that provides it"
            )
        return cast(T, plugin)

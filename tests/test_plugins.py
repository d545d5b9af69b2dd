"""Plugins of other distributions are checked once, when they are loaded: what is incomplete or ambiguous is refused."""

import sys

import pytest

from semrsm_dist.engine import ENGINES as SHIPPED
from semrsm_dist.engine import Engine
from semrsm_dist.errors import ConfigError
from semrsm_dist.plugins import Plugins
from tests import distributions

WHOLE = """
from semrsm_dist.engine import Engine

class Mine(Engine):
    name, slots, gpus = "mine", 1, 0

    def start_tasks(self, worker, resources): ...

    def start_actors(self, factory, count, resources): ...

    def describe(self): ...
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution with one engine, and return all engines as they are found then."""

    def install(source, point="mine = {0}:Mine", distribution="toys"):
        site, points = tmp_path / distribution, f"[semrsm_dist.engines]\n{point.format(distribution)}\n"
        distributions.install(site, distribution, points, source)
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, distribution, raising=False)
        return Plugins("engine", "semrsm_dist.engine.engines", Engine, check=SHIPPED.check)

    return install


def test_a_complete_plugin_is_loaded_and_kept(install):
    engines = install(WHOLE)
    found = engines.load("mine")
    del sys.modules["toys"]  # loaded again, it would be another class
    assert engines.load("mine") is found
    assert engines.load("mine")(workers=1).name == "mine"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("class Mine(Engine)", "class Mine", "not a Engine"),
        ("def describe", "def about", "it does not define describe"),
        ("slots, gpus", "slot, gpu", "it does not define gpus, slots"),
        ('"mine"', '"other"', "it calls itself 'other', but its entry point, or its file, says 'mine'"),
        ('name, slots, gpus = "mine", 1', "slots, gpus = 1", "it does not say its name"),
        (
            "def start_tasks(self, worker, resources)",
            "def start_tasks(self, worker)",
            "its start_tasks does not take",
        ),
        ("def start_actors(", "start_actors = 3\n    def other(", "its start_actors does not take"),
        (
            "    def describe",
            "    def __init__(self): ...\n\n    def describe",
            "does not take workers and address",
        ),
        ("from semrsm_dist.engine", "from semrsm_dist.engin", "cannot be loaded (ModuleNotFoundError"),
        ("class Mine", "class Yours", "cannot be loaded (AttributeError"),
        ("class Mine", "1 / 0\nclass Mine", "cannot be loaded (ZeroDivisionError"),
    ],
)
def test_an_incomplete_plugin_is_refused_with_its_home_and_what_is_missing(install, old, new, words):
    assert old in WHOLE
    engines = install(WHOLE.replace(old, new))
    with pytest.raises(ConfigError) as refused:
        engines.load("mine")
    assert "engine 'mine' (toys:Mine of the distribution toys 1.0) cannot be " in str(refused.value)
    assert words in str(refused.value)
    assert "remove" in str(refused.value)
    assert "mine" not in dict(engines.usable())


@pytest.mark.parametrize("name", ["local", "mine"])
def test_a_name_that_two_provide_is_refused_with_both(install, name):
    engines = install(WHOLE, f"{name} = {{0}}:Mine", "other")
    if name == "mine":
        engines = install(WHOLE, "mine = {0}:Mine", "toys")
    with pytest.raises(ConfigError) as refused:
        engines.load(name)
    first = (
        "module semrsm_dist.engine.engines.local"
        if name == "local"
        else "toys:Mine of the distribution toys 1.0"
    )
    assert first in str(refused.value)
    assert "other:Mine of the distribution other 1.0" in str(refused.value)
    assert "rename its entry point" in str(refused.value)
    assert engines.names().count(name) == 1


@pytest.mark.parametrize("name", [None, 3, ["local"], "locl"])
def test_what_names_no_plugin_is_refused(name):
    with pytest.raises(ConfigError, match=r"unknown engine .*known are local, ray"):
        SHIPPED.load(name)

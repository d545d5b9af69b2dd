"""An engine that another distribution brings: found by its entry point, and good for a whole run."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import semrsm_dist as srs
from semrsm_dist.engine import ENGINES, Engine
from semrsm_dist.errors import ConfigError
from semrsm_dist.plugins import Plugins

TOY = Path(__file__).parent / "toy"


def test_the_engines_that_ship_are_found_by_their_files():
    assert ENGINES.names()[:2] == ("local", "ray")
    assert [ENGINES.load(name).takes_address for name in ("local", "ray")] == [False, True]
    assert all(ENGINES.load(name).name == name for name in ENGINES.names())


def test_an_installed_engine_stands_beside_those_that_ship(monkeypatch):
    monkeypatch.syspath_prepend(TOY)
    engines = Plugins("engine", "semrsm_dist.engine.engines", Engine)
    assert set(engines.names()) >= {"local", "ray", "serial"}
    with pytest.raises(ConfigError, match="'serial' has nothing to join; remove the address"):
        engines.load("serial")(address="somewhere:1")


def test_a_whole_run_on_an_installed_engine(tmp_path):
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(12, 5, 4)).astype(np.float32))
    document = {
        "run": str(tmp_path / "run"),
        "data": {"source": "features", "layers": {"last": str(tmp_path / "z.npy")}},
        "matching": {"tile": 4},
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [sys.executable, "-m", "semrsm_dist", "run", str(config), "--engine", "serial"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TOY), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = srs.open_run(tmp_path / "run")
    assert run.summary()["engine"]["engine"] == "serial"
    srs.run(srs.load_config(config, [f"run={tmp_path / 'local'}"]))
    local = srs.open_run(tmp_path / "local")
    np.testing.assert_array_equal(run.similarity("last").values, local.similarity("last").values)


def test_neither_the_configuration_nor_the_help_loads_an_engine():
    code = "import sys, semrsm_dist.config.schema, semrsm_dist.cli.commands; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert {"ray", "psutil", "semrsm_dist.engine.engines.local"}.isdisjoint(loaded.split())

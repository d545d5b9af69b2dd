"""The cluster that `ray up` would start, checked by Ray's own code without a cloud."""

import copy
import functools
import re
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for
from ray.autoscaler._private.util import prepare_config, validate_config

from semrsm_dist.config.matching import MatchingConfig
from semrsm_dist.engine import Resources
from semrsm_dist.engine.engines.ray import GROWTH, RayEngine
from semrsm_dist.engine.engines.ray import pools as ray_pools
from semrsm_dist.engine.engines.ray.pools import TaskPool
from semrsm_dist.engine.engines.ray.requests import ray_request

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster.yaml"
LOCK = ROOT / "requirements.lock"


# Ray asks AWS for the memory of each type of machine; this is 70 % of it, as Ray reckons.
MEMORY = {"m6i.xlarge": 11 * 2**30, "g5.2xlarge": 22 * 2**30, "c7i.8xlarge": 44 * 2**30}


@pytest.fixture(scope="module")
def config():
    config = prepare_config(yaml.safe_load(CLUSTER.read_text()))
    for group in config["available_node_types"].values():
        group["resources"]["memory"] = MEMORY[group["node_config"]["InstanceType"]]
    return config


def launched(config, demands):
    """Return the nodes that Ray's autoscaler would add for these demands."""
    nodes, unfulfilled = get_nodes_for(
        config["available_node_types"],
        {config["head_node_type"]: 1},
        config["head_node_type"],
        config["max_workers"],
        demands,
        utilization_scorer=functools.partial(
            _default_utilization_scorer, node_availability_summary=NodeAvailabilitySummary({})
        ),
    )
    return dict(nodes), unfulfilled


def test_it_passes_rays_validation(config):
    validate_config(config)
    broken = copy.deepcopy(config)
    broken["available_nodes"] = {}
    with pytest.raises(Exception, match="available_nodes"):
        validate_config(broken)  # the validation does look


def test_the_head_takes_no_work(config):
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert head["max_workers"] == 0
    assert any("--num-cpus=0" in command for command in config["head_start_ray_commands"])


def demand(resources, count):
    """Return what the autoscaler is shown for so many workers that wait."""
    return [{kind: amount for kind, amount in ray_request(resources).items() if amount}] * count


@pytest.fixture
def head_alone(config, monkeypatch):
    """An engine that has joined the cluster while all groups are empty."""
    head = config["available_node_types"][config["head_node_type"]]["resources"]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "head", "Alive": True, "Resources": dict(head)}])
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "head"))
    monkeypatch.setattr(ray_pools, "pack", lambda thing, resources: None)
    return RayEngine()


def test_matching_fills_the_cpu_group_at_once(config, head_alone):
    needs = Resources(cpus=1, memory=MatchingConfig().cpu_memory)
    pool = head_alone.start_tasks(print, needs)
    assert isinstance(pool, TaskPool)
    most = config["available_node_types"]["cpu"]["max_workers"]
    assert launched(config, demand(needs, pool.capacity())) == ({"cpu": most}, [])
    assert launched(config, demand(needs, 64)) == ({"cpu": 2}, [])  # fewer tasks, fewer nodes


def test_extraction_gets_a_node_for_each_actor(config, head_alone):
    needs = Resources(cpus=1, gpus=1, memory=MatchingConfig().cpu_memory)
    head_alone.require_room(needs)
    assert launched(config, demand(needs, head_alone.gpus)) == ({"gpu": 4}, [])


def test_no_work_without_a_gpu_lands_on_a_gpu_node(config):
    without = copy.deepcopy(config)
    del without["available_node_types"]["cpu"]
    nodes, left = launched(without, demand(Resources(), 3))
    assert (nodes, len(left)) == ({}, 3)


def test_the_head_tells_how_far_the_groups_can_grow(config):
    groups = config["available_node_types"]
    head = groups[config["head_node_type"]]["resources"]
    assert head[GROWTH["CPU"]] == groups["cpu"]["resources"]["CPU"] * groups["cpu"]["max_workers"]
    assert head[GROWTH["GPU"]] == groups["gpu"]["resources"]["GPU"] * groups["gpu"]["max_workers"]


def test_idle_workers_cost_nothing(config):
    workers = {k: v for k, v in config["available_node_types"].items() if k != config["head_node_type"]}
    assert all(group["min_workers"] == 0 for group in workers.values())
    assert all(
        group["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot" for group in workers.values()
    )
    assert 0 < config["idle_timeout_minutes"] <= 10


def test_every_node_asks_for_the_token(config):
    token = "/home/ubuntu/.ray/auth_token"
    assert token in config["file_mounts"]
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        started = [command for command in commands if "ray start" in command]
        assert len(started) == 1
        assert "RAY_AUTH_MODE=token" in started[0]


def test_no_port_is_open_to_the_world(config):
    """Ray's own security group, which it makes for nodes without one, would let everybody reach port 22."""
    assert all(group["node_config"]["SecurityGroupIds"] for group in config["available_node_types"].values())
    [started] = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in started


def test_a_forgotten_placeholder_stops_the_setup_with_a_reason(config):
    mount = next(command for command in config["head_setup_commands"] if "nfs4" in command)
    assert mount in config["worker_setup_commands"]  # every node has the run folder
    ran = subprocess.run(["bash", "-c", mount], capture_output=True, text=True, check=False, timeout=10)
    assert ran.returncode == 1
    assert "fs-REPLACE_ME" in ran.stderr
    checked = subprocess.run(
        ["bash", "-n", "-c", mount.replace("REPLACE_ME", "0123")], check=False, timeout=10
    )
    assert checked.returncode == 0


def test_nothing_from_the_network_runs_unchecked(config):
    commands = config["worker_setup_commands"]
    assert (
        commands == config["head_setup_commands"][: len(commands)]
    )  # Ray adds the installation of what the lock has
    assert not any(re.search(r"\b(curl|wget)\b|\|\s*(sudo\s+)?(ba)?sh\b", command) for command in commands)
    installs = [command for command in commands if "pip install" in command]
    assert installs
    assert all("--require-hashes -r" in command or "--no-deps" in command for command in installs)


def locked():
    """Return the pinned releases by package: more than one where they depend on Python's version."""
    pins = {}
    for entry in LOCK.read_text().replace("\\\n", " ").splitlines():
        if entry.startswith("#"):
            continue
        requirement, _, hashes = entry.partition("--hash=sha256:")
        assert re.fullmatch(r"[0-9a-f]{64}( +--hash=sha256:[0-9a-f]{64})*", hashes.strip()), entry[:80]
        pin = Requirement(requirement)
        (exact,) = pin.specifier
        assert exact.operator == "=="
        pins.setdefault(pin.name, []).append(exact.version)
    return pins


def test_the_lock_pins_all_that_the_package_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = locked()
    for needed in map(Requirement, [*project["dependencies"], *project["optional-dependencies"]["cluster"]]):
        assert all(needed.specifier.contains(version) for version in pins[needed.name]), needed
    assert "://" not in LOCK.read_text()  # from whichever index pip is set up with

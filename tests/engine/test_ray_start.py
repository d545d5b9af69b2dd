"""The start of Ray on this machine: where it may write, what it must not do, and a machine that has no Ray."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml

from semrsm_dist.engine import make_engine
from semrsm_dist.engine.engines.ray import RayEngine
from semrsm_dist.engine.protocol import Resources
from semrsm_dist.errors import WorkError

START = """
import json, os, sys
from semrsm_dist.engine import make_engine
from semrsm_dist.errors import ConfigError

def start(**variables):
    os.environ.update(variables)
    try:
        make_engine("ray", workers=1).close()
    except ConfigError as error:
        return str(error)
    finally:
        for name in variables:
            del os.environ[name]

"""

REFUSED = """
long, file = sys.argv[1:]
print(json.dumps([
    start(TMPDIR=long), start(RAY_TMPDIR=long), start(TMPDIR="/", RAY_TMPDIR=file), start(RAY_TMPDIR="/proc/1")
]))
"""

STARTED = """
from semrsm_dist.engine import ENGINES
ENGINES.load("ray")
import ray
from ray._private import worker
before = worker.print_to_stdstream
engine = make_engine("ray", workers=1)
found = {
    "environment": dict(ray.get_runtime_context().runtime_env),
    "patched": worker.print_to_stdstream is not before,
    "token": oct(os.stat(os.path.expanduser("~/.ray/auth_token")).st_mode & 0o777),
}
engine.close()
print(json.dumps({**found, "undone": worker.print_to_stdstream is before}))
"""

OURS = """
import json, os, psutil, subprocess, sys
from semrsm_dist.engine import make_engine
engine = make_engine("ray", workers=1)
import ray
assert ray.get(ray.remote(lambda: 3).remote()) == 3
me = psutil.Process()
places = {
    place.laddr.ip
    for process in [me, *me.children(recursive=True)]
    for place in process.net_connections()
    if place.status == psutil.CONN_LISTEN
}
address = engine.describe()["address"]
ask = "import sys; from ray._raylet import GcsClient; print(len(GcsClient(sys.argv[1]).get_all_node_info(timeout=60)))"
def ask_for_nodes(**variables):
    command = [sys.executable, "-c", ask, address]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)
    return done.stdout.strip() or ("AuthenticationError" in done.stderr and "refused") or done.stderr
stranger = {"HOME": sys.argv[1]}
answers = [
    ask_for_nodes(),
    ask_for_nodes(**stranger, RAY_AUTH_MODE="disabled"),
    ask_for_nodes(**stranger, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="guessed"),
]
engine.close()
print(json.dumps({"places": sorted(places), "answers": answers}))
"""
"""Where a Ray of our own listens, and how it answers its owner and a stranger, of whom the home is given."""

LOST = """
import sys, time, psutil
import ray
from ray.cluster_utils import Cluster
from semrsm_dist.engine import Receipt, Resources, Task, make_engine, run_tasks
from semrsm_dist.engine.engines import ray as ray_engine
from semrsm_dist.errors import WorkError

whose, kind, fault, program = sys.argv[1:]
ray_engine.HEAD_SECONDS = ray_engine.KNOCK_SECONDS = 1.0
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
cluster = None
if whose == "joined":
    lean = {"no_monitor": True, "include_log_monitor": False, "include_dashboard": False}
    head = {"num_cpus": 1, **lean}
    cluster = Cluster(initialize_head=True, head_node_args=head)
engine = make_engine("ray", workers=1, address=cluster and cluster.address)

def worker(units):
    for unit in units:
        time.sleep(0.1)
        yield Receipt(unit)

victims = []

def kill(receipt):
    if not victims:
        processes = psutil.Process().children(recursive=True)
        victims.extend(each for each in processes if program in "".join(each.cmdline()[:1]))
        for each in victims:
            each.kill() if fault == "dies" else each.suspend()

if kind == "tasks":
    pool = engine.start_tasks(worker, Resources())
else:
    pool = engine.start_actors(lambda: worker, 1, Resources())
tasks = [Task((unit,)) for unit in range(3000)]
for work in (
    lambda: run_tasks(pool, tasks, on_receipt=kill),
    lambda: engine.start_tasks(worker, Resources()),
    engine.describe,
):
    try:
        work()
    except WorkError as error:
        print(error)
engine.close()
for each in victims:
    if each.is_running():
        each.kill()
"""
"""A process of Ray dies or hangs while there is work; what is tried after that fails for the same reason."""

HEAD_IS_AWAY = r"head of the Ray cluster at .* does not answer .* run's command"

WITHOUT_RAY = """
import importlib.metadata, sys
sys.modules["ray"] = None
version = importlib.metadata.version

def version_of_others(name):
    if name == "ray":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)

importlib.metadata.version = version_of_others
from semrsm_dist.cli.commands import main
print(main(["run", sys.argv[1]]), main(["run", sys.argv[1], "--engine", "ray"]))
"""


def python(code, *arguments, **options):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, **options)


def test_a_folder_that_ray_cannot_use_is_named_with_its_variable(tmp_path):
    (tmp_path / "file").touch()
    long = tmp_path / ("x" * 90)
    long.mkdir()
    done = python(START + REFUSED, long, tmp_path / "file")
    assert done.returncode == 0, done.stderr
    by_tmpdir, by_own, by_file, by_foreign = json.loads(done.stdout)
    assert f"{long} (TMPDIR)" in by_tmpdir
    assert f"{long} (RAY_TMPDIR)" in by_own
    assert f"{tmp_path / 'file'} (RAY_TMPDIR)" in by_file
    assert "/proc/1 (RAY_TMPDIR)" in by_foreign
    for message in (by_tmpdir, by_own):
        assert "107 bytes" in message
        assert "set RAY_TMPDIR to a folder of your own" in message


@pytest.fixture
def below_uv(tmp_path):
    """Run Python code below a process that looks to Ray like `uv run` in a folder with a project."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mine"\nversion = "1"\n')
    (tmp_path / "driver.py").write_text(START + STARTED)
    (tmp_path / "run").write_text(f"{sys.executable} driver.py\nexit $?\n")
    return subprocess.run(
        ["uv", "run"],
        executable="/bin/bash",
        cwd=tmp_path,
        env={name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
        | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_ray_started_below_uv_sends_no_working_directory_and_is_left_as_it_was(below_uv):
    assert below_uv.returncode == 0, below_uv.stderr
    found = json.loads(below_uv.stdout)
    assert found == {"environment": {}, "patched": True, "token": "0o600", "undone": True}


def read(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """The home of a user, and that of another."""
    home = tmp_path_factory.mktemp("homes")
    for name in ("mine", "other"):
        (home / name).mkdir()
    return home


@pytest.fixture(scope="module")
def ours(homes):
    """What a Ray of our own does that is told nothing."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("RAY_AUTH")}
    return read(python(OURS, homes / "other", env=environment | {"HOME": str(homes / "mine")}))


def test_a_ray_of_our_own_listens_on_this_machine_alone(ours):
    assert ours["places"]
    assert set(ours["places"]) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_nobody_gets_into_a_ray_of_our_own_without_its_token(ours, homes):
    assert ours["answers"] == ["1", "refused", "refused"]
    token = homes / "mine" / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o077 == 0
    assert list(token.parent.iterdir()) == [token]


@pytest.mark.parametrize(
    ("whose", "kind", "fault", "program", "says"),
    [
        (
            "own",
            "tasks",
            "dies",
            "DashboardAgent",
            r"Ray's process raylet on this machine died, .* the run's command",
        ),
        ("joined", "actors", "dies", "gcs_server", HEAD_IS_AWAY),
        ("joined", "actors", "hangs", "gcs_server", HEAD_IS_AWAY),
    ],
)
def test_a_process_that_ray_cannot_replace_ends_the_work_with_reason_and_remedy(
    whose, kind, fault, program, says
):
    done = python(LOST, whose, kind, fault, program)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[-3:]
    assert [bool(re.search(says, line)) for line in said] == [True] * 3, done.stdout


def test_ray_works_for_a_command_without_standard_error(tmp_path):
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(6, 4, 3)))
    (tmp_path / "job.yaml").write_text("run: run\ndata: {source: features, layers: {last: z.npy}}\n")
    command = f"{sys.executable} -m semrsm_dist run job.yaml --engine ray 2>&-"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0
    assert "6 images, 1 layer, complete" in done.stdout


def test_without_ray_the_local_engine_works_and_the_other_says_what_is_missing(tmp_path):
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(6, 4, 3)))
    layers = {"last": str(tmp_path / "z.npy")}
    config = tmp_path / "config.yaml"
    config.write_text(
        yaml.safe_dump({"run": str(tmp_path / "run"), "data": {"source": "features", "layers": layers}})
    )
    done = python(WITHOUT_RAY, config)
    assert done.stdout.splitlines()[-1] == "0 2", done.stderr
    assert "engine 'ray' needs the package 'ray', which is not installed" in done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "ray" not in record["versions"]
    assert record["versions"]["numpy"] == np.__version__


def test_no_living_node_is_no_fault_of_the_configuration(monkeypatch):
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": False, "Resources": {"CPU": 2.0}}])
    with pytest.raises(WorkError, match=r"no node of Ray is alive.*start the run's command"):
        RayEngine.require_room(object.__new__(RayEngine), Resources(memory=16 * 2**20))
    assert str(Resources(memory=16 * 2**20)) == "1 CPU, 16 MiB memory"


def test_a_ray_that_does_not_start_in_time_is_reported_with_the_ways_out(monkeypatch):
    def fails(**options):
        raise Exception("The current node timed out during startup.\nmore")  # noqa: TRY002 - as Ray does

    monkeypatch.setattr("ray.init", fails)
    with pytest.raises(
        WorkError, match=r"did not start on this machine: The current node timed out .* engine local"
    ):
        make_engine("ray", workers=1)

"""What a container allows, read from the files that cgroups (v2 and v1) show."""

import os
import re
import tempfile
from importlib import import_module

import psutil
import pytest

import semrsm_dist
from semrsm_dist import machine
from semrsm_dist.cli import commands
from semrsm_dist.errors import StorageError

N_CPUS = len(os.sched_getaffinity(0))


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    """Write the process's cgroup and the limits of some folders."""
    root = tmp_path / "cgroup"
    monkeypatch.setattr(machine, "CGROUP_ROOT", root)
    monkeypatch.setattr(machine, "CGROUP_OF_PROCESS", tmp_path / "self")

    def write(process, **limits):
        (tmp_path / "self").write_text(process)
        for name, text in limits.items():
            path = root / name.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")

    return write


def test_without_limits_the_machine_is_available(cgroup):
    cgroup("")
    assert machine.available_cpus() == N_CPUS
    assert machine.available_memory() == psutil.virtual_memory().total


def test_version_2_limits_hold_from_every_level_above(cgroup):
    cgroup(
        "0::/pod/app\n",
        pod__app__memory_DOT_max="max",
        pod__memory_DOT_max="3000000",
        memory_DOT_max="9000000",
        pod__app__cpu_DOT_max="max 100000",
        pod__cpu_DOT_max="150000 100000",
    )
    assert machine.available_memory() == 3_000_000
    assert machine.available_cpus() == 1  # of one and a half


def test_memory_above_which_processes_are_throttled_is_not_available(cgroup):
    cgroup("0::/pod\n", pod__memory_DOT_max="3000000", pod__memory_DOT_high="2000000")
    assert machine.available_memory() == 2_000_000
    cgroup("0::/pod\n", pod__memory_DOT_max="3000000", pod__memory_DOT_high="max")
    assert machine.available_memory() == 3_000_000


def test_version_1_limits_hold_and_the_hosts_path_may_be_absent(cgroup):
    cgroup(
        "4:memory:/docker/of-the-host\n3:cpu,cpuacct:/docker/of-the-host\n0::/\n",
        memory__memory_DOT_limit_in_bytes="5000000",
        cpu__cpu_DOT_cfs_quota_us="-1",
        cpu__cpu_DOT_cfs_period_us="100000",
    )
    assert machine.available_memory() == 5_000_000
    assert machine.available_cpus() == N_CPUS
    cgroup("3:cpu,cpuacct:/\n", cpu__cpu_DOT_cfs_quota_us="50000")
    assert machine.available_cpus() == 1  # half a CPU is still a worker


def test_the_affinity_of_the_process_counts(cgroup, monkeypatch):
    cgroup("")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert machine.available_cpus() == 1


def test_visible_gpus_are_counted_without_a_gpu_library(tmp_path, monkeypatch):
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(machine, "DEVICES", tmp_path)
    for visible, count in (
        (None, 3),
        ("", 0),
        ("-1", 0),
        ("1", 1),
        ("0, 1", 2),
        ("0,1,2,3,4", 3),
        ("1,-1,0", 1),
    ):
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert machine.available_gpus() == count


def test_without_a_folder_for_temporary_files_commands_and_names_say_what_to_do(
    monkeypatch, capsys, tmp_path
):
    gone = str(tmp_path / "gone")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [gone])
    monkeypatch.setenv("TMPDIR", gone)

    def load(name):
        return tempfile.gettempdir() if name == "semrsm_dist.features.extract" else import_module(name)

    said = r"no folder for temporary files can be written \(TMPDIR is .*gone; .*let TMPDIR name a folder"
    with monkeypatch.context() as patch:
        patch.delitem(vars(semrsm_dist), "extract", raising=False)
        patch.setattr(semrsm_dist._importlib, "import_module", load)
        with pytest.raises(StorageError, match=said):
            semrsm_dist.extract  # noqa: B018
    monkeypatch.setitem(commands._COMMANDS, "models", lambda options: tempfile.gettempdir())
    assert commands.main(["models"]) == 1
    assert re.search(said, capsys.readouterr().err)


def test_another_file_that_is_not_there_stays_a_defect(monkeypatch):
    monkeypatch.setitem(commands._COMMANDS, "models", lambda options: open("/nowhere/at/all"))  # noqa: PTH123, SIM115
    with pytest.raises(FileNotFoundError):
        commands.main(["models"])

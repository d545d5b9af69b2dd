"""The SLURM script on a real SLURM of two nodes, both on this machine, with all its ports on loopback."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import semrsm_dist as srs

SCRIPT = Path(__file__).parents[2] / "deploy/slurm.sh"
PROGRAMS = [f"/usr/sbin/{name}" for name in ("slurmctld", "slurmd")]

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, [*PROGRAMS, "sbatch"])),
    reason="needs root and SLURM (Debian's package slurm-wlm)",
)

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={path}/state
SlurmdSpoolDir={path}/spool-%n
SlurmctldPidFile={path}/slurmctld.pid
SlurmdPidFile={path}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
# With its defaults of 10 s, SLURM takes a busy machine for a dead one: it holds the job, or drains the node.
MessageTimeout=60
BatchStartTimeout=120
UnkillableStepTimeout=300
SlurmdTimeout=600
SchedulerParameters=sched_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory={memory}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory={memory}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

RUN = """\
run: {path}/run
data: {{source: digits, n_images: {n_images}}}
model: {{name: test_resnet, weights: digits, layers: [layer2]}}
matching: {{matcher: auction, tolerance: 0, tile: 16}}
"""


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Start a controller and two nodes, and return a function that calls SLURM's commands."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "semrsm").write_text(f'#!/bin/sh\nexec {sys.executable} -m semrsm_dist "$@"\n')
    (tools / "semrsm").chmod(0o755)
    (tools / "ray").symlink_to(Path(sys.executable).parent / "ray")
    for name in ("state", "spool-n1", "spool-n2", "home"):
        (tmp_path / name).mkdir()
    configuration = tmp_path / "slurm.conf"
    memory = psutil.virtual_memory().total // 2**20
    configuration.write_text(
        CONFIGURATION.format(
            host=socket.gethostname().split(".")[0], path=tmp_path, ports=free_ports(3), memory=memory
        )
    )
    for name, value in (
        ("SLURM_CONF", configuration),
        ("HOME", tmp_path / "home"),  # where Ray keeps its token
        ("PATH", f"{tools}:{os.environ['PATH']}"),
        ("PYTHONPATH", SCRIPT.parents[1]),
    ):
        monkeypatch.setenv(name, str(value))

    def command(*arguments):
        return subprocess.run(
            arguments, check=True, capture_output=True, text=True, timeout=60
        ).stdout.strip()

    daemons = [
        subprocess.Popen(
            daemon, stdout=subprocess.DEVNULL, stderr=(tmp_path / f"daemon{number}.log").open("wb")
        )
        for number, daemon in enumerate(
            [[PROGRAMS[0], "-D"], [PROGRAMS[1], "-D", "-N", "n1"], [PROGRAMS[1], "-D", "-N", "n2"]]
        )
    ]
    try:
        wait_for(
            lambda: (
                "2 idle"
                in subprocess.run(
                    ["sinfo", "-h", "-o", "%D %t"], capture_output=True, text=True, check=False
                ).stdout
            ),
            30,
            "SLURM's nodes",
        )
        yield command
    finally:
        subprocess.run(["scancel", "--full", "--state=RUNNING"], check=False, timeout=60)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)


def submit(command, tmp_path, n_images):
    (tmp_path / "run.yaml").write_text(RUN.format(path=tmp_path, n_images=n_images))
    return command(
        "sbatch",
        "--parsable",
        "--nodes=2",
        "--cpus-per-task=1",
        "--mem-per-cpu=100M",
        "--time=20",
        f"--output={tmp_path}/log",
        str(SCRIPT),
        str(tmp_path / "run.yaml"),
    )


def tiles(tmp_path):
    return {
        path: path.stat().st_mtime_ns
        for path in tmp_path.glob("run/tiles.zarr/*/tiles/c/**/*")
        if path.is_file() and re.fullmatch(r"\d+", path.name)
    }


def of_the_job(job):
    """Return the processes of Ray that the job started."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if f"/tmp/ray-{job}/" in " ".join(process.info["cmdline"] or [])
    ]


def test_a_job_goes_on_after_its_time_limit(slurm, tmp_path):
    """SLURM's signal before the limit stops the driver in order; in its next allocation the job computes the rest."""
    job = submit(slurm, tmp_path, n_images=240)
    log = tmp_path / "log"

    def state():
        return slurm("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")

    try:
        wait_for(lambda: len(tiles(tmp_path)) > 1, 180, "first tiles")
        slurm("scancel", "--signal=USR1", "--batch", job)
        wait_for(lambda: state() == "PENDING", 60, "the job to be requeued")
        assert "time limit: the finished tiles are kept" in log.read_text()
        wait_for(lambda: not of_the_job(job), 60, "Ray's processes to end")
        done = tiles(tmp_path)
        assert 0 < len(done) < 120, "stopped in the middle"

        # Not at once: a node refuses a job whose permit is no newer than the end of its last try, and the job is held.
        slurm("scontrol", "update", f"jobid={job}", "StartTime=now+15")
        wait_for(lambda: state() == "COMPLETED", 480, "the job to complete")
        wait_for(lambda: not of_the_job(job), 60, "Ray's processes to end")
    except AssertionError as error:
        error.add_note(log.read_text()[-4000:] if log.exists() else "the job wrote nothing")
        error.add_note(slurm("scontrol", "show", "job", job) + slurm("scontrol", "show", "node"))
        raise
    assert done.items() <= tiles(tmp_path).items(), "nothing finished is computed again"
    assert (tmp_path / "home/.ray/auth_token").stat().st_mode & 0o077 == 0
    run = srs.open_run(tmp_path / "run")
    assert run.similarity("layer2").shape == (240, 240)
    assert "on 2 CPUs" in log.read_text(), "both nodes computed"


def test_a_wrong_configuration_fails_the_job_without_a_second_try(slurm, tmp_path):
    (tmp_path / "run.yaml").write_text("run: here\n")
    job = slurm(
        "sbatch",
        "--parsable",
        "--nodes=1",
        "--cpus-per-task=1",
        "--mem-per-cpu=100M",
        f"--output={tmp_path}/log",
        str(SCRIPT),
        str(tmp_path / "run.yaml"),
    )
    wait_for(
        lambda: slurm("squeue", "-h", "-t", "all", "-j", job, "-o", "%T") == "FAILED", 120, "the job to fail"
    )
    assert "ExitCode=2:0" in slurm("scontrol", "show", "job", job)
    assert "data" in (tmp_path / "log").read_text()

"""A real submission: a Ray cluster of several nodes on this machine, the job API, and the matrix it leaves."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

import semrsm_dist as srs

JOBS = Path(__file__).parents[1] / "jobs"


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """Run a head without CPUs and two nodes with one CPU each, and give the address of its job API."""
    from ray.cluster_utils import Cluster

    head = {
        "num_cpus": 0,
        "include_dashboard": True,
        "dashboard_port": free_port(),
        # Ray's fixed default would collide with any other Ray on this machine.
        "dashboard_agent_listen_port": free_port(),
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    with contextlib.ExitStack() as folders:
        for _ in range(2):
            # A folder of its own, as on a host of its own: nodes that share one remove each other's working
            # directories of jobs. The path is short because it holds sockets.
            folder = folders.enter_context(
                tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True)
            )
            cluster.add_node(num_cpus=1, temp_dir=folder)
        cluster.wait_for_nodes()
        yield f"http://{cluster.head_node.webui_url}"
        cluster.shutdown()


@pytest.fixture
def working_dir(tmp_path: Path) -> Path:
    """A folder such as a user submits: the job script and a configuration."""
    folder = tmp_path / "submitted"
    folder.mkdir()
    shutil.copy(JOBS / "build_rsm.py", folder)
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(20, 16, 8)).astype(np.float32))
    document = {
        "run": "runs/features",
        "data": {"source": "features", "layers": {"last": str(tmp_path / "z.npy")}},
        "kernels": ["cosine"],
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(document))
    return folder


def submit(dashboard: str, working_dir: Path, *arguments: str) -> tuple[str, str]:
    """Submit the job script, wait for its end, and return its status and what it printed."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(dashboard)
    deadline = time.monotonic() + 240
    job = None
    while job is None:
        try:
            job = client.submit_job(
                entrypoint=" ".join([sys.executable, "build_rsm.py", "config.yaml", *arguments]),
                runtime_env={"working_dir": str(working_dir)},
            )
        except RuntimeError as error:  # the head's job agent starts later than the head
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1)
    while (status := client.get_job_status(job)) in {JobStatus.PENDING, JobStatus.RUNNING}:
        assert time.monotonic() < deadline, client.get_job_logs(job)
        time.sleep(0.5)
    return str(status), client.get_job_logs(job)


@pytest.mark.timeout(300)
def test_submitted_job_computes_the_matrix_and_resumes(
    dashboard: str, working_dir: Path, tmp_path: Path
) -> None:
    run = tmp_path / "shared" / "run"
    status, logs = submit(dashboard, working_dir, "--set", f"run={run}")
    assert status == "SUCCEEDED", logs
    assert "2 CPUs" in logs  # the two nodes beside the head, whose CPUs are not for work

    here = srs.load_config(working_dir / "config.yaml", [f"run={tmp_path / 'here'}"])
    srs.run(here)
    submitted = srs.open_run(run).similarity("last")
    local = srs.open_run(tmp_path / "here").similarity("last")
    np.testing.assert_array_equal(submitted.values, local.values)

    status, logs = submit(dashboard, working_dir, "--set", f"run={run}")
    assert status == "SUCCEEDED", logs
    assert "nothing was computed" in logs

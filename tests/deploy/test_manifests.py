"""The files for Kubernetes and containers, checked by schemas and linters of their tools without a cluster."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from semrsm_dist.engine.engines.ray import GROWTH

jsonschema = pytest.importorskip("jsonschema", reason="part of the extra `test`")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="part of the extra `test`")

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((Path(__file__).parent / "rayjob.schema.json").read_text())


@pytest.fixture
def job():
    return yaml.safe_load((ROOT / "deploy/rayjob.yaml").read_text())


def groups(job):
    cluster = job["spec"]["rayClusterSpec"]
    return {
        "head": cluster["headGroupSpec"],
        **{group["groupName"]: group for group in cluster["workerGroupSpecs"]},
    }


def validate(job):
    jsonschema.validate(job, SCHEMA)
    for group in groups(job).values():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_the_ray_job_is_one_that_kuberay_takes(job):
    validate(job)


def test_nothing_is_reachable_from_outside_of_kubernetes(job):
    text = (ROOT / "deploy/rayjob.yaml").read_text()
    assert not re.search(
        r"LoadBalancer|NodePort|host(Network|Port|IP)|ingress|headService", text, re.IGNORECASE
    )
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    for group in groups(job).values():
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsUser"] != 0
        assert not any("privileged" in str(container) for container in pod["containers"])


def test_misspelt_fields_would_be_seen(job):
    for path, error in (
        (("spec", "backoffLimits"), jsonschema.ValidationError),
        (("spec", "rayClusterSpec", "workerGroup"), jsonschema.ValidationError),
        (
            ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "volume"),
            kubernetes_validate.ValidationError,
        ),
    ):
        broken = copy.deepcopy(job)
        place = broken
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = []
        with pytest.raises(error, match=path[-1]):
            validate(broken)


def test_the_head_states_how_far_the_groups_can_grow(job):
    """A run sizes itself by these two resources; they must be those of the groups that the autoscaler can start."""
    sizes = groups(job)
    stated = json.loads(
        json.loads(f'"{sizes["head"]["rayStartParams"]["resources"].strip(chr(34) + chr(39))}"')
    )

    def limit(group, resource):
        container = group["template"]["spec"]["containers"][0]
        return group["maxReplicas"] * int(container["resources"]["limits"].get(resource, 0))

    assert stated == {
        GROWTH["CPU"]: limit(sizes["cpu"], "cpu"),
        GROWTH["GPU"]: limit(sizes["gpu"], "nvidia.com/gpu"),
    }
    assert sizes["head"]["rayStartParams"]["num-cpus"] == sizes["gpu"]["rayStartParams"]["num-cpus"] == "0"


def test_nobody_joins_without_a_token_and_no_port_is_opened(job):
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    text = json.dumps(job)
    for word in ("hostNetwork", "hostPort", "LoadBalancer", "NodePort", "enableIngress", "privileged"):
        assert word not in text


def test_all_pods_share_the_volume_of_runs(job):
    for group in groups(job).values():
        spec = group["template"]["spec"]
        assert {"name": "runs", "mountPath": "/runs"} in spec["containers"][0]["volumeMounts"]
        assert spec["volumes"][0] == {"name": "runs", "persistentVolumeClaim": {"claimName": "semrsm"}}


def test_the_container_file_passes_its_linter():
    subprocess.run(
        [
            Path(sys.executable).parent / "hadolint",
            "--failure-threshold",
            "info",
            ROOT / "deploy/Containerfile",
        ],
        check=True,
    )


def test_the_container_file_copies_what_exists():
    text = (ROOT / "deploy/Containerfile").read_text()
    copied = re.findall(r"^COPY (?:--\S+ )?(\S+) \./$", text, re.MULTILINE)
    assert copied == ["requirements.lock", "."]
    assert all((ROOT / name).exists() for name in copied)

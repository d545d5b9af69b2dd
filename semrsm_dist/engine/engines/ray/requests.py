"""What workers request from Ray, and Ray's resources in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from semrsm_dist.engine.protocol import Resources


def ray_request(resources: Resources) -> dict[str, float]:
    """Return the resources to request from Ray, by Ray's names.

    A worker with a GPU requests no CPU slot: it has the node's CPUs with the GPU, and a cluster can then have GPU
    nodes without CPU slots, which no other work keeps alive.
    """
    return {
        "CPU": 0 if resources.gpus else resources.cpus,
        "GPU": resources.gpus,
        "memory": resources.memory or 0,
    }


def format_resources(amounts: Mapping[str, float]) -> str:
    """Return Ray's resources in words."""
    return str(Resources(amounts.get("CPU", 0), amounts.get("GPU", 0), int(amounts.get("memory", 0))))


def ray_options(resources: Resources) -> dict[str, Any]:
    """Return the options of a task or an actor that requests these resources."""
    wanted = ray_request(resources)
    options: dict[str, Any] = {"num_cpus": wanted["CPU"], "num_gpus": wanted["GPU"]}
    if wanted["memory"]:
        options["memory"] = wanted["memory"]
    return options

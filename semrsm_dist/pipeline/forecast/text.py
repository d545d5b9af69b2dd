"""A plan as text, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from semrsm_dist.errors import counted, printable_name
from semrsm_dist.progress import format_seconds
from semrsm_dist.store.record import NeighbourSettings

LIMITS = {
    "workers": "the workers",
    "memory": "memory, which allows fewer workers than there are CPUs and GPUs for",
    "storage": "storage, on which workers wait",
    "driver": "the driver",
    "work": "too little work to share",
}
"""What keeps a run from being faster, in words."""


def format_plan(plan: Mapping[str, Any]) -> str:
    """Format a plan for people."""
    counts = " x ".join(f"{count} {side}" for side, count in plan["images"].items())
    matcher = ", ".join(f"{name} {value}" for name, value in plan["matcher"].items() if name != "name")
    head = f"{plan['run']}: {counts}, matcher {plan['matcher']['name']}{matcher and f', {matcher}'}"
    lines = [head, *_model_lines(plan["model"]), *_layer_lines(plan["layers"])]
    if plan["neighbours"] is not None:
        kept = NeighbourSettings(plan["neighbours"], None).describe(plan["images"])
        lines.append(
            f"{kept}: how many pairs bounds decide is extrapolated from a sample, "
            "so that core-hours and time are rough for many more images"
        )
    if plan["image_seconds"]:
        lines.append(
            f"extraction: {1e3 * plan['image_seconds']:.0f} ms/image, {plan['extraction_core_hours']:.2f} core-hours"
        )
    low, high = plan["seconds_interval"]
    files = plan["files"]
    gpus = f", {plan['gpu_hours']:.2f} GPU-hours" if plan["gpu_hours"] else ""
    free = "no limit" if plan["disk_free_bytes"] is None else f"{_size(plan['disk_free_bytes'])} free"
    lines += [
        f"work: {counted(plan['pairs'], 'pair')}, {counted(plan['tiles'], 'tile')}, about "
        f"{counted(plan['tasks'], 'task')}; {plan['core_hours']:.2f} core-hours{gpus}",
        f"disk: about {_size(plan['disk_bytes'])} in {counted(sum(files.values()), 'file')}, uncompressed up to "
        f"{_size(plan['disk_bytes_at_most'])}; {free}",
        f"features read by workers: {_size(plan['read_bytes'])}",
        f"memory: about {_size(plan['peak_memory_bytes'])} at the peak, with up to "
        f"{_size(plan['worker_memory_bytes'])} for each of {counted(plan['workers'], 'worker')} in matching; "
        f"{_size(plan['memory_limit_bytes'])} allowed here",
        f"time: about {format_seconds(plan['seconds'])} on {counted(plan['workers'], 'worker')} "
        f"({plan['engine']['engine']} engine), of which {format_seconds(plan['start_seconds'])} to start; with "
        f"{100 * plan['confidence']:.0f} % confidence between {format_seconds(low)} and {format_seconds(high)}; "
        f"limited by {LIMITS[plan['limit']]}",
        *_scaling_lines(plan["scaling"]),
    ]
    return "\n".join([*lines, *filter(None, [plan["workers_limit"]]), *plan["problems"]])


def _model_lines(model: Mapping[str, Any] | None) -> list[str]:
    """Return which model is assumed, and those of its settings that change time or numbers, in one line."""
    if model is None:
        return []
    valued = ("weights", "input_size", "preprocessing", "prompt", "precision", "batch_size")
    settings = [f"{name} {model[name]}" for name in valued if name in model]
    settings += [name for name in ("compile", "jpeg_draft") if model[name]]
    return [printable_name(f"model {', '.join([model['name'], *settings])}")]


def _layer_lines(layers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    head = f"{'layer':<24} {'S':>6} {'C':>6} {'pairs':>12} {'tile':>5} {'ms/pair':>9} {'core-hours':>11}"
    return [head] + [
        f"{layer:<24} {facts['n_tokens']:>6} {facts['n_channels']:>6} {facts['pairs']:>12} {facts['tile']:>5} "
        f"{1e3 * facts['pair_seconds']:>9.3f} {facts['core_seconds'] / 3600:>11.2f}"
        for layer, facts in layers.items()
    ]


def _scaling_lines(scaling: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "matching simulated:",
        f"{'workers':>7} {'time':>12} {'busy':>5} {'tasks':>8} {'read/worker':>12} {'read':>10} {'driver':>10}  "
        "limited by",
    ]
    lines += [
        f"{row['workers']:>7} {format_seconds(row['seconds']):>12} {100 * row['busy']:>3.0f} % {row['tasks']:>8} "
        f"{_size(row['read_bytes_per_worker']):>12} {_size(row['read_bytes']):>10} "
        f"{format_seconds(row['driver_seconds']):>10}  {LIMITS[row['limit']].partition(',')[0]}"
        for row in scaling
    ]
    return lines


def _size(n_bytes: float) -> str:
    """Format bytes in a unit that leaves a few digits."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if n_bytes >= 2**power:
            return f"{n_bytes / 2**power:.1f} {unit}"
    return f"{n_bytes:.0f} B"

"""The progress of a run, read from its store during or after a session."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from semrsm_dist.progress import format_seconds
from semrsm_dist.results.run import Run
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.results import result_store, tile_files

WINDOW_SECONDS = 300.0
"""The rate is measured over the tiles that arrived in this time."""


def read_status(path: str | Path) -> dict[str, Any]:
    """Return the progress of a run.

    Parameters
    ----------
    path
        The run directory.

    Returns
    -------
    dict
        JSON values: whether a driver is at work, and whether the run is complete, that is, all layers that its last
        session requested; per layer, whether it was requested, and how many feature chunks, tiles and pairs are
        done; pairs per second over the last minutes, seconds left at that rate (None if nothing arrived),
        seconds since the last tile, and the units set aside by the last session.

    Raises
    ------
    ConfigError
        If there is no run at `path`.
    """
    directory = RunDirectory(path)
    if directory.read_record() is None and directory.is_locked():
        return _starting(directory)
    run = Run(path)
    layers: dict[str, Any] = {}
    now, recent_pairs, recent_work, work_left, oldest, newest = time.time(), 0, 0.0, 0.0, 0.0, math.inf
    for layer, sizes in run.record.layers.items():
        layout = run.layout(layer)
        store = tile_files(directory, run.record, layer)
        ages, pairs = now - store.arrival_times(layout), layout.pairs()
        arrived, recent = ~np.isnan(ages), ages <= WINDOW_SECONDS
        done = int(pairs[arrived].sum())
        newest = min(newest, float(np.min(ages[arrived], initial=math.inf)))
        recent_pairs += int(pairs[recent].sum())
        recent_work += int(pairs[recent].sum()) * sizes.pair_seconds
        oldest = max(oldest, float(np.max(ages[recent], initial=0.0)))
        is_requested = layer in run.requested_layers
        work_left += (layout.total_pairs - done) * sizes.pair_seconds if is_requested else 0.0
        layers[layer] = {
            "n_tokens": sizes.n_tokens,
            "n_channels": sizes.n_channels,
            "chunks": _feature_chunks(run, layer),
            "tiles": [int(arrived.sum()), layout.n_tiles],
            "pairs": [done, layout.total_pairs],
            "complete": result_store(directory, run.record, layer).is_done(layout),
            "requested": is_requested,
        }
    is_working = directory.is_locked()
    span = max(oldest, 1.0)
    left = work_left / (recent_work / span) if recent_work and is_working else None
    return {
        "run": str(directory.path),
        "working": is_working,
        "complete": all(facts["complete"] for facts in layers.values() if facts["requested"]),
        "layers": layers,
        "pairs_per_second": recent_pairs / span if is_working and recent_pairs else None,
        "seconds_left": left,
        "last_tile_seconds": max(newest, 0.0) if math.isfinite(newest) else None,
        "failed": _failed(run),
    }


def _starting(directory: RunDirectory) -> dict[str, Any]:
    """Return the status of a run whose driver is still checking images and model: there is no record yet."""
    return {
        "run": str(directory.path),
        "working": True,
        "complete": False,
        "layers": {},
        "pairs_per_second": None,
        "seconds_left": None,
        "last_tile_seconds": None,
        "failed": [],
    }


def format_status(status: dict[str, Any]) -> str:
    """Format a status for people."""
    state = "complete" if status["complete"] else "incomplete"
    activity = "a driver is at work" if status["working"] else "no driver is at work"
    lines = [f"{status['run']}: {state}, {activity}"]
    if not status["layers"]:
        lines.append("  it is checking the images and the model; nothing is computed yet")
    for layer, facts in status["layers"].items():
        chunks, tiles, pairs = facts["chunks"], facts["tiles"], facts["pairs"]
        share = 100 * pairs[0] / pairs[1]
        lines.append(
            f"  {layer}: features {chunks[0]}/{chunks[1]} chunks, {tiles[0]}/{tiles[1]} tiles, "
            f"{pairs[0]}/{pairs[1]} pairs ({share:.0f} %){', complete' if facts['complete'] else ''}"
            f"{'' if facts['requested'] else ' (of an earlier session; no longer requested)'}"
        )
    if status["pairs_per_second"]:
        lines.append(
            f"  {status['pairs_per_second']:.0f} pairs/s, {format_seconds(status['seconds_left'])} left, "
            f"last tile {format_seconds(status['last_tile_seconds'])} ago"
        )
    for failure in status["failed"]:
        lines.append(
            f"  failed: {failure['stage']} {failure['unit']}: {failure['error'].strip().splitlines()[-1]}"
        )
    if not status["complete"] and not status["working"]:
        lines.append("  start the run's command again to continue")
    return "\n".join(lines)


def _feature_chunks(run: Run, layer: str) -> list[int]:
    counts = run.record.counts
    there = sum(len(FeatureStore(run.directory.features, side, layer).present()) for side in counts)
    return [there, sum(-(-count // run.record.chunk_size) for count in counts.values())]


def _failed(run: Run) -> list[dict[str, str]]:
    failed: list[dict[str, str]] = []
    for event in run.directory.read_events():
        if event.get("event") == "started":
            failed = []
        elif event.get("event") == "failed":
            failed.append({name: str(event.get(name)) for name in ("stage", "unit", "error")})
    return failed

"""The progress of a run during or after a session: counted in its store, and as the driver's heartbeat has it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from semrsm_dist.results.run import Run
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.heartbeat import Heartbeat
from semrsm_dist.store.matrices import MatrixStore
from semrsm_dist.store.paths import RunPath
from semrsm_dist.store.results import result_store, tile_files
from semrsm_dist.store.tiles import TileStore

SILENT_SECONDS = 60.0
"""A driver that has given out work looks about once a second; one that has not for so long is stopped or hangs."""

WATCH_SECONDS, WATCH_FACTOR = 2.0, 10.0
"""Time between two looks at a run, and the same as a multiple of what a look takes."""


def read_status(path: str | RunPath) -> dict[str, Any]:
    """Return the progress of a run, as JSON values; raises ConfigError if there is no run at `path`.

    `working` is whether a driver holds the run, and `complete`, whether all layers are that its last session requested;
    `layers`, of each whether it was requested, how many feature chunks, tiles and pairs are done, and whether its
    matrices are stored, None if they are not to be; `driver`, the last one, and `stage`, what it is at or was, as in
    `semrsm_dist.store.heartbeat`, both None if it said nothing; `pairs_per_second` in the last minutes, `seconds_left`
    of the stage and `last_tile_seconds` since the last tile, None if not known; `failed`, the units set aside by the
    last session. The driver's `state` is "working", "silent" if it should have been heard of, "finished",
    "interrupted", "failed", or "lost" if it ended without saying so.
    """
    directory = RunDirectory(path)
    is_working, beat, now = directory.is_locked(), directory.read_heartbeat(), time.time()
    layers: dict[str, Any] = {}
    is_checking = is_working and directory.read_record() is None  # the images and the model
    if not is_checking:
        run = Run(path)
        layers = {layer: _layer(run, layer) for layer in run.layers}
    if is_working and beat is not None and beat.state != "working":
        beat = None  # of the session before: this one has just begun
    stage = None if beat is None else beat.stage
    is_matching = stage is not None and stage.unit == "pairs"
    return {
        "run": str(directory.path),
        "working": is_working,
        "complete": bool(layers) and all(one["complete"] for one in layers.values() if one["requested"]),
        "layers": layers,
        "driver": None if beat is None else _driver(beat, now, is_working=is_working),
        "stage": None if stage is None else stage.model_dump(mode="json"),
        "pairs_per_second": stage.rate if stage and is_matching and is_working else None,
        "seconds_left": stage.seconds_left if stage and is_working else None,
        "last_tile_seconds": max(now - stage.heard, 0.0) if stage and is_matching and stage.heard else None,
        "failed": _failed(directory, beat),
    }


def watch_status(path: str | RunPath) -> Iterator[dict[str, Any]]:
    """Yield `read_status` every few seconds until no driver is at work; errors as there."""
    while True:
        before = time.monotonic()
        status = read_status(path)
        yield status
        if not status["working"]:
            return
        time.sleep(max(WATCH_SECONDS, WATCH_FACTOR * (time.monotonic() - before)))


def _layer(run: Run, layer: str) -> dict[str, Any]:
    sizes, layout = run.record.layers[layer], run.layout(layer)
    present = tile_files(run.directory, run.record, layer).present(layout)
    counts, chunk_size = run.record.counts, run.record.chunk_size
    stored = _is_stored(run, layer)
    there = sum(len(FeatureStore(run.directory.features, side, layer).present()) for side in counts)
    return {
        "n_tokens": sizes.n_tokens,
        "n_channels": sizes.n_channels,
        "chunks": [there, sum(-(-count // chunk_size) for count in counts.values())],
        "tiles": [int(present.sum()), layout.n_tiles],
        "pairs": [int(layout.pairs()[present].sum()), layout.total_pairs],
        "complete": result_store(run.directory, run.record, layer).is_done(layout) and stored is not False,
        "stored": stored,
        "requested": layer in run.requested_layers,
    }


def _is_stored(run: Run, layer: str) -> bool | None:
    """Return whether the matrices of a layer are written out; None if they need not be."""
    if layer not in run.requested_layers or run.record.config["output"]["matrices"] != "stored":
        return None
    store, tiles = MatrixStore(run.directory.matrices, layer), TileStore(run.directory.tiles, layer)
    recipe = store.read_attributes().get("recipe")
    return recipe == tiles.read_attributes().get("recipe") and store.is_complete()


def _driver(beat: Heartbeat, now: float, *, is_working: bool) -> dict[str, Any]:
    silence = max(now - beat.time, 0.0)
    state: str = beat.state
    if state == "working":
        should_speak = beat.stage is not None and beat.stage.total > 0
        state = "lost" if not is_working else "silent" if should_speak and silence > SILENT_SECONDS else state
    return {
        "place": beat.driver,
        "state": state,
        "reason": beat.reason,
        "started": beat.started,
        "silent_seconds": silence,
    }


def _failed(directory: RunDirectory, beat: Heartbeat | None) -> list[dict[str, str]]:
    """Return the units that the last session has set aside; the heartbeat has those of a stage that has not ended."""
    failed: list[dict[str, str]] = []
    for event in directory.read_events():
        if event.get("event") == "started":
            failed = []
        elif event.get("event") == "failed":
            failed.append({name: str(event.get(name)) for name in ("stage", "unit", "error")})
    known = {one["unit"] for one in failed}
    if beat is not None and beat.stage is not None:
        new = [one for one in beat.stage.set_aside if one.unit not in known]
        failed += [{"stage": beat.stage.name, "unit": one.unit, "error": one.error} for one in new]
    return failed

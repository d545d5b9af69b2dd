"""A run from beginning to end: the stages in order, and what each hands to the next."""

from __future__ import annotations

import contextlib
import functools
import platform
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from semrsm_dist.config.schema import FeaturesData, RunConfig
from semrsm_dist.engine import Engine, Failure, make_engine
from semrsm_dist.errors import ConfigError, WorkError
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.matching.matchers import make_matcher
from semrsm_dist.pipeline.faults import list_failures
from semrsm_dist.pipeline.inputs import RunInputs, compare, resolve_inputs
from semrsm_dist.pipeline.session import Session
from semrsm_dist.pipeline.sizing import choose_sizes, require_disk
from semrsm_dist.pipeline.stages.assembly import assemble_layers
from semrsm_dist.pipeline.stages.extraction import extract_features
from semrsm_dist.pipeline.stages.extraction_worker import ReadableImages
from semrsm_dist.pipeline.stages.importing import import_features
from semrsm_dist.pipeline.stages.matching import match_layers
from semrsm_dist.pipeline.stages.outputs import ModelOutputs, extract_outputs
from semrsm_dist.pipeline.stages.scan import make_image_set, require_enough
from semrsm_dist.pipeline.summary import summarise
from semrsm_dist.plan.tiling import Layout, Tile
from semrsm_dist.progress import Reporter, SilentReporter
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.fingerprint import require_same
from semrsm_dist.store.matrices import MatrixStore
from semrsm_dist.store.tiles import TileStore

Record = dict[str, Any]


def run(
    config: RunConfig,
    *,
    engine: Engine | None = None,
    reporter: Reporter | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Compute a run, or what is missing of it.

    Parameters
    ----------
    config
        What to compute and where. The run directory decides whether this begins or continues a run.
    engine
        Where the work runs; None makes the configured one and closes it at the end.
    reporter
        Where progress is told; None tells nothing.
    stop
        Set from another thread, it ends the session early; everything finished is kept.

    Returns
    -------
    dict
        The summary: layers, pairs, times, what was found and what was computed, retrieval scores.

    Raises
    ------
    ResumeError
        If the directory holds a run of another configuration, or another driver is at work on it.
    InputError, ConfigError
        If images, features, model, layers or matcher cannot be used.
    StorageError
        If the store cannot be written to.
    WorkError
        If some of the work failed; what succeeded is kept.
    KeyboardInterrupt
        If it was interrupted or `stop` was set; what was finished is kept.
    """
    matcher = make_matcher(config.matching.matcher, **config.matching.parameters)
    with _open_session(config, engine, reporter, stop) as (session, record):
        return _run_session(session, matcher, record)


def compute_outputs(
    config: RunConfig, *, meaning: str | None = None, reporter: Reporter | None = None
) -> ModelOutputs:
    """Compute what the head of a run's model says of its images, or what is missing of it, and read it.

    Parameters
    ----------
    config
        Of a run that has been computed.
    meaning
        What the outputs mean, if the weights do not say; see `semrsm_dist.features.outputs.find_meaning`.
    reporter
        Where progress is told; None tells nothing.

    Raises
    ------
    ConfigError
        If there is no such run yet, or its model has no outputs that probabilities could be made of.
    ResumeError, InputError, StorageError, WorkError, KeyboardInterrupt
        As `run`.
    """
    with _open_session(config, None, reporter, None) as (session, record):
        return extract_outputs(session, record, meaning)


@contextlib.contextmanager
def _open_session(
    config: RunConfig, engine: Engine | None, reporter: Reporter | None, stop: threading.Event | None
) -> Iterator[tuple[Session, Record | None]]:
    """Hold the run directory and an engine, and give the session with the record of the run."""
    directory = RunDirectory(_lasting(config.run))
    directory.create()
    with directory.locked():
        record = directory.read_record()
        own_engine = engine is None
        engine = engine or make_engine(config.engine, address=config.address, workers=config.workers)
        session = Session(config, directory, engine, reporter or SilentReporter(), stop or threading.Event())
        try:
            yield session, record
        except KeyboardInterrupt:
            directory.append_event("interrupted")
            raise
        finally:
            if own_engine:
                engine.close()


def _lasting(path: Path) -> Path:
    """Return the run directory's absolute path, unless it would lie in the copy that Ray deletes after a job."""
    if not path.is_absolute() and "working_dir_files" in Path.cwd().parts:
        raise ConfigError(
            f"run: {path}: a submitted job works in a copy of its working directory that is deleted when it ends, and "
            "the results with it; nothing was computed: give an absolute path on a file system that all nodes share"
        )
    return path.absolute()


def _run_session(session: Session, matcher: Matcher, record: Record | None) -> dict[str, Any]:
    started = time.perf_counter()
    inputs = resolve_inputs(session, matcher, record)
    if record is not None:
        require_same(*compare(inputs, record), run=session.directory.path)
    require_enough("queries" in inputs.manifests, inputs.counts())
    if record is not None and not _is_assembled(session, inputs):
        session.directory.remove_partial_files()
    record = _make_record(session, matcher, inputs, record)
    _keep(session, inputs, record)
    layouts = {layer: _layout(record, layer) for layer in inputs.layers}
    _fill_features(session, inputs, record)
    failures = match_layers(
        session,
        matcher,
        layouts,
        row_side=inputs.row_side,
        sizes=record["layers"],
        chunk_size=record["chunk_size"],
    )
    failed_layers = {failure.unit.layer for failure in failures if isinstance(failure.unit, Tile)}
    assemble_layers(
        session,
        {layer: layout for layer, layout in layouts.items() if layer not in failed_layers},
        manifests=inputs.manifests,
        row_side=inputs.row_side,
        fingerprints={layer: inputs.facts | inputs.layer_facts.get(layer, {}) for layer in layouts},
    )
    if failures:
        raise _tiles_failed(failures)
    summary = summarise(session, inputs, layouts, total_seconds=time.perf_counter() - started)
    session.directory.write_summary(summary)
    session.directory.append_event("finished", seconds=summary["seconds"]["total"])
    return summary


def _is_assembled(session: Session, inputs: RunInputs) -> bool:
    return all(MatrixStore(session.directory.matrices, layer).is_complete() for layer in inputs.layers)


def _make_record(session: Session, matcher: Matcher, inputs: RunInputs, record: Record | None) -> Record:
    """Return the record of the run as it is after this session's questions; sizes once chosen are kept."""
    known = record["layers"] if record else {}
    sizes = choose_sizes(session.config, matcher, inputs, known, workers=session.engine.slots)
    layers = {
        layer: {**sizes.layers[layer], "facts": inputs.layer_facts.get(layer, {})} for layer in inputs.layers
    }
    if record is None:
        require_disk(session, inputs, {layer: sizes.layers[layer]["tile_size"] for layer in layers})
    chunk_size = record["chunk_size"] if record else sizes.chunk_size
    in_order = known if layers.keys() <= known.keys() else layers  # the network's, as far as it is known
    return {
        "fingerprint": inputs.facts,
        "layers": {**in_order, **known, **layers},
        "requested": list(layers),
        "chunk_size": chunk_size,
        "batch_size": _batch_size(session, record, chunk_size),
        "row_side": inputs.row_side,
        "counts": inputs.counts(),
        "cached": {**(record or {}).get("cached", {}), **inputs.cached},
        "config": session.config.model_dump(mode="json"),
        "versions": _versions(),
    }


def _batch_size(session: Session, record: Record | None, chunk_size: int) -> int | None:
    """Return the images of a forward pass: as the run began with, and never more than a chunk."""
    model = session.config.model
    if model is None:
        return None
    known: int | None = (record or {}).get("batch_size")
    return known or min(model.batch_size, chunk_size)


def _keep(session: Session, inputs: RunInputs, record: Record) -> None:
    for side, manifest in inputs.manifests.items():
        manifest.to_parquet(session.directory.manifest(side))
    session.directory.write_record(record)
    session.directory.append_event("started", engine=session.engine.describe(), versions=record["versions"])


def _layout(record: Record, layer: str) -> Layout:
    counts, row_side = record["counts"], record["row_side"]
    return Layout(
        counts[row_side], counts["images"], record["layers"][layer]["tile_size"], row_side == "images"
    )


def _fill_features(session: Session, inputs: RunInputs, record: Record) -> None:
    config, chunk_size = session.config, record["chunk_size"]
    unfinished = [layer for layer in inputs.layers if not _is_matched(session, record, layer)]
    to_extract: dict[str, ReadableImages] = {}
    for side, manifest in inputs.manifests.items():
        for layer, sizes in inputs.layers.items():
            FeatureStore(session.directory.features, side, layer).create(
                len(manifest.readable),
                sizes["n_tokens"],
                sizes["n_channels"],
                chunk_size,
                config.features.dtype,
            )
        for layer in unfinished:
            _remove_damaged_features(session, side, layer)
        data = config.data if side == "images" else config.queries
        if isinstance(data, FeaturesData):
            import_features(
                session,
                side,
                {layer: path.absolute() for layer, path in data.layers.items()},
                {layer: path.absolute() for layer, path in data.token_counts.items()},
                data.layout,
                image_ids=manifest.image_ids(),
                chunk_size=chunk_size,
            )
        elif data is not None:
            to_extract[side] = ReadableImages.of(make_image_set(data), manifest)
    if to_extract and config.model is not None:
        extract_features(
            session,
            to_extract,
            facts=record["cached"]["model"]["facts"],
            layers=inputs.layers,
            precision=record["cached"]["model"]["precision"],
            batch_size=record["batch_size"],
            chunk_size=chunk_size,
        )


def _is_matched(session: Session, record: Record, layer: str) -> bool:
    """Tell whether nothing needs the features of a layer any more."""
    if not MatrixStore(session.directory.matrices, layer).is_complete():
        return False
    return set(_layout(record, layer).tiles()) <= TileStore(session.directory.tiles, layer).present()


def _remove_damaged_features(session: Session, side: str, layer: str) -> None:
    """Read once what is there of a layer that is not finished: what cannot be decoded is then made again."""
    with session.timed("check"):
        damaged = FeatureStore(session.directory.features, side, layer).remove_damaged()
    if damaged:
        session.warn(
            f"layer {layer}: damaged features of {side} were removed (chunks: {len(damaged)}) and are made again"
        )


def _tiles_failed(failures: list[Failure]) -> WorkError:
    return WorkError(
        f"{len(failures)} tiles failed and were set aside; all others are kept, but the matrices of their layers are "
        f"not complete:\n{list_failures(failures)}\nThe same command tries them again (full errors in events.jsonl)"
    )


@functools.cache
def _versions() -> dict[str, str]:
    names = ("semrsm-dist", "numpy", "scipy", "numba", "zarr", "torch", "timm", "ray")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}

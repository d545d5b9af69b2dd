"""A run from beginning to end: the stages in order, and what each passes to the next."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from semrsm_dist.config.schema import RunConfig, as_config
from semrsm_dist.engine import Engine, Resources, make_engine, require_engine
from semrsm_dist.errors import ConfigError, WorkError
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.pipeline.faults import list_failures
from semrsm_dist.pipeline.inputs import RunInputs, compare, resolve_inputs
from semrsm_dist.pipeline.rebuilding import adopt_sizes
from semrsm_dist.pipeline.session import Session
from semrsm_dist.pipeline.signals import find_cause
from semrsm_dist.pipeline.sizing import make_record, require_disk, require_memory
from semrsm_dist.pipeline.stages.assembly import assemble_layers
from semrsm_dist.pipeline.stages.features import provide_features, warn_of_damaged
from semrsm_dist.pipeline.stages.matching import match_layers, remove_damaged_tiles
from semrsm_dist.pipeline.stages.neighbours import choose_neighbours, warn_of_few_candidates
from semrsm_dist.pipeline.stages.outputs import ModelOutputs, extract_outputs
from semrsm_dist.pipeline.stages.scan import require_enough
from semrsm_dist.pipeline.summary import summarise
from semrsm_dist.plan.tiling import Tile
from semrsm_dist.progress import Reporter, require_reporter
from semrsm_dist.results.run import Run
from semrsm_dist.store.chunks import delete_chunk, limit_threads
from semrsm_dist.store.directory import LostRecordError, RunDirectory
from semrsm_dist.store.fingerprint import differences, require_same
from semrsm_dist.store.inventory import Inventory
from semrsm_dist.store.paths import RunPath, as_run_path
from semrsm_dist.store.record import RunRecord

log = logging.getLogger(__name__)


def run(
    config: RunConfig | Mapping[str, Any] | str | Path,
    *,
    engine: Engine | None = None,
    reporter: Reporter | None = None,
    stop: threading.Event | None = None,
) -> Run:
    """Compute a run, or what is missing of it.

    Parameters
    ----------
    config
        What to compute and where: a configuration, the same as nested mappings, or the path of a YAML file. The run
        directory decides whether this begins or continues a run.
    engine
        Where the work runs; None makes the configured one and closes it at the end.
    reporter
        Where progress is reported; None shows a bar in a notebook, and nothing elsewhere.
    stop
        Set from another thread, it ends the session early; everything finished is kept.

    Returns
    -------
    Run
        The results; its `summary()` has pairs, times, what was found and what was computed, retrieval scores.

    Raises
    ------
    ResumeError
        If the directory holds a run of another configuration, or another driver is at work on it.
    InputError, ConfigError
        If images, features, model, layers or matcher cannot be used.
    StorageError
        If the store cannot be written to, or the disk is too small.
    LimitError
        If the memory is too small.
    WorkError
        If some of the work failed; what succeeded is kept.
    KeyboardInterrupt
        If it was interrupted or `stop` was set; what was finished is kept.
    """
    config = as_config(config)
    matcher = config.matching.make_matcher()
    with open_session(config, engine, reporter, stop) as (session, record):
        run_session(session, matcher, record)
    return Run(session.directory.path)


def compute_outputs(
    config: RunConfig, *, meaning: str | None = None, reporter: Reporter | None = None
) -> ModelOutputs:
    """Compute the outputs of a model's head for a run's images, or what is missing of them, and read them.

    Parameters
    ----------
    config
        Of a run that has been computed.
    meaning
        What the outputs mean, if the weights do not say; see `semrsm_dist.features.outputs.find_meaning`.
    reporter
        Where progress is reported; None shows a bar in a notebook, and nothing elsewhere.

    Raises
    ------
    ConfigError
        If there is no such run yet, or its model has no outputs that probabilities could be made of.
    ResumeError, InputError, StorageError, WorkError, KeyboardInterrupt
        As `run`.
    """
    with open_session(config, None, reporter, None) as (session, record):
        return extract_outputs(session, record, meaning)


@contextlib.contextmanager
def open_session(
    config: RunConfig, engine: Engine | None, reporter: Reporter | None, stop: threading.Event | None
) -> Iterator[tuple[Session, RunRecord | None]]:
    """Hold the run directory and an engine, and yield the session with the record of the run."""
    reporter = require_reporter(reporter)
    if stop is not None and not isinstance(stop, threading.Event):
        raise ConfigError(
            f"stop: {stop!r:.200}: expected a threading.Event, which ends the run when it is set"
        )
    engine = None if engine is None else require_engine(engine)
    directory = RunDirectory(_lasting(as_run_path(config.run)))
    directory.create()
    with limit_threads(), directory.locked():
        record = _find_record(directory)
        own_engine = engine is None
        engine = engine or make_engine(config.engine, address=config.address, workers=config.workers)
        session = Session(config, directory, engine, reporter, threading.Event() if stop is None else stop)
        try:
            yield session, record
        except BaseException as error:
            cause = find_cause(error)
            if isinstance(cause, KeyboardInterrupt):
                directory.append_event("interrupted")
            session.pulse.end(cause)
            raise
        else:
            session.pulse.end(None)
        finally:
            if own_engine:
                engine.close()


def _find_record(directory: RunDirectory) -> RunRecord | None:
    """Return the record of the run; None if there is no run yet, or only its arrays are left."""
    try:
        record = directory.read_record()
    except LostRecordError as error:
        log.warning(str(error))
        record = None
    if record is None:
        directory.remove_remains()
    return record


def _lasting(path: RunPath) -> RunPath:
    """Return the run directory's absolute path, unless it would lie in the copy that Ray deletes after a job."""
    if not path.is_absolute() and "working_dir_files" in Path.cwd().parts:
        raise ConfigError(
            f"run: {path}: a submitted job works in a copy of its working directory that is deleted when it ends, and "
            "the results with it; nothing was computed: give an absolute path on a file system that all nodes share or "
            "the URI of a folder in an object store"
        )
    return path.absolute()


def run_session(
    session: Session,
    matcher: Matcher,
    known: RunRecord | None,
    discard: Callable[[], None] | None = None,
) -> None:
    """Run all stages; `discard` removes what a repair will compute again, once nothing forbids to go on."""
    started, directory = time.perf_counter(), session.directory
    session.engine.require_room(Resources(cpus=matcher.cpus, gpus=matcher.gpus))
    inputs = resolve_inputs(session, matcher, known)
    is_new = not directory.has_results()
    if is_new:
        _start_over(session, inputs, known)
        known = None
    if known is not None:
        require_same(*compare(inputs, known), run=directory.path)
    require_enough("queries" in inputs.manifests, inputs.counts())
    record = adopt_sizes(session, make_record(session, matcher, inputs, known), known)
    require_memory(session, matcher, record)
    warn_of_few_candidates(session, record)
    if discard is not None:
        discard()
    if is_new:
        require_disk(session, matcher, record)
    else:
        _remove_damaged_results(session)
    directory.remove_partial_files()
    _keep(session, inputs, record)
    remove_damaged_tiles(session, record)
    provide_features(session, record, inputs.manifests)
    provided = Inventory.take(directory, directory.features)
    failures = match_layers(session, matcher, record)
    failed = {failure.unit.layer for failure in failures if isinstance(failure.unit, Tile)}
    assemble = assemble_layers if record.neighbours is None else choose_neighbours
    assemble(session, record, [layer for layer in record.requested if layer not in failed], inputs.manifests)
    if failures:
        raise WorkError(
            f"Tiles that failed and were set aside: {len(failures)}; all others are kept, but the results of their "
            f"layers are not complete:\n{list_failures(failures)}\nThe run's command tries them again (full errors in "
            "events.jsonl)"
        )
    needed = (directory.features, directory.tiles, directory.neighbours, directory.matrices)
    inventory = Inventory.take(directory, *needed)
    warn_of_damaged(session, provided, directory.features)
    summary = summarise(session, record, inputs.manifests, total_seconds=time.perf_counter() - started)
    directory.write_summary(summary)
    inventory.write()
    directory.append_event("finished", seconds=summary["seconds"]["total"])


def _remove_damaged_results(session: Session) -> None:
    """Remove chunks of neighbours and matrices that were damaged since the last session, so that they are missing.

    Tiles and features are checked by their own stages, which workers and threads share.
    """
    for root in (session.directory.neighbours, session.directory.matrices):
        for (group, name), places in session.inventory.find_damaged(root).items():
            for place in places:
                delete_chunk(group, name, place)
            session.warn(
                f"{group / name}: damaged chunks were removed ({len(places)}) and are computed again"
            )


def _start_over(session: Session, inputs: RunInputs, known: RunRecord | None) -> None:
    """Forget a run of which nothing was finished: sizes are chosen anew, and another configuration may take over."""
    changed = differences(*compare(inputs, known)) if known else []
    if changed:
        session.warn(
            f"{session.directory.path}: the run was begun with another configuration, of which nothing was finished; "
            f"it starts over with this one (changed: {', '.join(name for name, _, _ in changed)})"
        )
    session.directory.remove_groups()


def _keep(session: Session, inputs: RunInputs, record: RunRecord) -> None:
    for side, manifest in inputs.manifests.items():
        session.directory.write_manifest(side, manifest)
    session.directory.write_record(record)
    session.directory.append_event(
        "started", engine=session.engine.describe(), versions=dict(record.versions)
    )

"""The run directory: its layout, its lock, and the record that a resume is checked against.

Layout::

    run.json         the record: fingerprint, layers and their sizes, configuration, versions
    run.copy.json    the same, for the case that run.json is lost
    images.parquet   the manifest (queries.parquet in a rectangular run)
    features.zarr/   <side>/<layer>/: features, squared norms, pooled vectors
    tiles.zarr/      <layer>: solved tiles, which a resume counts
    candidates.zarr/ <layer>/: the candidates of each tile, in a run that keeps neighbours instead of tiles
    neighbours.zarr/ <layer>/: the neighbours that were chosen from them, for xarray
    rsm.zarr/        <layer>/: the final matrices, for xarray
    events.jsonl     what happened when, for people
    progress.json    what the driver is at, written every few seconds
    summary.json     the last summary
    inventory.parquet  size and time of all chunks when the last session ended
    figures/         pictures of the matrices
    lock             held by the driver at work
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from typing import Any

from semrsm_dist.data.manifest import Manifest
from semrsm_dist.data.opening import NOT_THERE
from semrsm_dist.errors import (
    ConfigError,
    StorageError,
    UnreadableFileError,
    hide_secrets,
    reason_of,
    unreadable,
)
from semrsm_dist.store import groups, paths
from semrsm_dist.store.chunk_labels import ORIGIN
from semrsm_dist.store.heartbeat import Heartbeat
from semrsm_dist.store.paths import RunPath
from semrsm_dist.store.record import OtherFormatError, RunRecord, read_record
from semrsm_dist.store.sealed import seal, unseal

log = logging.getLogger(__name__)

FATAL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM})
"""Storage errors that no retry fixes."""

RECORD, RECORD_COPY, LOCK = "run.json", "run.copy.json", "lock"

BEFORE_THE_RECORD = re.compile(
    r"(lock|progress\.json|events\.jsonl|(images|queries)\.parquet)(\.(tmp|aside-)\d+)?|run(\.copy)?\.json\.(tmp|aside-)\d+"
)
"""Names of files that a session can leave when it is killed before it has written the record."""

SUMMARY, EVENTS, PROGRESS = "summary.json", "events.jsonl", "progress.json"

LITTER = (
    *(f"{name}.tmp[0-9]*" for name in (RECORD, RECORD_COPY, SUMMARY, EVENTS)),
    *(f"{side}.parquet.tmp[0-9]*" for side in ("images", "queries")),
)
"""Names of small files that a killed driver leaves half written."""

LEDGER_BYTES, LONGEST_TEXT = 4 * 2**20, 4096
"""Size of the ledger of events, and characters of a text in it."""


class LostRecordError(StorageError):
    """The record of a run and its copy are gone or damaged."""


class RunDirectory:
    """Paths and small files of one run, by its path or URI.

    On a cluster, all nodes must see it: in an object store, or a shared file system.
    """

    def __init__(self, path: str | RunPath) -> None:
        self.path = paths.as_run_path(path)
        self._lock = paths.driver_lock(self.path / LOCK)
        self.features: RunPath = self.path / "features.zarr"
        """The Zarr group of features."""
        self.tiles: RunPath = self.path / "tiles.zarr"
        """The Zarr group of solved tiles."""
        self.candidates: RunPath = self.path / "candidates.zarr"
        """The Zarr group of candidates, in a run that keeps neighbours."""
        self.neighbours: RunPath = self.path / "neighbours.zarr"
        """The Zarr group of neighbours, in a run that keeps them."""
        self.matrices: RunPath = self.path / "rsm.zarr"
        """The Zarr group of final matrices."""
        self.view: RunPath = self.path / "view"
        """The folder of what the page of `semrsm view` has taken time to make."""
        self.figures: RunPath = self.path / "figures"
        """The folder of pictures."""

    def manifest(self, side: str) -> RunPath:
        """Return the path of the manifest of `images` or `queries`."""
        return self.path / f"{side}.parquet"

    def write_manifest(self, side: str, manifest: Manifest) -> None:
        """Keep the manifest of a side."""
        self.require_held()
        paths.write_atomically(self.manifest(side), manifest.to_parquet())

    def read_manifest(self, side: str) -> Manifest:
        """Return the manifest of a side.

        Raises
        ------
        UnreadableFileError
            If the file system cannot read it.
        StorageError
            If it is missing, damaged, or no manifest.
        """
        path = self.manifest(side)
        try:
            content = paths.read_file(path)
        except NOT_THERE as error:
            raise StorageError(
                f"{path}: the manifest cannot be read ({reason_of(error)}); start the run's command, which makes it "
                "anew"
            ) from error
        except OSError as error:
            raise unreadable(path, error, "the manifest cannot be read") from error
        return Manifest.from_parquet(content, path)

    def create(self) -> None:
        """Make the directory, or check that what is there is a run or the beginning of one.

        Raises
        ------
        ConfigError
            If something else is there, which is left untouched, or there can be no such directory.
        StorageError
            If it cannot be made for lack of room or permission.
        """
        self._refuse_foreign_files()
        try:
            paths.make_folder(self.path)
        except (FileExistsError, NotADirectoryError) as error:
            raise ConfigError(
                f"{self.path}: run: must name a directory, but it or a folder above it is a file; choose another path"
            ) from error
        except OSError as error:
            # No room or no permission can change; where nothing can ever be made, the configuration is wrong.
            kind = StorageError if error.errno in FATAL_ERRNOS else ConfigError
            raise kind(
                f"{self.path}: the run directory cannot be made ({error.strerror}); nothing was computed: choose a "
                "directory that can be written to with run: or --set run=..."
            ) from error

    def read_record(self) -> RunRecord | None:
        """Return the record of the run that the directory holds, or its copy; None if it holds neither.

        Raises
        ------
        UnreadableFileError
            If the file system can read neither the record nor its copy.
        LostRecordError
            If both are damaged.
        OtherFormatError
            If it is one of another format.
        """
        problems: list[StorageError] = []
        for name in (RECORD, RECORD_COPY):
            try:
                record = read_record(self.path / name)
            except StorageError as error:
                problems.append(error)
            except (FileNotFoundError, NotADirectoryError):
                continue
            else:
                if name == RECORD_COPY:
                    is_closed = any(isinstance(problem, UnreadableFileError) for problem in problems)
                    what = "cannot be read" if is_closed else "missing or damaged"
                    log.warning("%s: %s; its copy %s is used", self.path / RECORD, what, name)
                return record
        for problem in problems:
            if isinstance(problem, OtherFormatError):
                raise problem
            if isinstance(problem, UnreadableFileError):
                raise UnreadableFileError(
                    f"{problem}; nothing was changed: check the disk and the permissions, then repeat the command"
                ) from problem
        if problems:
            raise LostRecordError(
                f"{'; '.join(map(str, problems))}; nothing was changed: start the run's command (semrsm run ...), "
                "which makes the record anew, or restore the file"
            )
        return None

    def require_record(self) -> RunRecord:
        """Return the record of the run that the directory holds, or its copy.

        Raises
        ------
        ConfigError
            If there is no run here.
        UnreadableFileError, LostRecordError, OtherFormatError
            As `read_record`; also if both are gone, but arrays or chunks of the run are there.
        """
        record = self.read_record()
        if record is not None:
            return record
        lost = f"{self.path}: the record of the run is lost ({RECORD} and its copy {RECORD_COPY})"
        if self.holds_arrays():
            raise LostRecordError(
                f"{lost}, but its arrays are here; nothing was changed: start the run's command (semrsm run ...), "
                "which makes the record anew from them, or restore the file"
            )
        remains = [group.name for group in self._groups if _is_remains(group)]
        if remains and self.has_results():
            raise LostRecordError(
                f"{lost}, and so is what describes its chunks (zarr.json, in {', '.join(remains)}), so what these are "
                "of is not known; nothing was changed: restore these files, or start the run's command (semrsm run "
                "...), which removes the chunks and computes them again"
            )
        raise ConfigError(
            f"{self.path}: there is no run here (no {RECORD}); check the path, or start the run"
        )

    def write_record(self, record: RunRecord) -> None:
        """Replace the record and its copy, each in one step and durable against a crash."""
        self.require_held()
        content = seal(record.model_dump(mode="json"))
        for name in (RECORD_COPY, RECORD):
            paths.write_atomically(self.path / name, content)

    def remove_partial_files(self) -> None:
        """Remove temporary files of writers that were killed."""
        for name in paths.list_names(self.path):
            if any(fnmatchcase(name, pattern) for pattern in LITTER):
                paths.remove_file(self.path / name)
        for group in self._groups:
            paths.remove_partial_files(group)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Keep the summary beside the results."""
        self.require_held()
        paths.write_atomically(self.path / SUMMARY, seal(summary))

    def read_summary(self) -> dict[str, Any] | None:
        """Return the last summary; None if there is none, or it is damaged: a session that ends writes it anew."""
        try:
            return unseal(paths.read_file(self.path / SUMMARY))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            log.warning(
                "%s: cannot be read (%s) and counts as missing", self.path / SUMMARY, reason_of(error)
            )
            return None

    def write_heartbeat(self, beat: Heartbeat) -> None:
        """Replace what the driver says of itself; nothing fails without it."""
        try:
            paths.write_atomically(self.path / PROGRESS, beat.model_dump_json().encode(), durably=False)
        except StorageError as error:
            log.debug("%s", error)

    def read_heartbeat(self) -> Heartbeat | None:
        """Return what the last driver said of itself; None if it said nothing that can be read."""
        try:
            return Heartbeat.model_validate_json(paths.read_file(self.path / PROGRESS))
        except (OSError, ValueError):
            return None

    def append_event(self, event: str, **facts: object) -> None:
        """Add a line to the ledger, whose oldest lines go once it is larger than `LEDGER_BYTES`.

        It is for people: nothing depends on it, and nothing fails without it. Of a long text the end is kept. A driver
        that has lost the run adds nothing.
        """
        if self._lock.loss() is not None:
            return
        short = {
            name: hide_secrets(fact)[-LONGEST_TEXT:] if isinstance(fact, str) else fact
            for name, fact in facts.items()
        }
        line = json.dumps({"time": time.time(), "event": event, **short})
        try:
            paths.append_line(self.path / EVENTS, line.encode(), LEDGER_BYTES)
        except OSError as error:
            log.warning("%s: cannot be written (%s)", self.path / EVENTS, error.strerror or error)

    def read_events(self) -> Iterator[dict[str, Any]]:
        """Yield the ledger's events, oldest first; a line truncated by a kill is skipped."""
        try:
            text = paths.read_file(self.path / EVENTS)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                log.warning("%s: cannot be read (%s)", self.path / EVENTS, reason_of(error))
            return
        for line in text.decode(errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                event = json.loads(line)
                if isinstance(event, dict):
                    yield event

    def locked(self) -> AbstractContextManager[None]:
        """Hold the run for one driver; the end of the process releases it, however it ends.

        Raises
        ------
        ResumeError
            If another driver holds it.
        StorageError
            If the directory cannot be written to or its file system has no locks.
        """
        with paths.writing(self.path / LOCK):
            paths.make_way(self.path / LOCK, in_place=True)
        return self._lock.hold()

    def shared(self) -> AbstractContextManager[bool]:
        """Keep drivers from starting in a block, as far as the lock can, and say whether one is at work already."""
        return self._lock.share()

    def require_held(self) -> None:
        """Check that this driver still holds the run, if it did.

        Raises StorageError if it does not: what is written now would be lost, or another driver may be at work.
        """
        loss = self._lock.loss()
        if loss is None:
            return
        if paths.exists(self.path / RECORD):
            raise StorageError(
                f"{self.path / LOCK}: {loss}, so another one may have begun; stopped, what is finished is kept: leave "
                "this file alone, and start the run's command once no other driver is at work (semrsm status)"
            )
        raise StorageError(
            f"{self.path}: the run directory was removed or emptied while this driver was at work, so nothing is left: "
            "start the run's command to begin anew"
        )

    def has_results(self) -> bool:
        """Return whether any chunk of features or results is there, whole or damaged."""
        return any(
            not name.endswith((".partial", "zarr.json"))
            for group in self._groups
            for name in paths.list_files(group)
        )

    def remove_groups(self) -> None:
        """Remove the arrays of a run of which nothing is finished."""
        for group in self._groups:
            if paths.is_folder(group):
                paths.remove_folder(group)

    def remove_remains(self) -> None:
        """Remove what workers still wrote after a run had been removed: chunks that nothing describes."""
        for group in self._groups:
            if _is_remains(group):
                paths.remove_folder(group)

    def is_visible(self) -> bool:
        """Return whether this machine sees the directory of a run at work: every driver's lock is a file in it."""
        try:
            return paths.exists(self.path / LOCK)
        except (OSError, ConfigError):  # of storage that fails: what met that first says more
            return True

    def is_locked(self) -> bool:
        """Return whether a driver is at work on the run."""
        return self._lock.is_held()

    @property
    def _groups(self) -> tuple[RunPath, ...]:
        return self.features, self.tiles, self.matrices, self.candidates, self.neighbours

    def holds_arrays(self) -> bool:
        """Return whether arrays of a run are described here: only ours name an origin."""
        return any(
            ORIGIN in groups.read_attributes(group / name.removesuffix("zarr.json"))
            for group in self._groups
            for name in paths.list_files(group)
            if name.endswith("/zarr.json")
        )

    def _refuse_foreign_files(self) -> None:
        try:
            names = paths.list_names(self.path)
        except OSError as error:
            raise StorageError(f"{self.path}: the run directory cannot be read ({error.strerror})") from error
        if not {RECORD, RECORD_COPY}.isdisjoint(names):
            return
        groups = {group.name for group in self._groups if _is_remains(group)}
        strangers = [name for name in names if not BEFORE_THE_RECORD.fullmatch(name) and name not in groups]
        if strangers and not self.holds_arrays():
            raise ConfigError(
                f"{self.path}: not empty and not a run (found {', '.join(strangers[:3])}); nothing was touched: choose "
                "an empty or new directory"
            )


def _is_remains(group: RunPath) -> bool:
    """Return whether a folder holds no `zarr.json`, but perhaps chunks: no Zarr group of anybody is like that."""
    return paths.is_folder(group) and not any(
        name.rpartition("/")[2] == "zarr.json" for name in paths.list_files(group)
    )

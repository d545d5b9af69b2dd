"""Repair of a run: remove what a verification found broken, and let a session compute it again.

Nothing is removed before the session has found that its inputs are still those of the run, as far as what is removed is
made from them. What was computed from features that were wrong is removed with them.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from semrsm_dist.config.schema import RunConfig, parse_config
from semrsm_dist.engine import Engine
from semrsm_dist.errors import counted
from semrsm_dist.pipeline.driver import open_session, run_session
from semrsm_dist.plan.tiling import cut
from semrsm_dist.progress import Reporter, require_reporter
from semrsm_dist.results.run import Run
from semrsm_dist.results.verification.recorded import recorded_config
from semrsm_dist.results.verification.report import DESCRIPTION, Fault, Kind, Report
from semrsm_dist.store import chunks, paths
from semrsm_dist.store.candidates import CANDIDATES, KNOWN
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.labelled import LabelledGroup
from semrsm_dist.store.paths import RunPath
from semrsm_dist.store.record import RunRecord, Side
from semrsm_dist.store.tiles import ARRAY

ROUNDS = 3
"""Sessions of a repair: what a first one fixes can show what else is wrong."""

UNREADABLE = (Kind.MISSING, Kind.DAMAGED, Kind.FOREIGN)
"""Faults of chunks from which nothing can have been computed."""


def verify_and_repair(
    path: RunPath | str,
    *,
    engine: Engine | None = None,
    reporter: Reporter | None = None,
    stop: threading.Event | None = None,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> Report:
    """Verify a run, remove what is broken, compute it again, and verify again.

    The report is of the last verification, with what it found no longer marked as repaired.

    Parameters
    ----------
    path
        The run directory.
    engine, reporter, stop
        As in `semrsm_dist.pipeline.driver.run`. What will be removed is reported first.
    settings
        Values that replace those of the recorded configuration: `engine`, `address`, `workers`.
    **options
        As `semrsm_dist.results.run.Run.verify` takes them.

    Raises
    ------
    InputError, ResumeError
        If what is broken cannot be computed again, as inputs are gone or have changed, or another driver is at work:
        nothing was removed.
    StorageError, WorkError, LimitError, ConfigError, KeyboardInterrupt
        As `semrsm_dist.pipeline.driver.run`; the run's command continues.
    """
    reporter, path = require_reporter(reporter), paths.as_run_path(path).absolute()
    found: list[Fault] = []
    report = Run(path).verify(reporter=reporter, **options)
    for number in range(ROUNDS):
        run = Run(path)
        broken = Broken.of(run.directory, run.record, report.faults, again=number > 0)
        if not broken:
            break
        found += report.faults
        config = _configure(run, settings or {})
        _run(config, broken, engine, reporter, stop)
        report = Run(path).verify(reporter=reporter, **{**options, "seed": report.seed})
    requested = Run(path).record.requested
    others = sorted({fault.layer for fault in report.faults if fault.layer} - set(requested))
    reasons = [f"layer {layer}: not repaired, as the last session did not request it" for layer in others]
    if report.unchecked:
        reasons.append("not repaired either: what could not be checked")
    return replace(report.with_repaired(found), unchecked=(*report.unchecked, *reasons))


def _configure(run: Run, settings: dict[str, Any]) -> RunConfig:
    """Return the recorded configuration with other settings; another engine does not join the recorded address."""
    config = recorded_config(run.directory, run.record)
    if not settings:
        return config
    changes = {"address": None, **settings} if "engine" in settings else settings
    return parse_config(config.model_dump(mode="json") | changes)


def _run(
    config: RunConfig,
    broken: Broken,
    engine: Engine | None,
    reporter: Reporter,
    stop: threading.Event | None,
) -> None:
    """Let a session compute what is broken, once it has been removed."""
    matcher = config.matching.make_matcher()
    with open_session(config, engine, reporter, stop) as (session, record):
        session.discarded_features = frozenset(broken.features)
        session.discarded_manifests = frozenset(broken.manifests)

        def discard() -> None:
            reporter.note(f"repair: {broken.describe()}")
            session.directory.append_event("repair", what=broken.describe())
            broken.remove()

        run_session(session, matcher, record, discard)


@dataclass
class Broken:
    """What a repair removes of a run."""

    directory: RunDirectory
    record: RunRecord
    features: dict[tuple[Side, str], set[int]] = field(default_factory=lambda: defaultdict(set))
    """Numbers of feature chunks by side and layer."""
    manifests: set[Side] = field(default_factory=set)
    """Sides whose images are scanned again."""
    chunks: dict[tuple[Any, str], set[tuple[int, ...]]] = field(default_factory=lambda: defaultdict(set))
    """Positions of chunks by group and array."""
    descriptions: set[Any] = field(default_factory=set)
    """Groups and arrays whose `zarr.json` is written again; their chunks are kept."""
    groups: set[tuple[Any, str]] = field(default_factory=set)
    """Roots and layers of groups that are finished again: what is derived is derived anew."""
    files: set[Any] = field(default_factory=set)
    """Other files."""

    def __bool__(self) -> bool:
        return any((self.features, self.manifests, self.chunks, self.descriptions, self.groups, self.files))

    @classmethod
    def of(
        cls, directory: RunDirectory, record: RunRecord, faults: Iterable[Fault], *, again: bool
    ) -> Broken:
        """Return what is to be removed for some faults; `again` says that a first repair has not sufficed.

        Images that have changed, and layers that the last session did not request, cannot be repaired.
        """
        broken = cls(directory, record)
        for fault in faults:
            if fault.layer is None:
                broken._add_file(fault)
            elif fault.layer in record.requested and fault.kind != Kind.IMAGE:
                broken._add(fault, fault.layer, again=again)
        return broken

    def _add_file(self, fault: Fault) -> None:
        sides = {self.directory.manifest(side).name: side for side in self.record.sides}
        if fault.kind == Kind.IMAGE:
            return
        if fault.array in sides:
            self.manifests.add(sides[fault.array])
        elif fault.place == DESCRIPTION:
            self.descriptions.add(self.directory.path / fault.array)
        else:
            self.files.add(self.directory.path / fault.array)

    def _add(self, fault: Fault, layer: str, *, again: bool) -> None:
        root, *_, name = fault.array.split("/")
        group = self.directory.path / root
        if fault.place == DESCRIPTION and fault.kind in (Kind.DESCRIPTION, Kind.MISSING):
            self.descriptions.add(self.directory.path / fault.array)
        if group == self.directory.features:
            self._add_features(fault, layer)
        elif name == ARRAY and group == self.directory.tiles and fault.place != DESCRIPTION:
            self.chunks[group / layer, ARRAY].add(_index(fault))
            if fault.kind not in UNREADABLE:  # what was derived of it is wrong, too
                self._add_derived(layer)
        elif group == self.directory.candidates:
            self._add_candidates(fault, layer)
        else:
            self.groups.add((group, layer))
            if again and group == self.directory.neighbours and fault.place not in ("", DESCRIPTION):
                self._add_panel(layer, _index(fault)[0])

    def _add_features(self, fault: Fault, layer: str) -> None:
        """Add feature chunks, and the tiles that were computed from features that are wrong."""
        side = fault.array.split("/")[1]
        if fault.place == DESCRIPTION:
            return
        images = range(self.record.counts[side])
        chunks = [images[part] for part in cut(slice(0, len(images)), self.record.chunk_size)]
        numbers = {_index(fault)[0]} if fault.place else set(range(len(chunks)))
        self.features[side, layer] |= numbers
        if fault.kind in UNREADABLE:
            return
        size = self.record.layout(layer).tile_size
        panels = {image // size for number in numbers for image in chunks[number]}
        tiles = self._tiles(
            layer, panels if side == self.record.row_side else (), panels if side == "images" else ()
        )
        if self.record.neighbours is None:
            self.chunks[self.directory.tiles / layer, ARRAY] |= tiles
        else:
            self._add_tiles_of_candidates(layer, tiles)
        self._add_derived(layer)

    def _add_candidates(self, fault: Fault, layer: str) -> None:
        if fault.place == DESCRIPTION:
            return
        name = fault.array.rpartition("/")[2]
        self.chunks[self.directory.candidates / layer, name].add(_index(fault))
        if fault.kind in UNREADABLE:
            return
        if name == KNOWN:
            self._add_panel(layer, _index(fault)[1])
        self._add_derived(layer)

    def _add_panel(self, layer: str, panel: int) -> None:
        """Add the candidates of all tiles that have neighbours of a panel's images."""
        columns = (panel,) if self.record.layout(layer).symmetric else ()
        self._add_tiles_of_candidates(layer, self._tiles(layer, (panel,), columns))

    def _tiles(
        self, layer: str, rows: Collection[int], columns: Collection[int]
    ) -> set[tuple[int, int, int]]:
        """Return the chunks of all tiles that lie in one of some row panels, or of some column panels."""
        tiles = self.record.layout(layer).tiles()
        return {(0, row, column) for row, column in tiles if row in rows or column in columns}

    def _add_tiles_of_candidates(self, layer: str, tiles: set[tuple[int, int, int]]) -> None:
        """Add candidates, and all floors: they may be those of wrong candidates."""
        group = self.directory.candidates / layer
        self.chunks[group, CANDIDATES] |= tiles
        self.chunks[group, KNOWN] |= {(0, panel, 0) for panel in range(self.record.layout(layer).row_panels)}
        self._add_derived(layer)

    def _add_derived(self, layer: str) -> None:
        roots = (
            (self.directory.tiles, self.directory.matrices)
            if self.record.neighbours is None
            else (self.directory.neighbours,)
        )
        self.groups |= {(root, layer) for root in roots if paths.is_folder(root / layer)}

    def describe(self) -> str:
        """Return what is removed, and computed again, for people."""
        parts = [
            *(
                f"{counted(len(numbers), 'feature chunk')} of {side}/{layer}"
                for (side, layer), numbers in self.features.items()
            ),
            *(
                f"{counted(len(places), 'chunk')} of {group.name}/{name}"
                for (group, name), places in self.chunks.items()
            ),
            *(f"what is derived in {root.name}/{layer}" for root, layer in sorted(self.groups)),
            *(f"{DESCRIPTION} of {node.name}" for node in sorted(self.descriptions)),
            *(f"the manifest of {side}" for side in sorted(self.manifests)),
            *(file.name for file in sorted(self.files)),
        ]
        return f"removed, and computed again: {'; '.join(parts)}"

    def remove(self) -> None:
        """Remove it; raises StorageError if something cannot be removed."""
        if paths.is_folder(self.directory.view):  # what is kept there may be made of what is wrong
            with paths.writing(self.directory.view):
                paths.remove_folder(self.directory.view)
        for path in (*self.files, *(node / DESCRIPTION for node in self.descriptions)):
            with paths.writing(path):
                paths.remove_file(path)
        for root, layer in self.groups:
            LabelledGroup(root, layer).begin()
        for (side, layer), numbers in self.features.items():
            FeatureStore(self.directory.features, side, layer).remove(numbers)
        for (group, name), places in self.chunks.items():
            for place in places:
                chunks.delete_chunk(group, name, place)


def _index(fault: Fault) -> tuple[int, ...]:
    """Return the position of a fault's chunk."""
    return tuple(int(part) for part in fault.place.split("."))

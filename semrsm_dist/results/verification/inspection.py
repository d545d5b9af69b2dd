"""What the parts of a verification share: the run, what is to be checked, and what was found."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.errors import StorageError, UnreadableFileError
from semrsm_dist.machine import available_cpus
from semrsm_dist.progress import Reporter
from semrsm_dist.results.verification.numbers import Problem
from semrsm_dist.results.verification.report import DESCRIPTION, Fault, Kind
from semrsm_dist.store import arrays, chunks
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.paths import RunPath
from semrsm_dist.store.record import RunRecord

Item = TypeVar("Item")

THREADS = min(4, available_cpus())
"""Threads that read and check chunks; each holds one."""

AT_ONCE = 64
"""Chunks that the threads are given together."""


@dataclass
class Inspection:
    """A verification in progress."""

    directory: RunDirectory
    record: RunRecord
    reporter: Reporter
    """Where progress is reported."""
    fast: bool
    """Whether chunks are only listed and decoded."""
    sample: int
    """Pairs of a layer that are solved again."""
    seed: int
    """Of the samples."""
    is_working: bool = False
    """Whether a driver is at work, so that nothing counts as missing."""
    faults: list[Fault] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def rng(self, layer: str, what: str) -> np.random.Generator:
        """Return the random numbers of one sample, which depend on no other."""
        return np.random.default_rng([self.seed, *layer.encode(), *what.encode()])

    def add(self, path: RunPath, layer: str | None, place: Collection[int] | str, problem: Problem) -> None:
        """Add a fault of a chunk at a position of an array, or of a file or array as a whole."""
        at = place if isinstance(place, str) else ".".join(map(str, place))
        name = str(path).removeprefix(f"{self.directory.path}/")
        self.faults.append(Fault(name, layer, at, problem.kind, problem.message))

    def count(self, name: str, more: int) -> None:
        """Count what was checked."""
        self.checked[name] = self.checked.get(name, 0) + more

    @contextmanager
    def reading(self, path: RunPath, layer: str | None, place: Collection[int] | str = "") -> Iterator[None]:
        """Add what is found wrong on reading in this block; it ends there."""
        try:
            yield
        except chunks.DamagedChunkError as error:
            self.add(path, layer, place, Problem(kind_of(error), f"this chunk {error.fault}"))
        except StorageError as error:
            self.unchecked.append(str(error))

    def each(self, stage: str, unit: str, items: Collection[Item], check: Callable[[Item], object]) -> None:
        """Check items in threads, in order, with progress."""
        with (
            self.reporter.stage(f"verify {stage}", len(items), unit) as shown,
            ThreadPoolExecutor(THREADS) as pool,
        ):
            rest = iter(items)
            while some := list(itertools.islice(rest, AT_ONCE)):
                for _ in pool.map(check, some):
                    shown.advance(1)
        self.count(unit, len(items))


def kind_of(error: chunks.DamagedChunkError) -> Kind:
    """Return the kind of a fault that reading a chunk has found."""
    if error.fault == chunks.MISSING:
        return Kind.MISSING
    return Kind.FOREIGN if error.fault.startswith(chunks.FOREIGN) else Kind.DAMAGED


class ArrayChunks:
    """The chunks of an array of the run, as a verification reads them; only an `optional` array may be missing.

    An array whose description is not what it should be is one fault, and none of its chunks is read.
    """

    def __init__(
        self,
        inspection: Inspection,
        group: RunPath,
        name: str,
        layer: str,
        shape: tuple[int, ...],
        chunk_shape: tuple[int, ...],
        *,
        optional: bool = False,
    ) -> None:
        self._inspection, self._layer = inspection, layer
        self.path = group / name
        self._array: Any = None
        self._present: set[tuple[int, ...]] = set()
        self.grid = tuple(-(-length // size) for length, size in zip(shape, chunk_shape, strict=True))
        try:
            self._present = chunks.list_chunks(group, name)
            array = arrays.open_array(group, name)
        except UnreadableFileError as error:
            inspection.unchecked.append(str(error))
            return
        except StorageError as error:
            if self._present or not optional:
                self._describe(str(error))
            return
        found = (array.shape, array.chunks)
        if found == (shape, chunk_shape):
            self._array = array
        else:
            self._describe(f"an array of shape and chunks {found}, not {(shape, chunk_shape)}")

    def _describe(self, text: str) -> None:
        self._inspection.add(self.path, self._layer, DESCRIPTION, Problem(Kind.DESCRIPTION, text))

    def find(self, wanted: Iterable[tuple[int, ...]], *, needed: bool) -> list[tuple[int, ...]]:
        """Return those of the wanted chunks that are there; others are faults if they are needed."""
        if self._array is None:
            return []
        there = []
        for index in wanted:
            if index in self._present:
                there.append(index)
            elif needed:
                self.add(index, Problem(Kind.MISSING, "this chunk is not there"))
        return there

    def read(self, index: tuple[int, ...]) -> NDArray[Any] | None:
        """Return a chunk; None if it is at fault, which is then added."""
        if self._array is not None:
            with self._inspection.reading(self.path, self._layer, index):
                return chunks.read_chunk(self._array, index)
        return None

    def add(self, index: tuple[int, ...], problem: Problem) -> None:
        """Add a fault of a chunk."""
        self._inspection.add(self.path, self._layer, index, problem)

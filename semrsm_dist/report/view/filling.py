"""Fills sums from the store, in a thread of its own: each chunk is read once for all sums that lack it.

A tile of an order that permutes the images has pairs of many chunks, in the end of all. So chunks are read in an order
that is random but always the same, and are added to all sums that are wanted at the time: a part that is
not complete is shown as means of what has been read so far, with how much that is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.machine import available_cpus
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.plot.orders import Indices
from semrsm_dist.report.maps import Values, derive_values
from semrsm_dist.report.view.pyramid import Sums, Tile, Totals
from semrsm_dist.results.matrices import LayerMatrices, Places
from semrsm_dist.store.tiles import QUANTITIES

Part = tuple[int, int]
"""A chunk of the matrices, as rows and columns of `LayerMatrices.chunks`."""

MOMENT, SOMETHING = 0.08, 1.0
"""Seconds that a request waits for all of its pairs, and for any."""

FORGOTTEN_SECONDS = 20.0
"""Sums that nobody has wanted for so long are given up."""

MOST_CELLS = 2**24
"""Of all sums together, which take 28 bytes a cell or more: those that were wanted least recently are given up."""

ABOVE = np.float32(1.0 + 2.0**-21)
"""More than the rounding of single precision can take from a number."""

READERS = 1 + min(available_cpus(), 7)
"""Chunks that are read at once: one more than there are processors, as a thread waits for its file now and then."""


class Source:
    """The matrices of a layer in one kernel."""

    def __init__(self, matrices: LayerMatrices, kernel: str) -> None:
        self.matrices, self.kernel = matrices, kernel
        parts = list(matrices.chunks.tiles())
        mixed = np.random.default_rng(0).permutation(len(parts))
        self.parts: list[Part] = [parts[index] for index in mixed]

    @property
    def layout(self) -> Layout:
        """How the matrices are cut into parts."""
        return self.matrices.chunks

    def read(self, part: Part) -> NDArray[np.floating[Any]]:
        """Return what is stored of a part: its `QUANTITIES`, (3, R, C)."""
        row, column = part
        # Diagonals are exact, whatever is stored.
        dtype = np.float64 if row == column else self.matrices.store.dtype
        key = self.layout.rows(row), self.layout.columns(column)
        return self.matrices.read(QUANTITIES, key, dtype)

    def totals(self, sums: Sums, part: Part, stored: NDArray[np.floating[Any]]) -> list[Totals]:
        """Return what a part adds to sums: in a symmetric matrix, it stands for its mirror image, too."""
        rows, columns = self._images(part)
        of = self._estimate if sums.window.level > 0 and self._can_estimate else self._derive

        def derive(some: Places, others: Places) -> Values:
            return of(_take(_take(stored, some, 1), others, 2), rows[some], columns[others])

        is_diagonal = self.layout.symmetric and part[0] == part[1]
        found = [sums.total(rows, columns, derive, 0.5 if sums.folded and is_diagonal else 1.0)]
        if self.layout.symmetric and not sums.folded and not is_diagonal:
            found.append(sums.total(columns, rows, lambda some, others: derive(others, some).mirrored))
        return [totals for totals in found if totals is not None]

    def _derive(self, stored: NDArray[np.floating[Any]], rows: Indices, columns: Indices) -> Values:
        return derive_values(self.matrices, stored, rows, columns, self.kernel)

    def _estimate(self, stored: NDArray[np.floating[Any]], rows: Indices, columns: Indices) -> Values:
        """Return cosines in single precision, in a tenth of the time: what means need. Gaps are never smaller."""
        norms = np.outer(self._inverse_norms[0][rows], self._inverse_norms[1][columns])
        with np.errstate(invalid="ignore"):  # of images of norm zero
            matched, identity, gap = stored.astype(np.float32, copy=False) * norms
        semantic, spatial = (np.clip(values, -1.0, 1.0) for values in (matched, identity))
        return Values(spatial, semantic, np.minimum(gap * ABOVE, ABOVE - semantic))

    @cached_property
    def _can_estimate(self) -> bool:
        """Whether these are cosines of inner products that float32 holds."""
        return self.kernel == "cosine" and self.matrices.store.dtype == np.float32

    @cached_property
    def _inverse_norms(self) -> list[NDArray[np.float32]]:
        with np.errstate(divide="ignore"):
            return [(1.0 / np.sqrt(squared)).astype(np.float32) for squared in self.matrices.squared_norms]

    def needed(self, sums: Sums) -> list[Part]:
        """Return the parts that have pairs of the sums, in the order in which they are read."""
        size = self.layout.tile_size
        grid = np.zeros((self.layout.row_panels, self.layout.column_panels), bool)
        grid[np.ix_(*(np.unique(sums.images(axis) // size) for axis in (0, 1)))] = True
        if self.layout.symmetric:
            grid |= grid.T
        return [part for part in self.parts if grid[part]]

    def _images(self, part: Part) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        rows, columns = self.layout.rows(part[0]), self.layout.columns(part[1])
        return np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop)


def _take(values: NDArray[Any], places: Places, axis: int) -> NDArray[Any]:
    """Return some places along an axis; `take` leaves rows contiguous, where indexing does not."""
    if isinstance(places, slice):
        return values[(slice(None),) * axis + (places,)]
    return values.take(places, axis)


class Filling:
    """Sums that are being filled."""

    def __init__(self, source: Source, sums: Sums, finish: Callable[[Sums], None]) -> None:
        self.source = source
        self.left = dict.fromkeys(source.needed(sums))
        self.total = len(self.left)
        self.wanted = time.monotonic()
        self.error: Exception | None = None
        self._sums, self._finish, self._lock = sums, finish, threading.Lock()

    @property
    def n_cells(self) -> int:
        """Size in cells."""
        height, width = self._sums.window.shape
        return height * width

    @property
    def share(self) -> float:
        """How much of the pairs has been added; 1 for all."""
        return 1.0 - len(self.left) / max(self.total, 1)

    def add(self, part: Part, stored: NDArray[np.floating[Any]]) -> None:
        """Add a part, if it has not been added; with the last, the sums are finished. Threads may do so together."""
        found = self.source.totals(self._sums, part, stored)
        with self._lock:
            if part not in self.left:
                return
            for totals in found:
                self._sums.add(totals)
            if len(self.left) == 1:
                self._finish(self._sums)
            del self.left[part]

    def fill(self) -> None:
        """Add all parts here and now."""
        for part in list(self.left):
            self.add(part, self.source.read(part))

    def look(self, tile: Tile) -> tuple[NDArray[np.float32], float]:
        """Return the planes of a tile as far as they are known, and the share of the pairs that they are of."""
        base = self._sums.window
        window = base.pyramid.window(tile).finer(base.level)
        with self._lock:
            share, sums = self.share, self._sums.part(window)
        for _ in range(tile.level - base.level):
            sums = sums.coarser()
        return sums.planes(filled=share < 1.0), share


class Filler:
    """Fills what is wanted, what was wanted last first, until it is closed."""

    def __init__(self) -> None:
        self._fillings: dict[str, Filling] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._readers = ThreadPoolExecutor(READERS, "tiles")
        self._thread = threading.Thread(target=self._work, daemon=True, name="tiles")
        self._thread.start()

    def want(self, name: str) -> Filling | None:
        """Return the filling of a name if there is one, and go on with it; one that failed is forgotten then."""
        with self._changed:
            filling = self._fillings.get(name)
            if filling is not None:
                filling.wanted = time.monotonic()
                if filling.error is not None:
                    del self._fillings[name]
        return filling

    def start(self, name: str, filling: Filling) -> Filling:
        """Begin to fill, and return it, or what another has begun."""
        with self._changed:
            filling = self._fillings.setdefault(name, filling)
            self._changed.notify_all()
        return filling

    def wait_for(self, filling: Filling) -> None:
        """Wait until a filling is complete, but no longer than a moment after there is something to see."""
        with self._changed:
            self._changed.wait_for(lambda: not filling.left or filling.error is not None, MOMENT)
            self._changed.wait_for(lambda: filling.share > 0 or filling.error is not None, SOMETHING)

    def close(self) -> None:
        """Stop, and forget what is not complete."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()
        self._readers.shutdown()

    def _work(self) -> None:
        ahead: dict[Future[None], tuple[Source, Part]] = {}  # what is being read
        while (first := self._next()) is not None:
            begun = {part for source, part in ahead.values() if source is first.source}
            missing = [part for part in list(first.left) if part not in begun]
            for part in missing[: READERS - len(ahead)]:
                ahead[self._readers.submit(self._add, first.source, part)] = first.source, part
            done, _ = wait(ahead, return_when=FIRST_COMPLETED)
            for future in done:
                del ahead[future]
            with self._changed:
                self._changed.notify_all()

    def _next(self) -> Filling | None:
        """Return what was wanted last of all that is open, once there is anything; None when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._clean_up())
            return None if self._is_closed else max(self._open(), key=lambda filling: filling.wanted)

    def _open(self) -> list[Filling]:
        return [filling for filling in self._fillings.values() if filling.left and filling.error is None]

    def _clean_up(self) -> bool:
        """Drop what is complete or given up; return whether there is anything to do."""
        now, cells = time.monotonic(), 0
        latest_first = sorted(self._fillings.items(), key=lambda item: -item[1].wanted)
        self._fillings = {}
        for name, filling in latest_first:
            cells += filling.n_cells
            is_wanted = now - filling.wanted < FORGOTTEN_SECONDS
            if filling.left and is_wanted and (cells <= MOST_CELLS or not self._fillings):
                self._fillings[name] = filling
        return bool(self._open())

    def _add(self, source: Source, part: Part) -> None:
        """Read a part, and add it to all that lacks it."""
        try:
            stored = source.read(part)
            for filling in self._lacking(source, part):
                filling.add(part, stored)
        except Exception as error:  # noqa: BLE001 - raised again for those who want the tiles
            for filling in self._lacking(source, part):
                filling.error = error

    def _lacking(self, source: Source, part: Part) -> list[Filling]:
        with self._changed:
            return [one for one in self._open() if one.source is source and part in one.left]

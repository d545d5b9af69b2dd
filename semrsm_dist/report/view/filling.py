"""Fills sums from the store, in a thread of its own: each chunk is read once for all sums that lack it.

A tile of an order that permutes the images has pairs of many chunks, in the end of all. So chunks are read in an order
that is random but always the same, and are added to all sums that are wanted at the time: whoever looks at a part that
is not complete sees means of what has been read so far, and how much that is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.plan.tiling import Layout
from semrsm_dist.report.maps import Values, read_values
from semrsm_dist.report.view.pyramid import Sums, Tile, Window, cut
from semrsm_dist.results.matrices import LayerMatrices

Part = tuple[int, int]
"""A chunk of the matrices, as rows and columns of `LayerMatrices.chunks`."""

FORGOTTEN_SECONDS = 20.0
"""Sums that nobody has wanted for so long are given up."""

MOST_CELLS = 2**24
"""Of all sums together, which take 28 bytes a cell or more: those that were wanted least recently are given up."""

READERS = 4
"""Chunks that are read at once."""


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

    def read(self, part: Part) -> Values:
        """Return the similarities of a part."""
        return read_values(self.matrices, *self._images(part), self.kernel)

    def add(self, sums: Sums, part: Part, values: Values) -> None:
        """Add a part to sums: in a symmetric matrix, it stands for its mirror image, too."""
        rows, columns = self._images(part)
        is_diagonal = self.layout.symmetric and part[0] == part[1]
        sums.add(rows, columns, values, 0.5 if sums.folded and is_diagonal else 1.0)
        if self.layout.symmetric and not sums.folded and not is_diagonal:
            sums.add(columns, rows, Values(values.spatial.T, values.semantic.T, values.gap.T))

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


class Filling:
    """Sums that are being filled."""

    def __init__(self, source: Source, sums: Sums, finish: Callable[[Sums], None]) -> None:
        self.source = source
        self.left = dict.fromkeys(source.needed(sums))
        self.total = len(self.left)
        self.wanted = time.monotonic()
        self.error: Exception | None = None
        self._sums, self._finish, self._lock = sums, finish, threading.Lock()
        self._seen: dict[int, _Seen] = {}

    @property
    def n_cells(self) -> int:
        """Size in cells."""
        height, width = self._sums.window.shape
        return height * width

    @property
    def share(self) -> float:
        """How much of the pairs has been added; 1 for all."""
        return 1.0 - len(self.left) / max(self.total, 1)

    def add(self, part: Part, values: Values) -> None:
        """Add a part, if it has not been added; with the last, the sums are finished."""
        with self._lock:
            if part not in self.left:
                return
            self.source.add(self._sums, part, values)
            if len(self.left) == 1:
                self._finish(self._sums)
            del self.left[part]

    def fill(self) -> None:
        """Add all parts here and now."""
        for part in list(self.left):
            self.add(part, self.source.read(part))

    def look(self, tile: Tile) -> tuple[NDArray[np.float32], float]:
        """Return the planes of a tile as far as they are known, and the share of the pairs that they are of."""
        with self._lock:
            done = self.total - len(self.left)
            seen = self._seen.get(tile.level)
            if seen is None or done == self.total or done - seen.done > self.total // 50:
                sums = self._sums
                for _ in range(tile.level - sums.window.level):
                    sums = sums.coarser()
                seen = _Seen(done, sums.window, sums.planes(filled=done < self.total))
                self._seen[tile.level] = seen
            return cut(seen.planes, seen.window, tile), seen.done / max(self.total, 1)


class _Seen(NamedTuple):
    """The planes of a level when so many parts had been added."""

    done: int
    window: Window
    planes: NDArray[np.float32]


class Filler:
    """Fills what is wanted, what was wanted last first, until it is closed."""

    def __init__(self) -> None:
        self._fillings: dict[str, Filling] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._readers = ThreadPoolExecutor(READERS)
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
        """Begin to fill, and return after a moment, when there is something to see; or what another has begun."""
        with self._changed:
            filling = self._fillings.setdefault(name, filling)
            self._changed.notify_all()
            self._changed.wait_for(lambda: filling.share > 0 or filling.error is not None, 1.0)
        return filling

    def close(self) -> None:
        """Stop, and forget what is not complete."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()
        self._readers.shutdown()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._clean_up())
                if self._is_closed:
                    return
                open_ones = [one for one in self._fillings.values() if one.error is None]
                first = max(open_ones, key=lambda filling: filling.wanted)
                together = [one for one in open_ones if one.source is first.source]
            try:
                self._add_some(first, together)
            except Exception as error:  # noqa: BLE001 - raised again for who wants the tile
                first.error = error
            with self._changed:
                self._changed.notify_all()

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
        return any(filling.error is None for filling in self._fillings.values())

    def _add_some(self, first: Filling, together: list[Filling]) -> None:
        parts = [part for part, _ in zip(first.left, range(READERS), strict=False)]
        for part, values in zip(parts, self._readers.map(first.source.read, parts), strict=True):
            for filling in together:
                filling.add(part, values)

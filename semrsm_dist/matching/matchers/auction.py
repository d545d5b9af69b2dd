"""The matcher `auction`: certified to a tolerance, at about the price of the affinity product."""

from __future__ import annotations

import math
import time
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import override

from semrsm_dist.errors import ConfigError
from semrsm_dist.fields import Tolerance
from semrsm_dist.matching.assignment.auction_pair import (
    Images,
    Workspace,
    conclude,
    finish_exactly,
    images_of,
    make_workspace,
    match_pair,
)
from semrsm_dist.matching.compiled.jit import compiled
from semrsm_dist.matching.compiled.lanes import borrowed, read_cycles
from semrsm_dist.matching.compiled.product import padded, rounding_of_product
from semrsm_dist.matching.matcher import UNMATCHED, Matcher, PairMatch, product_seconds
from semrsm_dist.matching.panel import Panel, prepare_packed_panel
from semrsm_dist.matching.result import TileResult

# Tokens of the rows in one compiled call, which cannot be interrupted: with up to thousands of columns, seconds.
_TOKENS_AT_ONCE = 4096

CACHE_BYTES = 2**19
"""Bytes of the columns that are matched with all rows of a call before the next columns: the size of an L2 cache.

On Zen 3, a job of S = 49 and C = 128 took 5 % longer without.
"""


class Auction(Matcher):
    """Match by an auction whose prices prove how far from the optimum the result can be."""

    name: ClassVar[str] = "auction"
    version: ClassVar[int] = 4
    certified: ClassVar[bool] = True
    takes_unequal: ClassVar[bool] = True

    tolerance: Tolerance = 1e-3
    """The gap between bound and value is at most ``tolerance * ||z_i|| * ||z_j||``, that is, `tolerance` on the cosine
    scale. 0 asks for the optimum in float32: the gap is then at most 1e-6 of the norms. Every positive tolerance is
    kept, but what lies far below 1e-6 takes a slow finish in float64."""

    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """Where pairs are matched: on the `cpu`, or on an NVIDIA GPU (`cuda`), which leaves to the CPU what it cannot
    certify. Results differ within the tolerance. `auto` is a GPU if the machine that starts the work has one."""

    @override
    def resolved(self) -> Matcher:
        if self.device == "cpu":
            return self
        from semrsm_dist.matching.device.matcher import on_device  # noqa: PLC0415 - which derives from this class

        return on_device(self)

    @override
    def prepare(self, z: ArrayLike, token_counts: ArrayLike | None = None) -> Panel:
        if self.device != "cpu" and not self.gpus:
            raise ConfigError(
                f"device: {self.device}: a matcher made without make_matcher runs on the CPU: use make_matcher"
            )
        return prepare_packed_panel(z, token_counts)

    @override
    def compile(self) -> None:
        super(Auction, Auction(tolerance=1e-15)).compile()  # every pair bids, then needs the finish

    @override
    def panel_bytes(self, n_images: int, n_tokens: int, n_channels: int) -> int:
        packed = n_images * (4 * padded(n_tokens) * n_channels + 8 * n_tokens + 24)
        return super().panel_bytes(n_images, n_tokens, n_channels) + packed

    @override
    def pair_seconds(self, n_tokens: int, n_channels: int) -> float:
        return product_seconds(n_tokens, n_tokens, n_channels) + 3e-9 * math.pow(n_tokens, 1.9)

    @override
    def workspace_bytes(self, n_tokens: int, n_channels: int) -> int:
        # The affinity in float32 and in 16 bits and, for a pair that needs the exact finish, in float64.
        width = padded(n_tokens)
        return 14 * width**2 + 16 * width * n_channels + 64 * width

    @override
    def match_prepared(self, rows: Panel, r: int, columns: Panel, c: int) -> PairMatch:
        work = make_workspace(rows.n_tokens)
        tile = TileResult(*np.empty((3, 1, 1)))
        self._solve(rows.part(slice(r, r + 1)), range(1), columns.part(slice(c, c + 1)), False, work, tile)
        partners = work.permutation[: rows.token_counts[r]]
        partners = np.where(partners < columns.token_counts[c], partners, UNMATCHED)  # not zero tokens
        return float(tile.matched[0, 0]), float(tile.upper_bound[0, 0]), partners

    @override
    def rows_at_once(self, n_tokens: int) -> int:
        return max(1, _TOKENS_AT_ONCE // n_tokens)

    def _solve_rows(
        self, rows: Panel, span: range, columns: Panel, triangular: bool, tile: TileResult
    ) -> NDArray[np.float64]:
        work = make_workspace(rows.n_tokens)
        clock, cycles = time.perf_counter(), _cycles()
        self._solve(rows, span, columns, triangular, work, tile)
        seconds, passed = time.perf_counter() - clock, _cycles() - cycles
        return work.cycles.astype(np.float64) * (seconds / passed if passed else 0.0)

    def _solve(
        self,
        rows: Panel,
        span: range,
        columns: Panel,
        triangular: bool,
        work: Workspace,
        tile: TileResult,
    ) -> None:
        """Match a span of `rows` with `columns`, finishing exactly where the auction cannot."""
        images, others = images_of(rows, columns)
        rounding = rounding_of_product(rows.n_channels)
        sweep = _Sweep(span.start, span.stop, _columns_at_once(rows), triangular, self.tolerance, rounding)
        first = span.start + 1 if triangular else 0
        place = _Place(first, span.start, first)
        while place.first < columns.n_images:
            place = _solve_until_open(images, others, place, sweep, work, tile)
            if place.first < columns.n_images:
                finish_exactly(images, place.r, others, place.c, work, tile)
                place = place._replace(c=place.c + 1)


class _Sweep(NamedTuple):
    """How rows from `start` to `stop` meet the columns: all of them `at_once` columns, then the next columns."""

    start: int
    stop: int
    at_once: int
    triangular: bool
    tolerance: float
    rounding: float


class _Place(NamedTuple):
    """The next pair (r, c), and the first of the columns that are met at once."""

    first: int
    r: int
    c: int


def _columns_at_once(panel: Panel) -> int:
    """Return how many images (>= 1) fit in the L2 cache."""
    image = panel.n_channels * (padded(panel.n_tokens) * 4 + panel.n_tokens * panel.raw.itemsize)
    return max(1, CACHE_BYTES // image)


@compiled
def _cycles() -> int:
    return int(read_cycles())


@compiled
def _solve_until_open(
    rows: Images, columns: Images, place: _Place, sweep: _Sweep, work: Workspace, results: TileResult
) -> _Place:
    """Match pairs of images from a place on.

    Returns the first pair that needs the exact finish, whose prices are in `work`, or a place beyond the last column.
    The finish is not called from here because its code would double the time to compile.
    """
    rows, columns, work, results = borrowed(rows), borrowed(columns), borrowed(work), borrowed(results)
    n_columns = columns.scales.size
    first, r, c = place
    while first < n_columns:
        last = min(first + sweep.at_once, n_columns)
        while r < sweep.stop:
            while c < last:
                proof = match_pair(rows, r, columns, c, sweep.tolerance, sweep.rounding, work)
                if not min(proof) < np.inf:
                    return _Place(first, r, c)
                conclude(rows, r, columns, c, proof, work, results)
                c += 1
            r += 1
            c = max(first, r + 1) if sweep.triangular else first
        first, r = last, sweep.start
        c = max(first, r + 1) if sweep.triangular else first
    return _Place(first, r, c)

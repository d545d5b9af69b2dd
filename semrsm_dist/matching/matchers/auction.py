"""The matcher `auction`: certified to a tolerance, at about the price of the affinity product."""

from __future__ import annotations

import functools
import logging
import math
import sys
import time
from typing import ClassVar, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import override

from semrsm_dist.errors import ConfigError, LimitError
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
from semrsm_dist.matching.device import cuda
from semrsm_dist.matching.device.forms import CAPACITIES
from semrsm_dist.matching.device.solver import solve, solve_pair
from semrsm_dist.matching.matcher import Matcher, PairMatch, product_seconds
from semrsm_dist.matching.panel import PackedPanel, Panel, prepare_packed_panel
from semrsm_dist.matching.result import UNMATCHED, TileResult

logger = logging.getLogger(__name__)
_warn_once = functools.cache(logger.warning)

# Tokens of the rows in one compiled call, which cannot be interrupted: with up to thousands of columns, seconds.
_TOKENS_AT_ONCE = 4096

CACHE_BYTES = 2**19
"""Bytes of the columns that are matched with all rows of a call before the next columns: the size of an L2 cache.

On Zen 3, a job of S = 49 and C = 128 took 5 % longer without.
"""


_FEW = 0.1  # share of a tile's pairs that a GPU may leave to the CPU without a word


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
        device = self.device
        if device == "auto":
            reason = cuda.why_no_gpu()
            device = "cpu" if reason else "cuda"
            if reason:
                logger.warning("device: auto: the CPU matches, as %s", reason)
        if device == "cpu":
            return Auction(tolerance=self.tolerance)
        reason = cuda.why_no_package()  # whether there is a GPU is for those to see who start workers
        if reason:
            raise ConfigError(f"device: cuda: {reason}: install it, or use device: cpu")
        return _DeviceAuction(tolerance=self.tolerance, device=device)

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


class _DeviceAuction(Auction):
    """The auction on a GPU: what it leaves open, the CPU's auction finishes. See `semrsm_dist.matching.device`."""

    # What is left to the CPU has the numbers of its auction.
    version: ClassVar[int] = 100 * Auction.version + 2
    gpus: ClassVar[float] = 0.25  # while one worker reads, prepares or writes, others keep the GPU busy

    @override
    def start_worker(self) -> None:
        cuda.own_device()

    @override
    def check_pair(self, rows: Panel, columns: Panel) -> None:
        super().check_pair(rows, columns)
        if rows.n_tokens > CAPACITIES[-1]:
            raise LimitError(
                f"device: cuda matches images of up to {CAPACITIES[-1]} tokens, found room for {rows.n_tokens}: use "
                "device: cpu"
            )

    @override
    def pair_seconds(self, n_tokens: int, n_channels: int) -> float:
        return 2.0 * n_tokens**2 * n_channels / 15e12 + 1.5e-11 * n_tokens**2 + 3e-8

    @override
    def rows_at_once(self, n_tokens: int) -> int:
        return sys.maxsize  # all: a tile takes less than a second

    @override
    def match_prepared(self, rows: Panel, r: int, columns: Panel, c: int) -> PairMatch:
        left = cast(PackedPanel, rows.part(slice(r, r + 1)))
        right = cast(PackedPanel, columns.part(slice(c, c + 1)))
        found, is_open, partners = solve_pair(cuda.own_device(), left, right, self.tolerance)
        if is_open:
            return super().match_prepared(rows, r, columns, c)
        partners = np.where(partners < columns.token_counts[c], partners, UNMATCHED)  # not zero tokens
        return float(found.matched[0, 0]), float(found.upper_bound[0, 0]), partners[: rows.token_counts[r]]

    @override
    def _solve_rows(
        self, rows: Panel, span: range, columns: Panel, triangular: bool, tile: TileResult
    ) -> NDArray[np.float64]:
        started = time.perf_counter()
        wanted = np.ones(tile.matched.shape, np.bool_)
        _, is_open = solve(
            cuda.own_device(),
            cast(PackedPanel, rows),
            cast(PackedPanel, columns),
            self.tolerance,
            np.triu(wanted, 1) if triangular else wanted,
            tile,
        )
        self._finish(rows, columns, is_open, tile)
        return np.array([0.0, time.perf_counter() - started])

    def _finish(self, rows: Panel, columns: Panel, is_open: NDArray[np.bool_], tile: TileResult) -> None:
        """Match the pairs that are open on the CPU."""
        count = np.count_nonzero(is_open)
        if count > _FEW * is_open.size:
            _warn_once(
                "device: cuda: at tolerance %g, the GPU leaves many pairs of S = %d and C = %d to the CPU, one after "
                "the other: use device: cpu, or a larger tolerance",
                self.tolerance,
                rows.n_tokens,
                rows.n_channels,
            )
        logger.info("%d of %d pairs of a tile were left to the CPU", count, is_open.size)
        for r, c in np.argwhere(is_open) if count else ():
            value, bound, _ = super().match_prepared(rows, r, columns, c)
            # The device has summed the identity's value in another order.
            tile.matched[r, c] = np.fmax(value, tile.identity[r, c])
            tile.upper_bound[r, c] = max(bound, tile.matched[r, c])


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

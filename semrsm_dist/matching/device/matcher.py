"""The matcher `auction` on a GPU."""

from __future__ import annotations

import functools
import logging
import sys
import time
from typing import ClassVar, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from semrsm_dist.errors import ConfigError, LimitError
from semrsm_dist.matching.device import cuda
from semrsm_dist.matching.device.solver import solve, solve_pair
from semrsm_dist.matching.device.source import CAPACITIES
from semrsm_dist.matching.matcher import UNMATCHED, PairMatch
from semrsm_dist.matching.matchers.auction import Auction
from semrsm_dist.matching.panel import PackedPanel, Panel
from semrsm_dist.matching.result import TileResult

logger = logging.getLogger(__name__)
_warn_once = functools.cache(logger.warning)

_FEW = 0.1  # share of a tile's pairs that may be left to the CPU without a word


class DeviceAuction(Auction):
    """The auction on a GPU: what it leaves open, the CPU's auction finishes. See `semrsm_dist.matching.device`."""

    version: ClassVar[int] = 1
    gpus: ClassVar[float] = 1

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
        return sys.maxsize  # a tile takes less than a second

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
        band = slice(span.start, min(span.stop, rows.n_images))
        part, others = cast(PackedPanel, rows.part(band)), cast(PackedPanel, columns)
        wanted = np.ones((part.n_images, columns.n_images), np.bool_)
        if triangular:
            wanted = np.triu(wanted, band.start + 1)
        found, is_open = solve(cuda.own_device(), part, others, self.tolerance, wanted)
        for name in ("matched", "upper_bound", "identity"):
            getattr(tile, name)[band] = getattr(found, name)
        self._finish(
            part, others, is_open, TileResult(tile.matched[band], tile.upper_bound[band], tile.identity[band])
        )
        return np.array([0.0, time.perf_counter() - started])

    def _finish(
        self, rows: PackedPanel, columns: PackedPanel, is_open: NDArray[np.bool_], tile: TileResult
    ) -> None:
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
        for r, c in np.argwhere(is_open):
            value, bound, _ = super().match_prepared(rows, r, columns, c)
            tile.matched[r, c] = np.fmax(
                value, tile.identity[r, c]
            )  # which the device has summed in another order
            tile.upper_bound[r, c] = max(bound, tile.matched[r, c])


def on_device(matcher: Auction) -> Auction:
    """Return the matcher for the device that a matcher names, with `auto` decided.

    Raises
    ------
    ConfigError
        If it is `cuda` and CUDA cannot be used. Whether there is a GPU is for whoever starts workers to see.
    """
    device = matcher.device
    if device == "auto":
        reason = cuda.why_no_gpu()
        device = "cpu" if reason else "cuda"
        if reason:
            logger.warning("device: auto: the CPU matches, as %s", reason)
    if device == "cpu":
        return Auction(tolerance=matcher.tolerance)
    reason = cuda.why_no_package()
    if reason:
        raise ConfigError(f"device: cuda: {reason}: install it, or use device: cpu")
    return DeviceAuction(tolerance=matcher.tolerance, device="cuda")

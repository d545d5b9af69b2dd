"""The base of matchers that cut both images' tokens into windows and match inside each."""

from __future__ import annotations

import functools
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import override

from semrsm_dist.fields import Tolerance
from semrsm_dist.matching.bounds import inner_product, norm_bound
from semrsm_dist.matching.compiled.jit import compiled
from semrsm_dist.matching.compiled.lane_sums import dot
from semrsm_dist.matching.matcher import Matcher, PairMatch
from semrsm_dist.matching.matchers.auction import Auction
from semrsm_dist.matching.panel import PackedPanel, Panel, prepare_packed_panel, read_only
from semrsm_dist.matching.result import TileResult


@dataclass(frozen=True, slots=True, eq=False)
class WindowedPanel(Panel):
    """A panel with its tokens in an order of their own, cut into windows."""

    order: NDArray[np.intp]
    """(T, S) the tokens of each image, those of the first window first."""
    windows: tuple[PackedPanel, ...]
    """The tokens of each window, for all images. The windows may end before the order does."""


class WindowedMatcher(Matcher):
    """Match windows of tokens by an auction, each window of one image with the same window of the other.

    Which token is in which window depends only on its own image, so windows are cut once per image, not once per
    pair. Tokens after the last window are paired in order. The bound comes from norms alone.
    """

    tolerance: Tolerance = 0.0
    """How far the match inside the windows may be below its optimum, on the cosine scale; 0 is exact in float32
    (1e-6)."""

    @functools.cached_property
    def inside(self) -> Auction:
        """The matcher of the windows."""
        return Auction(tolerance=self.tolerance)

    @abstractmethod
    def order(self, image: NDArray[Any]) -> NDArray[np.intp]:
        """Return the tokens of an image (S, C) in the order in which windows are cut."""

    @abstractmethod
    def sizes(self, n_tokens: int) -> list[int]:
        """Return the number of tokens of each window."""

    @override
    def prepare(self, z: ArrayLike, token_counts: ArrayLike | None = None) -> Panel:
        panel = super().prepare(z, token_counts)
        order = np.array([self.order(image) for image in panel.raw])
        windows, start = [], 0
        for size in self.sizes(panel.n_tokens):
            tokens = order[:, start : start + size, None]
            windows.append(prepare_packed_panel(np.take_along_axis(panel.raw, tokens, axis=1)))
            start += size
        return panel.extended(WindowedPanel, read_only(order), tuple(windows))

    @override
    def compile(self) -> None:
        self.inside.compile()
        super().compile()

    @override
    def panel_bytes(self, n_images: int, n_tokens: int, n_channels: int) -> int:
        whole = super().panel_bytes(n_images, n_tokens, n_channels) + 8 * n_images * n_tokens
        return whole + sum(
            self.inside.panel_bytes(n_images, size, n_channels) for size in self.sizes(n_tokens)
        )

    @override
    def workspace_bytes(self, n_tokens: int, n_channels: int) -> int:
        return self.inside.workspace_bytes(max(self.sizes(n_tokens)), n_channels) + 8 * n_tokens

    @override
    def match_prepared(self, rows: Panel, r: int, columns: Panel, c: int) -> PairMatch:
        cut_i, cut_j = cast(WindowedPanel, rows), cast(WindowedPanel, columns)
        order_i, order_j = cut_i.order[r], cut_j.order[c]
        start = sum(window.n_tokens for window in cut_i.windows)
        permutation = np.empty(rows.n_tokens, np.intp)
        permutation[order_i[start:]] = order_j[start:]
        value = _value_in_order(rows.raw[r], order_i, columns.raw[c], order_j, start)
        start = 0
        for window_i, window_j in zip(cut_i.windows, cut_j.windows, strict=True):
            stop = start + window_i.n_tokens
            inside, _, places = self.inside.match_prepared(window_i, r, window_j, c)
            value += inside
            permutation[order_i[start:stop]] = order_j[start:stop][places]
            start = stop
        return value, max(value, norm_bound(rows, r, columns, c)), permutation

    def _solve_row(
        self, rows: Panel, r: int, columns: Panel, first: int, tile: TileResult
    ) -> tuple[float, float]:
        """As `match_prepared` for all pairs of a row, window by window: far fewer calls."""
        cut_i, cut_j = cast(WindowedPanel, rows), cast(WindowedPanel, columns)
        start = sum(window.n_tokens for window in cut_i.windows)
        z_i, order_i = rows.raw[r], cut_i.order[r]
        for c in range(first, columns.n_images):
            z_j = columns.raw[c]
            tile.matched[r, c] = _value_in_order(z_i, order_i, z_j, cut_j.order[c], start)
            tile.identity[r, c] = inner_product(z_i, z_j)
        seconds = np.zeros(2)
        for window_i, window_j in zip(cut_i.windows, cut_j.windows, strict=True):
            inside = self.inside.solve_tile(window_i.part(slice(r, r + 1)), window_j.part(slice(first, None)))
            tile.matched[r, first:] += inside.matched[0]
            seconds += inside.products, inside.solving
        for c in range(first, columns.n_images):
            tile.upper_bound[r, c] = max(tile.matched[r, c], norm_bound(rows, r, columns, c))
        return float(seconds[0]), float(seconds[1])


@compiled
def _value_in_order(
    z_i: NDArray[np.floating[Any]],
    order_i: NDArray[np.intp],
    z_j: NDArray[np.floating[Any]],
    order_j: NDArray[np.intp],
    start: int,
) -> float:
    """Return ``sum_s <z_i[order_i[s]], z_j[order_j[s]]>`` over s from `start` on, in float64."""
    n_tokens, n_channels = z_i.shape
    flat_i, flat_j = z_i.ravel(), z_j.ravel()
    total = 0.0
    for s in range(start, n_tokens):
        total += dot(flat_i, order_i[s] * n_channels, flat_j, order_j[s] * n_channels, n_channels)
    return total

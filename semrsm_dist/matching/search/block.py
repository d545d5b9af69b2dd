"""Panels of a search, and the decision of a block of pairs: consecutive rows against any columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.assignment.auction_pair import images_of_panel
from semrsm_dist.matching.compiled.product import padded
from semrsm_dist.matching.kernels import cosine, even_exponents
from semrsm_dist.matching.matchers.auction import Auction
from semrsm_dist.matching.panel import PackedPanel
from semrsm_dist.matching.search.progressive import (
    SINGLE_ROUNDING,
    SOLVED,
    WITHOUT_PRODUCT,
    Candidates,
    Hits,
    SearchImages,
    Settings,
    make_memory,
    offer,
    record,
    search_rows,
)
from semrsm_dist.matching.search.pruning_bounds import (
    LEAST_SAVING,
    Sketches,
    sketch,
    sort_channels,
    sorted_channel_bounds,
)

Floors = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]
"""The best similarities (R, k) that rows have so far, and their columns; and the floors (K,) of `Candidates`."""


@dataclass(frozen=True, slots=True, eq=False)
class SearchPanel:
    """The images of a panel in all forms that a search needs."""

    panel: PackedPanel
    images: SearchImages
    sketches: Sketches
    sorted: NDArray[np.float32]

    @classmethod
    def of(
        cls, panel: PackedPanel, directions: NDArray[np.float64], *, double: bool, on_device: bool = False
    ) -> Self:
        """Prepare a panel: `directions` and `double` must be those of the panel that it is searched against.

        Where a GPU bounds all pairs (`on_device`), there is no need of sorted channels.
        """
        sketches = sketch(panel, directions)
        prices = np.zeros((panel.n_images, padded(panel.n_tokens)), np.float32)
        norms = even_exponents(panel.squared_norms)
        learned = np.zeros(panel.n_images, np.int64)
        images = SearchImages(images_of_panel(panel, double), *norms, sketches.packed, prices, learned)
        channels = np.empty((panel.n_images, 0), np.float32) if on_device else sort_channels(panel)
        return cls(panel, images, sketches, channels)

    @property
    def n_images(self) -> int:
        """Number of images."""
        return self.panel.n_images


def search_bytes(n_images: int, n_tokens: int, n_channels: int) -> int:
    """Return the memory that a `SearchPanel` takes at most in addition to its panel, in bytes."""
    sketches = padded(n_tokens) * (n_channels // LEAST_SAVING + 1)
    return n_images * (4 * (n_tokens * n_channels + sketches + padded(n_tokens)) + 32)


def similarity_bounds(
    rows: SearchPanel, some: slice, columns: SearchPanel, others: slice
) -> NDArray[np.float64]:
    """Return upper bounds (R, K) on the similarities of some rows and columns; -inf where there is no similarity."""
    left, right = rows.panel.part(some), columns.panel.part(others)
    matched = sorted_channel_bounds(left, rows.sorted[some], right, columns.sorted[others])
    # Rounded like the similarities themselves, so a bound stays one. NaN: norms of zero, no similarity.
    bounds = cosine(matched, left.squared_norms, right.squared_norms)
    bounds[np.isnan(bounds)] = -np.inf
    return bounds


def decide_pairs(
    matcher: Auction,
    sides: tuple[SearchPanel, SearchPanel],
    first: int,
    bounds: NDArray[np.float64],
    floors: Floors,
    settings: Settings,
    *,
    in_full: bool = False,
) -> tuple[NDArray[np.intp], Hits]:
    """Decide all pairs of rows from `first` on whose bound (R, K) is not -inf, the most promising first.

    The best similarities in `floors` are updated. Returns the columns (R, W) of the candidates, and what was found of
    them; `in_full` with `Hits.numbers`.
    """
    rows, columns = sides
    best, indices, of_columns = floors
    order, bounds, n_dropped = _order_open(bounds, np.minimum(best[:, -1:], of_columns), settings)
    numbers = np.empty((3, *(order.shape if in_full else (0, 0))))
    hits = Hits(best, indices, np.full(order.shape, np.nan), numbers, np.zeros(4, np.int64))
    hits.counts[WITHOUT_PRODUCT] = n_dropped
    candidates = Candidates(first, order, bounds, of_columns)
    memory = make_memory(rows.panel.n_tokens, rows.panel.n_channels)
    images = rows.images, columns.images
    r = w = 0
    while True:
        r, w = search_rows(images, candidates, settings, memory, hits, (r, w))
        if r == len(order):
            return order, hits
        c = int(order[r, w])  # needs the exact finish
        pair = (side.panel.part(slice(n, n + 1)) for side, n in zip(sides, (first + r, c), strict=True))
        tile = matcher.solve_tile(*pair)
        found = (float(tile.matched[0, 0]), float(tile.identity[0, 0]), float(tile.upper_bound[0, 0]))
        record(images[0], first + r, images[1], c, found, settings, (r, w), hits)
        offer(best[r], indices[r], hits.solved[r, w], c)
        hits.counts[SOLVED] += 1
        w += 1


def _order_open(
    bounds: NDArray[np.float64], floors: NDArray[np.float64], settings: Settings
) -> tuple[NDArray[np.intp], NDArray[np.float64], int]:
    """Return the columns (R, W) of the pairs that reach the floors (R, K), the most promising first, and their bounds.

    Both are filled up, bounds with -inf; the third is how many pairs do not reach them. Floors only rise, so that these
    few need no place in the order.
    """
    floors = floors - SINGLE_ROUNDING if settings.single else floors
    is_pair = bounds > -np.inf
    r, c = np.nonzero((bounds >= floors) & is_pair)
    reached = bounds[r, c]
    by_row = np.lexsort((-reached, r))  # stable: equal bounds by column
    r, c, reached = r[by_row], c[by_row], reached[by_row]
    counts = np.bincount(r, minlength=len(bounds))
    place = np.arange(r.size) - (np.cumsum(counts) - counts)[r]
    shape = len(bounds), int(counts.max())
    order, ordered = np.zeros(shape, np.intp), np.full(shape, -np.inf)
    order[r, place], ordered[r, place] = c, reached
    return order, ordered, int(np.count_nonzero(is_pair)) - r.size

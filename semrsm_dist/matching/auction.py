"""The matcher `auction`: certified to a tolerance, at about the price of the affinity product.

Images may differ in their number of tokens. Zero tokens fill the smaller image up to the larger, which changes no
value: whatever of the larger image is matched with them stays without a partner. Centring goes through: with a and
b the tokens minus their image's mean (zero tokens become the negative mean), every permutation P of S_i <= S_j
tokens has ``<Z_i, P Z_j> = S_i mu_i . mu_j + <A, P B>``, as B sums to zero.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from semrsm_dist.matching.augment import assign_exactly
from semrsm_dist.matching.bidding import run_auction
from semrsm_dist.matching.bounds import (
    distance_from_optimum,
    float64_rounding,
    identity_and_matched_value,
    inner_product,
)
from semrsm_dist.matching.jit import compiled
from semrsm_dist.matching.lanes import LANES, read_cycles
from semrsm_dist.matching.matcher import UNMATCHED, Matcher, PairMatch, check_tolerance
from semrsm_dist.matching.panel import PackedPanel, Panel, empty_aligned, prepare_packed_panel, read_only
from semrsm_dist.matching.product import multiply_packed, pack, padded, rounding_of_product
from semrsm_dist.matching.result import TileResult

EXACT = 1e-6
"""What tolerance 0 asks for: the accuracy of float32, on the cosine scale."""

_FINEST = 3e-7  # gap, relative to the centred norms, that an auction in float32 can still close
_PACKING = 2.0**-22  # more than rounding both representations to float32 changes an affinity
# Share of the allowed gap that the auction may leave where float32 proves too little. The rest is for its
# rounding, which took less than a hundredth on photographs and digit scenes.
_MARGIN = 0.9


_TOKENS_AT_ONCE = (
    4096  # of the rows in one compiled call: it can be interrupted after well below a second a column
)

Matrix = NDArray[np.float64]


class _Images(NamedTuple):
    """The arrays of a `PackedPanel`, in a form that compiled code takes."""

    raw: NDArray[Any]
    token_counts: NDArray[np.int64]
    squared_norms: NDArray[np.float64]
    means: NDArray[np.float64]
    token_norms: NDArray[np.float64]
    packed: NDArray[np.float32]
    scales: NDArray[np.float64]
    centred_norms: NDArray[np.float64]
    rounding_norms: NDArray[np.float64]
    filling_norms: NDArray[np.float64]
    filling_rounding_norms: NDArray[np.float64]
    lengths: NDArray[np.float64]


class _Workspace(NamedTuple):
    """Memory for one pair, used again for the next."""

    affinity: NDArray[np.float32]
    prices: NDArray[np.float32]
    columns: NDArray[np.int32]
    owners: NDArray[np.int32]
    waiting: NDArray[np.int32]
    lowered: NDArray[np.float32]
    bests: NDArray[np.float32]
    permutation: NDArray[np.intp]
    cycles: NDArray[np.int64]  # spent in products and in matching


class Auction(Matcher):
    """Match by an auction whose prices prove how far from the optimum the result can be.

    Parameters
    ----------
    tolerance : float
        The gap between bound and value is at most ``tolerance * ||z_i|| * ||z_j||``, that is, `tolerance`
        on the cosine scale. 0 asks for the optimum in float32: the gap is then at most 1e-6 of the norms.
        Every positive tolerance is kept, but what lies far below 1e-6 takes a slow finish in float64.
    """

    name: ClassVar[str] = "auction"
    version: ClassVar[int] = 3
    certified: ClassVar[bool] = True
    takes_unequal: ClassVar[bool] = True

    def __init__(self, tolerance: float = 1e-3) -> None:
        self.tolerance = check_tolerance(self.name, tolerance)

    @property
    def parameters(self) -> dict[str, int | float]:
        """What alters the numbers, by name."""
        return {"tolerance": self.tolerance}

    def prepare(self, z: ArrayLike, token_counts: ArrayLike | None = None) -> Panel:
        """Return representations (T, S, C) centred, scaled and packed; see `Matcher.prepare`."""
        return prepare_packed_panel(z, token_counts)

    def compile(self) -> None:
        """Compile the auction and the exact finish; see `Matcher.compile`."""
        super(Auction, Auction(tolerance=1e-15)).compile()  # every pair bids, then needs the finish

    def panel_bytes(self, n_images: int, n_tokens: int, n_channels: int) -> int:
        """Return the memory of a prepared panel of float32 representations, in bytes."""
        packed = n_images * (4 * padded(n_tokens) * n_channels + 8 * n_tokens + 24)
        return super().panel_bytes(n_images, n_tokens, n_channels) + packed

    def workspace_bytes(self, n_tokens: int, n_channels: int) -> int:
        """Return the memory that matching one pair takes beside the panels, in bytes.

        The affinity in float32 and, for a pair that needs the exact finish, in float64.
        """
        width = padded(n_tokens)
        return 12 * width**2 + 16 * width * n_channels + 64 * width

    def match_prepared(self, rows: Panel, r: int, columns: Panel, c: int) -> PairMatch:
        """Match image r of `rows` with image c of `columns`; see `Matcher.match_prepared`."""
        work = _workspace(rows.n_tokens)
        tile = TileResult(*np.empty((3, 1, 1)))
        self._solve(rows.part(slice(r, r + 1)), range(1), columns.part(slice(c, c + 1)), False, work, tile)
        partners = _partners(rows, r, columns, c, work.permutation)
        return float(tile.matched[0, 0]), float(tile.upper_bound[0, 0]), partners

    def rows_at_once(self, n_tokens: int) -> int:
        """Return how many rows of a tile are solved between two looks at whether to go on."""
        return max(1, _TOKENS_AT_ONCE // n_tokens)

    def _solve_rows(
        self, rows: Panel, span: range, columns: Panel, triangular: bool, tile: TileResult
    ) -> NDArray[np.float64]:
        work = _workspace(rows.n_tokens)
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
        work: _Workspace,
        tile: TileResult,
    ) -> None:
        """Match a span of `rows` with `columns`, finishing exactly where the auction cannot."""
        rounding = rounding_of_product(rows.n_channels)
        images, others = _images(rows), _images(columns)
        out = (tile.matched, tile.upper_bound, tile.identity)
        r, c = span.start, span.start + 1 if triangular else 0
        while True:
            r, c = _solve_until_open(
                images, others, r, c, span.stop, triangular, self.tolerance, rounding, work, *out
            )
            if r == span.stop:
                return
            _finish_exactly(images, r, others, c, work, *out)
            c += 1


def _images(panel: Panel) -> _Images:
    packed = cast(PackedPanel, panel)
    return _Images(*(read_only(getattr(packed, field)) for field in _Images._fields))


def _partners(rows: Panel, r: int, columns: Panel, c: int, permutation: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the partner of each token that image r has; `UNMATCHED` for zero tokens that fill image c up."""
    partners = permutation[: rows.token_counts[r]]
    return np.where(partners < columns.token_counts[c], partners, UNMATCHED)


def _workspace(n_tokens: int) -> _Workspace:
    width = padded(n_tokens)
    return _Workspace(
        empty_aligned((width * width,), np.float32),
        empty_aligned((width,), np.float32),
        np.empty(width, np.int32),
        np.empty(width, np.int32),
        np.empty(width, np.int32),
        empty_aligned((width,), np.float32),
        np.empty(width, np.float32),
        np.empty(n_tokens, np.intp),
        np.zeros(2, np.int64),
    )


@compiled
def _cycles() -> int:
    return int(read_cycles())


@compiled
def _solve_until_open(
    rows: _Images,
    columns: _Images,
    r: int,
    c: int,
    stop: int,
    triangular: bool,
    tolerance: float,
    rounding: float,
    work: _Workspace,
    matched: Matrix,
    upper_bound: Matrix,
    identity: Matrix,
) -> tuple[int, int]:
    """Match images of `rows` up to `stop` with `columns`, row by row, from the pair (r, c) on.

    Returns the first pair that needs the exact finish (its prices are in `work`), or (stop, 0).
    The finish is not called from here because its code would double the time to compile.
    """
    while r < stop:
        while c < columns.scales.size:
            gap, bound = _auction_pair(rows, r, columns, c, tolerance, rounding, -np.inf, work)
            if not min(gap, bound) < np.inf:
                return r, c
            _conclude(rows, r, columns, c, gap, bound, work, matched, upper_bound, identity)
            c += 1
        r += 1
        c = r + 1 if triangular else 0
    return stop, 0


@compiled
def _conclude(
    rows: _Images,
    r: int,
    columns: _Images,
    c: int,
    gap: float,
    bound: float,
    work: _Workspace,
    matched: Matrix,
    upper_bound: Matrix,
    identity: Matrix,
) -> None:
    """Write the value of the permutation found, and the bound or, if that is less, the value plus the gap."""
    count = max(rows.token_counts[r], columns.token_counts[c])
    trace, value = identity_and_matched_value(
        rows.raw[r, :count], columns.raw[c, :count], work.permutation[:count]
    )
    bound = min(bound, value + gap)
    if rows.token_counts[r] != columns.token_counts[c]:
        trace = np.nan  # there is no position by position
    elif value < trace:  # never worse than no matching at all
        value = trace
        _set_identity(work)
    identity[r, c] = trace
    matched[r, c] = value
    upper_bound[r, c] = max(bound, value)


@compiled
def _set_identity(work: _Workspace) -> None:
    for s in range(work.permutation.size):
        work.permutation[s] = s


@compiled
def _auction_pair(
    rows: _Images,
    r: int,
    columns: _Images,
    c: int,
    tolerance: float,
    rounding: float,
    floor: float,
    work: _Workspace,
) -> tuple[float, float]:
    """Write a permutation within the tolerance to `work`, and return a gap and an upper bound.

    One of both can be infinity; both are if no such permutation was found. A gap of -infinity says that there
    is none because the bound, which then comes with it, fell below `floor`. Affinities are those of the
    centred, scaled representations: a value is ``common + scale * (sum of its affinities)``. The product's
    float32 errors move such a sum by at most `slack`, float64 rounding moves the result by at most `margin`.
    """
    n_channels = rows.raw.shape[2]
    n_tokens = max(rows.token_counts[r], columns.token_counts[c])
    width = -(-n_tokens // LANES) * LANES
    norms = np.sqrt(rows.squared_norms[r]) * np.sqrt(columns.squared_norms[c])
    allowed = (tolerance if tolerance > 0.0 else EXACT) * norms
    margin = float64_rounding(n_tokens, n_channels) * norms
    common = _common_value(rows, r, columns, c)
    scale = rows.scales[r] * columns.scales[c]
    size_i, lost_i = _norms_when_filled(rows, r, n_tokens)
    size_j, lost_j = _norms_when_filled(columns, c, n_tokens)
    size = size_i * size_j
    if rows.token_counts[r] == columns.token_counts[c]:
        spread = inner_product(rows.token_norms[r, :n_tokens], columns.token_norms[c, :n_tokens])
    else:
        spread = scale * (size_i + lost_i) * (size_j + lost_j)
    bound = common + spread + margin  # see bounds.norm_bound
    if n_tokens == 1 or 2.0 * (spread + margin) <= allowed:  # images (almost) without variation
        _set_identity(work)
        return 0.0 if n_tokens == 1 else np.inf, bound
    slack = rounding * size + lost_i * (size_j + lost_j) + lost_j * size_i
    # Both the value found and the bound may be off by the slack and the margin.
    target = (allowed - 2.0 * margin) / scale - 2.0 * slack
    certifiable = target > 2.0 * slack
    if not certifiable:
        target = max(_MARGIN * allowed / scale, _FINEST * size)
    affinity, prices = work.affinity[: width * width], work.prices[:width]
    part = width * n_channels
    began = read_cycles()
    multiply_packed(rows.packed[r, :part], columns.packed[c, :part], n_channels, n_tokens, affinity)
    multiplied = read_cycles()
    finished, dual = run_auction(
        affinity,
        n_tokens,
        size,
        target,
        prices,
        work.columns[:width],
        work.owners[:width],
        work.waiting[:width],
        work.lowered[:width],
        work.bests[:width],
        (floor - common - margin) / scale - slack,
    )
    work.cycles[0] += multiplied - began
    if not finished and dual < np.inf:
        work.cycles[1] += read_cycles() - multiplied
        return -np.inf, common + scale * (dual + slack) + margin
    gap = np.inf
    if finished and not certifiable:
        gap = scale * distance_from_optimum(
            affinity,
            prices,
            work.columns[:width],
            rows.raw[r, :n_tokens],
            rows.means[r],
            rows.lengths[r],
            columns.raw[c, :n_tokens],
            max(columns.token_norms[c, 0] / columns.scales[c], columns.lengths[c, n_tokens - 1]),
            scale,
            rounding + _PACKING,
        )
    work.cycles[1] += read_cycles() - multiplied
    if not finished or not (certifiable or gap + margin <= allowed):
        return np.inf, np.inf
    for s in range(n_tokens):
        work.permutation[s] = work.columns[s]
    if certifiable:
        bound = min(bound, common + scale * (dual + slack) + margin)
    return gap + margin, bound


@compiled
def _common_value(rows: _Images, r: int, columns: _Images, c: int) -> float:
    """Return the part of a value that all matchings share, which centring takes out."""
    fewest = min(rows.token_counts[r], columns.token_counts[c])
    common: float = fewest * inner_product(rows.means[r], columns.means[c])
    return common


@compiled
def _norms_when_filled(images: _Images, t: int, n_tokens: int) -> tuple[float, float]:
    """Return `centred_norms` and `rounding_norms` of an image filled up to `n_tokens`."""
    missing = n_tokens - images.token_counts[t]
    if missing == 0:
        return images.centred_norms[t], images.rounding_norms[t]
    size = images.centred_norms[t] ** 2 + missing * images.filling_norms[t] ** 2
    lost = images.rounding_norms[t] ** 2 + missing * images.filling_rounding_norms[t] ** 2
    return np.sqrt(size), np.sqrt(lost)


@compiled
def _finish_exactly(
    rows: _Images,
    r: int,
    columns: _Images,
    c: int,
    work: _Workspace,
    matched: Matrix,
    upper_bound: Matrix,
    identity: Matrix,
) -> None:
    """Match one pair to the optimum in float64, from the prices in `work`."""
    began = read_cycles()
    n_channels = rows.raw.shape[2]
    n_tokens = max(rows.token_counts[r], columns.token_counts[c])
    width = -(-n_tokens // LANES) * LANES
    packed_i = np.empty(width * n_channels)
    packed_j = np.empty(width * n_channels)
    affinity = np.empty((width, width))
    pack(rows.raw[r, :n_tokens], rows.means[r], rows.scales[r], packed_i)
    pack(columns.raw[c, :n_tokens], columns.means[c], columns.scales[c], packed_j)
    multiply_packed(packed_i, packed_j, n_channels, n_tokens, affinity.ravel())
    multiplied = read_cycles()
    prices = np.empty(n_tokens)
    for j in range(n_tokens):
        prices[j] = work.prices[j]
    best, dual = assign_exactly(affinity, n_tokens, prices)
    for s in range(n_tokens):
        work.permutation[s] = best[s]
    work.cycles[0] += multiplied - began
    work.cycles[1] += read_cycles() - multiplied
    scale = rows.scales[r] * columns.scales[c]
    norms = np.sqrt(rows.squared_norms[r]) * np.sqrt(columns.squared_norms[c])
    bound = _common_value(rows, r, columns, c) + scale * dual + float64_rounding(n_tokens, n_channels) * norms
    _conclude(rows, r, columns, c, np.inf, bound, work, matched, upper_bound, identity)

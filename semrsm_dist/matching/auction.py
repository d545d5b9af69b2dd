"""The matcher `auction`: certified to a tolerance, at about the price of the affinity product."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from semrsm_dist.errors import ConfigError
from semrsm_dist.matching.augment import assign_exactly
from semrsm_dist.matching.bidding import run_auction
from semrsm_dist.matching.bounds import float64_rounding, inner_product, matched_value
from semrsm_dist.matching.jit import compiled
from semrsm_dist.matching.matcher import Matcher, PairMatch
from semrsm_dist.matching.panel import PackedPanel, Panel, empty_aligned, prepare_packed_panel, read_only
from semrsm_dist.matching.product import multiply_packed, pack, padded, rounding_of_product
from semrsm_dist.matching.result import TileResult

EXACT_START = 2e-4
"""Gap, relative to the centred norms, at which the exact finish takes over: less costs more bids."""


class _Images(NamedTuple):
    """The arrays of a `PackedPanel`, in a form that compiled code takes."""

    raw: NDArray[Any]
    squared_norms: NDArray[np.float64]
    means: NDArray[np.float64]
    token_norms: NDArray[np.float64]
    packed: NDArray[np.float32]
    scales: NDArray[np.float64]
    centred_norms: NDArray[np.float64]
    rounding_norms: NDArray[np.float64]


class _Workspace(NamedTuple):
    """Memory for one pair, used again for the next."""

    affinity: NDArray[np.float32]
    prices: NDArray[np.float32]
    columns: NDArray[np.int32]
    owners: NDArray[np.int32]
    waiting: NDArray[np.int32]
    lowered: NDArray[np.float32]
    permutation: NDArray[np.intp]


class Auction(Matcher):
    """Match by an auction whose prices prove how far from the optimum the result can be.

    Parameters
    ----------
    tolerance : float
        The gap between bound and value is at most ``tolerance * ||z_i|| * ||z_j||``, that is, `tolerance`
        on the cosine scale. 0 asks for the optimum: the gap is then float64 rounding.
    """

    name: ClassVar[str] = "auction"
    certified: ClassVar[bool] = True

    def __init__(self, tolerance: float = 1e-3) -> None:
        if isinstance(tolerance, bool) or not isinstance(tolerance, int | float | np.number):
            raise ConfigError(f"tolerance of matcher 'auction' must be a number, found {tolerance!r}")
        if not 0.0 <= tolerance < math.inf:
            raise ConfigError(
                f"tolerance of matcher 'auction' must be 0 or a positive number, found {tolerance!r}; "
                "it is on the cosine scale: 1e-3 is usual, 0 asks for the optimum"
            )
        self.tolerance = float(tolerance)

    @property
    def parameters(self) -> dict[str, int | float]:
        """What alters the numbers, by name."""
        return {"tolerance": self.tolerance}

    def prepare(self, z: ArrayLike) -> Panel:
        """Return representations (T, S, C) centred, scaled and packed; see `Matcher.prepare`."""
        return prepare_packed_panel(z)

    def panel_bytes(self, n_images: int, n_tokens: int, n_channels: int) -> int:
        """Return the memory of a prepared panel of float32 representations, in bytes."""
        packed = n_images * (4 * padded(n_tokens) * n_channels + 24)
        return super().panel_bytes(n_images, n_tokens, n_channels) + packed

    def workspace_bytes(self, n_tokens: int, n_channels: int) -> int:
        """Return the memory that matching one pair takes beside the panels, in bytes.

        The affinity in float32 and, for a pair that needs the exact finish, in float64.
        """
        width = padded(n_tokens)
        return 12 * width**2 + 16 * width * n_channels + 64 * width

    def _match_pair(self, rows: Panel, r: int, columns: Panel, c: int) -> PairMatch:
        work = _workspace(rows.n_tokens)
        rounding = rounding_of_product(rows.n_channels)
        value, upper_bound, _ = _solve_pair(
            _images(rows), r, _images(columns), c, self.tolerance, rounding, work
        )
        return value, upper_bound, work.permutation

    def _solve_row(
        self, rows: Panel, r: int, columns: Panel, first: int, tile: TileResult
    ) -> tuple[float, float]:
        rounding = rounding_of_product(rows.n_channels)
        work = _workspace(rows.n_tokens)
        _solve_pairs(
            _images(rows), r, _images(columns), first, self.tolerance, rounding, work,
            tile.matched, tile.upper_bound, tile.identity,
        )  # fmt: skip
        return 0.0, 0.0


def _images(panel: Panel) -> _Images:
    packed = cast(PackedPanel, panel)
    return _Images(*(read_only(getattr(packed, field)) for field in _Images._fields))


def _workspace(n_tokens: int) -> _Workspace:
    width = padded(n_tokens)
    return _Workspace(
        empty_aligned((width * width,), np.float32),
        empty_aligned((width,), np.float32),
        np.empty(width, np.int32),
        np.empty(width, np.int32),
        np.empty(width, np.int32),
        empty_aligned((width,), np.float32),
        np.empty(n_tokens, np.intp),
    )


@compiled
def _solve_pairs(
    rows: _Images,
    r: int,
    columns: _Images,
    first: int,
    tolerance: float,
    rounding: float,
    work: _Workspace,
    matched: NDArray[np.float64],
    upper_bound: NDArray[np.float64],
    identity: NDArray[np.float64],
) -> None:
    """Match image r of `rows` with the images of `columns` from `first` on."""
    for c in range(first, columns.raw.shape[0]):
        result = _solve_pair(rows, r, columns, c, tolerance, rounding, work)
        matched[r, c], upper_bound[r, c], identity[r, c] = result


@compiled
def _solve_pair(
    rows: _Images, r: int, columns: _Images, c: int, tolerance: float, rounding: float, work: _Workspace
) -> tuple[float, float, float]:
    """Match one pair; return value, upper bound and identity value, and write the permutation to `work`.

    Affinities are those of the centred, scaled representations: a value is
    ``common + scale * (sum of its affinities)``. The product's float32 errors move such a sum by at most
    `slack`. The value returned is computed from the representations as given.
    """
    z_i, z_j = rows.raw[r], columns.raw[c]
    n_tokens, n_channels = z_i.shape
    for s in range(n_tokens):
        work.permutation[s] = s
    identity = inner_product(z_i, z_j)
    norms = np.sqrt(rows.squared_norms[r]) * np.sqrt(columns.squared_norms[c])
    allowed = tolerance * norms
    margin = float64_rounding(n_tokens, n_channels) * norms
    if n_tokens == 1 or norms == 0.0:
        return identity, identity, identity
    common = n_tokens * inner_product(rows.means[r], columns.means[c])
    # Images almost without variation, or almost equal: norms alone may decide (see bounds.norm_bound).
    bound = common + inner_product(rows.token_norms[r], columns.token_norms[c]) + margin
    if bound - identity <= allowed:
        return identity, max(bound, identity), identity
    scale = rows.scales[r] * columns.scales[c]
    size = rows.centred_norms[r] * columns.centred_norms[c]
    slack = (
        rounding * size
        + rows.rounding_norms[r] * (columns.centred_norms[c] + columns.rounding_norms[c])
        + columns.rounding_norms[c] * rows.centred_norms[r]
    )
    # Both the value found and the bound may be off by the slack, and margin by float64 rounding.
    target = (allowed - 2.0 * margin) / scale - 2.0 * slack
    certifiable = target > 2.0 * slack
    if not certifiable:
        target = EXACT_START * size
    multiply_packed(rows.packed[r], columns.packed[c], n_channels, n_tokens, work.affinity)
    finished, dual = run_auction(
        work.affinity,
        n_tokens,
        size,
        target,
        work.prices,
        work.columns,
        work.owners,
        work.waiting,
        work.lowered,
    )
    if finished and certifiable:
        for s in range(n_tokens):
            work.permutation[s] = work.columns[s]
        bound = min(bound, common + scale * (dual + slack) + margin)
    else:
        exact = _finish_exactly(
            z_i, rows.means[r], z_j, columns.means[c], rows.scales[r], columns.scales[c], work
        )
        bound = min(bound, common + scale * exact + margin)
    value = matched_value(z_i, z_j, work.permutation)
    if value < identity:  # never worse than no matching at all
        value = identity
        for s in range(n_tokens):
            work.permutation[s] = s
    return value, max(bound, value), identity


@compiled
def _finish_exactly(
    z_i: NDArray[np.floating[Any]],
    mean_i: NDArray[np.float64],
    z_j: NDArray[np.floating[Any]],
    mean_j: NDArray[np.float64],
    scale_i: float,
    scale_j: float,
    work: _Workspace,
) -> float:
    """Write the optimal permutation to `work`, starting at its prices; return its bound in scaled units."""
    n_tokens, n_channels = z_i.shape
    width = work.prices.size
    packed_i = np.empty(width * n_channels)
    packed_j = np.empty(width * n_channels)
    affinity = np.empty(width * width)
    pack(z_i, mean_i, scale_i, packed_i)
    pack(z_j, mean_j, scale_j, packed_j)
    multiply_packed(packed_i, packed_j, n_channels, n_tokens, affinity)
    prices = work.prices[:n_tokens].astype(np.float64)
    columns, bound = assign_exactly(affinity.reshape(width, width)[:n_tokens], prices)
    work.permutation[:] = columns
    return bound

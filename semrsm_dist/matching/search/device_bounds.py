r"""What the matches of a GPU prove of the similarities that the CPU would find.

A search has the hits of the CPU's full matrix, whose entry w for a pair lies within the tolerance of the optimum. A GPU
finds a value v and an upper bound u for the optimum, so that::

    v - tolerance  <=  optimum - tolerance  <=  w  <=  optimum  <=  u

Hence the k-th largest ``v - tolerance`` of an image, its *floor*, is not above the k-th largest w, and a pair whose u
is below the floors of both images is no hit of either. All others are searched by the CPU, with u as their first bound.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.bounds import float64_rounding
from semrsm_dist.matching.matcher import FLOAT32_TOLERANCE
from semrsm_dist.matching.matchers.auction import Auction
from semrsm_dist.matching.panel import PackedPanel
from semrsm_dist.matching.result import TileResult
from semrsm_dist.matching.search.progressive import SINGLE_ROUNDING

FINEST = 1e-4
"""Tolerance of a GPU in a search of a finer one: what it cannot tell apart, the CPU does."""

_ROUNDING = 1e-12  # of cosines, in float64, beside that of inner products


class Proven(NamedTuple):
    """What is proven of the similarities of R images with K: arrays (R, K), -inf where there is no similarity."""

    least: NDArray[np.float64]
    most: NDArray[np.float64]


def divide_work(matcher: Auction) -> tuple[Auction, Auction | None]:
    """Return the matcher that decides a search, on the CPU, and the one that bounds all pairs on GPUs, if any."""
    if not matcher.gpus:
        return matcher, None
    on_device = matcher.model_copy(update={"tolerance": max(matcher.tolerance, FINEST)})
    return Auction(tolerance=matcher.tolerance), on_device


def prove(
    tile: TileResult, rows: PackedPanel, columns: PackedPanel, tolerance: float, *, single: bool = False
) -> Proven:
    """Return what a GPU's matches of two panels, of any tolerance, prove of the CPU's of this tolerance.

    If `single`, similarities are those of inner products rounded to float32.
    """
    norms = np.outer(np.sqrt(rows.squared_norms), np.sqrt(columns.squared_norms))
    rounding = _ROUNDING + 2 * float64_rounding(rows.n_tokens, rows.n_channels)
    # The finest tolerance is as fine as float32; see `Auction.tolerance`.
    lost = max(tolerance, FLOAT32_TOLERANCE) + rounding + (SINGLE_ROUNDING if single else 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):  # an image of norm zero has no similarity
        most = np.minimum(tile.upper_bound / norms, 1.0) + rounding
        least = tile.matched / norms - lost
    most[norms == 0] = least[norms == 0] = -np.inf
    return Proven(least, most)


def kth_largest(values: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Return the k-th largest of each row (R, K); -inf where there are fewer."""
    if values.shape[1] < k:
        return np.full(len(values), -np.inf)
    largest: NDArray[np.float64] = np.partition(values, values.shape[1] - k, axis=1)[:, -k]
    return largest

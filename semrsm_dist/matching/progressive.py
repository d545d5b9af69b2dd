"""Deciding pair after pair whether it can be among the k most similar, with no more work than that takes."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.auction_pair import Images, Workspace, match_pair, norm_when_filled
from semrsm_dist.matching.bidding import run_auction
from semrsm_dist.matching.bounds import float64_rounding, identity_and_matched_value, inner_product
from semrsm_dist.matching.jit import compiled
from semrsm_dist.matching.product import multiply_packed, padded
from semrsm_dist.matching.pruning_bounds import SMALLEST_NORMS

NOBODY = 2**62
"""Index of a hit that is not there: behind all others."""

WITHOUT_PRODUCT, SKETCHED, WITH_PRODUCT, SOLVED = range(4)
"""Places in the counts: what it took to decide a pair."""

# A sketch is worth one coarse phase of its auction: this gap, relative to the norms, rarely takes a second one.
_SKETCH_GAP = 0.03
_COSINE_ROUNDING = 2e-15  # more than rounding changes a cosine similarity and what it is compared with


class Side(NamedTuple):
    """The images of one side, in a form that compiled code takes.

    Attributes
    ----------
    images
        The panel.
    mantissas, halves : (T,)
        The squared norms, as `semrsm_dist.kernels.even_exponents` writes them.
    sketches : (T, padded(S) * channels)
        As `Sketches.packed`.
    """

    images: Images
    mantissas: NDArray[np.float64]
    halves: NDArray[np.intc]
    sketches: NDArray[np.float32]


class Settings(NamedTuple):
    """What decides about a pair besides its images; channels and rounding are those of the product and of sketches."""

    tolerance: float
    rounding: float
    sketch_channels: int
    sketch_rounding: float


@compiled
def offer(
    similarities: NDArray[np.float64], indices: NDArray[np.int64], similarity: float, index: int
) -> None:
    """Insert a hit into the k best, the most similar first and equal ones by index, if it is one of them."""
    place = indices.size
    while place > 0 and (
        similarities[place - 1] < similarity
        or (similarities[place - 1] == similarity and indices[place - 1] > index)
    ):
        place -= 1
    for later in range(indices.size - 1, place, -1):
        similarities[later], indices[later] = similarities[later - 1], indices[later - 1]
    if place < indices.size:
        similarities[place], indices[place] = similarity, index


@compiled
def merge(
    best: NDArray[np.float64],
    indices: NDArray[np.int64],
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    similarities: NDArray[np.float64],
    both: bool,
) -> None:
    """Offer solved pairs (n,) to the k best (N, k) of their rows and, if `both`, of their columns."""
    for n in range(rows.size):
        offer(best[rows[n]], indices[rows[n]], similarities[n], columns[n])
        if both:
            offer(best[columns[n]], indices[columns[n]], similarities[n], rows[n])


@compiled
def cosine_of_pair(matched: float, rows: Side, r: int, columns: Side, c: int) -> float:
    """Return what `semrsm_dist.kernels.cosine` makes of a matched inner product, to the last bit."""
    value = matched / math.sqrt(rows.mantissas[r] * columns.mantissas[c])
    value = math.ldexp(value, -(rows.halves[r] + columns.halves[c]))
    return min(max(value, -1.0), 1.0)


@compiled
def search_rows(
    rows: Side,
    first: int,
    columns: Side,
    order: NDArray[np.intp],
    bounds: NDArray[np.float64],
    floors: NDArray[np.float64],
    settings: Settings,
    work: Workspace,
    best: NDArray[np.float64],
    best_indices: NDArray[np.int64],
    solved: NDArray[np.float64],
    counts: NDArray[np.int64],
    r: int,
    w: int,
) -> tuple[int, int]:
    """Decide about pairs of consecutive rows, from the w-th candidate of row r on.

    Returns
    -------
    r, w : int
        The pair that needs the exact finish, or (R, 0) when all are decided.

    Parameters
    ----------
    first : int
        The image of row 0.
    order, bounds : (R, W)
        Candidates of each row by falling upper bound of their similarity; -inf ends them.
    floors : (K,)
        A pair whose similarity is below this is none of the k best of the image in the column; inf where that
        does not matter.
    best, best_indices : (R, k)
        The best hits of each row so far; what is solved here is added.
    solved : (R, W)
        Receives the similarity of each candidate that is solved.
    counts : (4,)
        Raised by what each pair took.
    """
    k = best.shape[1]
    while r < order.shape[0]:
        while w < order.shape[1] and bounds[r, w] > -np.inf:
            c = order[r, w]
            least = min(best[r, k - 1], floors[c])
            if bounds[r, w] < least:
                counts[WITHOUT_PRODUCT] += 1
            else:
                outcome, matched = _decide(rows, first + r, columns, c, least, settings, work)
                if outcome < 0:
                    return r, w
                counts[outcome] += 1
                if outcome == SOLVED:
                    solved[r, w] = cosine_of_pair(matched, rows, first + r, columns, c)
                    offer(best[r], best_indices[r], solved[r, w], c)
            w += 1
        r, w = r + 1, 0
    return r, w


@compiled
def _decide(
    rows: Side, r: int, columns: Side, c: int, least: float, settings: Settings, work: Workspace
) -> tuple[int, float]:
    """Return what it took to decide about a pair, -1 if it needs the exact finish, and its value if it is solved.

    The value is the one that the matcher `auction` returns, which depends on nothing but the two images.
    """
    left, right = rows.images, columns.images
    norms = np.sqrt(left.squared_norms[r]) * np.sqrt(right.squared_norms[c])
    floor = -np.inf
    if least > -np.inf and norms >= SMALLEST_NORMS:
        n_tokens = max(left.token_counts[r], right.token_counts[c])
        rounding = _COSINE_ROUNDING + float64_rounding(n_tokens, left.raw.shape[2])  # of the value itself
        floor = (least - rounding) * norms
        if settings.sketch_channels > 0 and _sketch_bound(rows, r, columns, c, floor, settings, work) < floor:
            return SKETCHED, 0.0
    gap, bound = match_pair(left, r, right, c, settings.tolerance, settings.rounding, floor, work)
    if gap == -np.inf:
        return WITH_PRODUCT, 0.0
    if not min(gap, bound) < np.inf:
        return -1, 0.0
    count = max(left.token_counts[r], right.token_counts[c])
    trace, value = identity_and_matched_value(
        left.raw[r, :count], right.raw[c, :count], work.permutation[:count]
    )
    if left.token_counts[r] == right.token_counts[c]:
        value = max(trace, value)  # as the matcher: never worse than no matching at all
    return SOLVED, value


@compiled
def _sketch_bound(
    rows: Side, r: int, columns: Side, c: int, floor: float, settings: Settings, work: Workspace
) -> float:
    """Return an upper bound on the matched inner product of a pair from their sketches; see `pruning_bounds`."""
    left, right = rows.images, columns.images
    n_channels = settings.sketch_channels
    count_i, count_j = left.token_counts[r], right.token_counts[c]
    n_tokens = max(count_i, count_j)
    width = padded(n_tokens)
    norms = np.sqrt(left.squared_norms[r]) * np.sqrt(right.squared_norms[c])
    common = min(count_i, count_j) * inner_product(left.means[r], right.means[c])
    fixed = common + float64_rounding(n_tokens, left.raw.shape[2]) * norms
    scale = left.scales[r] * right.scales[c]
    size = norm_when_filled(left.centred_norms[r], left.filling_norms[r], n_tokens - count_i)
    size *= norm_when_filled(right.centred_norms[c], right.filling_norms[c], n_tokens - count_j)
    if n_tokens == 1 or not size > 0.0:
        return np.inf
    slack = settings.sketch_rounding * size
    affinity, part = work.affinity[: width * width], width * n_channels
    multiply_packed(rows.sketches[r, :part], columns.sketches[c, :part], n_channels, n_tokens, affinity)
    _, dual = run_auction(
        affinity,
        n_tokens,
        size,
        _SKETCH_GAP * size,
        work.market,
        (floor - fixed) / scale - slack,
    )
    return float(fixed + scale * (dual + slack))

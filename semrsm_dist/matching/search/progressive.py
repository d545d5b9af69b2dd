"""Deciding for each pair, with as little work as possible, whether it can be among the k most similar."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.assignment.auction_pair import (
    Images,
    Pair,
    Workspace,
    affinity_floor,
    bid_for_pair,
    bound_of_dual,
    frame_pair,
    is_flat,
    make_workspace,
    multiply_pair,
    settle_flat,
)
from semrsm_dist.matching.assignment.bidding import run_auction
from semrsm_dist.matching.bounds import identity_and_matched_value, tighten_prices
from semrsm_dist.matching.compiled.jit import compiled, inlined
from semrsm_dist.matching.compiled.lanes import borrowed
from semrsm_dist.matching.compiled.product import multiply_packed, padded
from semrsm_dist.matching.search.longest_first import (
    LongestFirst,
    make_longest_first,
    multiply_while_open,
    sort_tokens,
)
from semrsm_dist.matching.search.pruning_bounds import SMALLEST_NORMS

NOBODY = 2**62
"""Index of a missing hit: sorts after all others."""

WITHOUT_PRODUCT, SKETCHED, WITH_PRODUCT, SOLVED = range(4)
"""Indices in the counts: how a pair was decided."""

# A sketch is worth one coarse phase of its auction: this gap, relative to the norms, rarely takes a second one.
_SKETCH_GAP = 0.03
_MOST_LEARNED = (
    16  # later auctions count like the 16th: what is usual for the candidates that are left may differ
)
# Bytes of an image whose product begins with the longest tokens: every band of rows reads it again, which from beyond
# the second cache takes longer than the rows that it spares.
_LARGEST_COLUMNS = 2**18
SINGLE_ROUNDING = 2.0**-23
"""More than rounding inner products to float32 changes a cosine similarity."""

_COSINE_ROUNDING = 2e-15  # more than rounding changes a cosine similarity and what it is compared with


class SearchImages(NamedTuple):
    """The images of one side, in a form that compiled code takes.

    `prices` (T, padded(S)) are what a token usually costs in auctions against other images, divided by the norm of the
    other: they prove useful bounds before a pair has prices of its own. Threads share them without a lock: whatever
    they hold, the bounds hold.
    """

    images: Images
    mantissas: NDArray[np.float64]  # of the squared norms, see `semrsm_dist.matching.kernels.even_exponents`
    halves: NDArray[np.intc]
    sketches: NDArray[np.float32]  # as `Sketches.packed`
    prices: NDArray[np.float32]
    n_learned: NDArray[np.int64]  # auctions that the prices of an image are the mean of


class Memory(NamedTuple):
    """Memory for one pair, used again for the next."""

    work: Workspace
    prices: NDArray[np.float32]
    sorted_row: LongestFirst


class Settings(NamedTuple):
    """What decides a pair besides its images; channels and rounding are those of the product and of sketches."""

    tolerance: float
    rounding: float
    sketch_channels: int
    sketch_rounding: float
    single: bool  # whether similarities are those of inner products rounded to float32


class Candidates(NamedTuple):
    """What a search of consecutive rows starts from.

    A pair whose similarity is below the floor of its column is none of the k best of the image there; the floor is inf
    where that does not matter.
    """

    first: int  # the image of row 0
    order: NDArray[np.intp]  # (R, W) candidates of each row by descending upper bound of their similarity
    bounds: NDArray[np.float64]  # these bounds, terminated by -inf
    floors: NDArray[np.float64]  # (K,)


class Hits(NamedTuple):
    """What a search of consecutive rows has found."""

    best: NDArray[np.float64]  # (R, k) similarities of the best hits of each row so far
    indices: NDArray[np.int64]
    solved: NDArray[np.float64]  # (R, W) the similarity of each candidate that was solved
    # (3, R, W) its value, that of the identity and its upper bound; or (3, 0, 0)
    numbers: NDArray[np.float64]
    counts: NDArray[np.int64]  # pairs by how they were decided


def make_memory(n_tokens: int, n_channels: int) -> Memory:
    """Return memory for pairs of at most `n_tokens` tokens."""
    prices = np.empty(padded(n_tokens), np.float32)
    return Memory(make_workspace(n_tokens), prices, make_longest_first(n_tokens, n_channels))


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
def cosine_of_pair(matched: float, rows: SearchImages, r: int, columns: SearchImages, c: int) -> float:
    """Return what `semrsm_dist.matching.kernels.cosine` makes of a matched inner product, to the last bit."""
    value = matched / math.sqrt(rows.mantissas[r] * columns.mantissas[c])
    value = math.ldexp(value, -(rows.halves[r] + columns.halves[c]))
    return min(max(value, -1.0), 1.0)


@compiled
def record(
    rows: SearchImages,
    r: int,
    columns: SearchImages,
    c: int,
    numbers: tuple[float, float, float],
    settings: Settings,
    place: tuple[int, int],
    hits: Hits,
) -> None:
    """Write the numbers of a solved pair, and its similarity, to its place in `hits`."""
    matched = np.float64(np.float32(numbers[0])) if settings.single else numbers[0]
    hits.solved[place] = cosine_of_pair(matched, rows, r, columns, c)
    if hits.numbers.shape[1] > 0:
        for n in range(3):
            hits.numbers[n, place[0], place[1]] = numbers[n]


@compiled
def search_rows(
    sides: tuple[SearchImages, SearchImages],
    candidates: Candidates,
    settings: Settings,
    memory: Memory,
    hits: Hits,
    place: tuple[int, int],
) -> tuple[int, int]:
    """Decide pairs of consecutive rows from `place` on, candidate w of row r.

    Returns the place of a pair that needs the exact finish, or (R, 0) when all are decided.
    """
    rows, columns, memory = borrowed(sides[0]), borrowed(sides[1]), borrowed(memory)
    candidates, hits = borrowed(candidates), borrowed(hits)
    order, bounds = candidates.order, candidates.bounds
    k = hits.best.shape[1]
    r, w = place
    while r < order.shape[0]:
        image = candidates.first + r
        while w < order.shape[1] and bounds[r, w] > -np.inf:
            c = order[r, w]
            least = min(hits.best[r, k - 1], candidates.floors[c])
            if settings.single:
                least -= SINGLE_ROUNDING
            if bounds[r, w] < least:
                hits.counts[WITHOUT_PRODUCT] += 1
            else:
                outcome, numbers = _decide(rows, image, columns, c, least, settings, memory)
                if outcome < 0:
                    return r, w
                hits.counts[outcome] += 1
                if outcome == SOLVED:
                    record(rows, image, columns, c, numbers, settings, (r, w), hits)
                    offer(hits.best[r], hits.indices[r], hits.solved[r, w], c)
            w += 1
        r, w = r + 1, 0
    return r, w


@inlined
def _decide(
    rows: SearchImages,
    r: int,
    columns: SearchImages,
    c: int,
    least: float,
    settings: Settings,
    memory: Memory,
) -> tuple[int, tuple[float, float, float]]:
    """Return how a pair was decided, -1 if it needs the exact finish, and its numbers if it is solved.

    They are those that the matcher `auction` returns, which depend on nothing but the two images.
    """
    left, right, work = rows.images, columns.images, memory.work
    pair = frame_pair(left, r, right, c, settings.tolerance, settings.rounding)
    norms = np.sqrt(left.squared_norms[r]) * np.sqrt(right.squared_norms[c])
    floor = -np.inf
    if least > -np.inf and norms >= SMALLEST_NORMS:
        floor = (least - _COSINE_ROUNDING) * norms - pair.margin  # rounding of the value itself
        if settings.sketch_channels > 0:
            bound = sketch_bound(rows, r, columns, c, pair, floor, settings, memory)
            if bound < floor:
                return SKETCHED, (0.0, 0.0, 0.0)
    if is_flat(pair):
        gap, bound = settle_flat(pair, work)
    else:
        needed = affinity_floor(pair, floor, pair.slack)
        if floor > -np.inf and 4 * padded(pair.n_tokens) * left.means.shape[1] <= _LARGEST_COLUMNS:
            if _multiply_while_open(rows, r, columns, c, pair, needed, memory):
                return WITH_PRODUCT, (0.0, 0.0, 0.0)
        else:
            multiply_pair(left, r, right, c, pair, work)
            if floor > -np.inf and usual_bound(columns, c, pair, memory) < needed:
                return WITH_PRODUCT, (0.0, 0.0, 0.0)
        gap, bound = bid_for_pair(left, r, right, c, pair, floor, work)
        if gap == -np.inf:
            _learn_prices(rows, r, columns, c, pair, memory)
            return WITH_PRODUCT, (0.0, 0.0, 0.0)
    if not min(gap, bound) < np.inf:
        return -1, (0.0, 0.0, 0.0)
    return SOLVED, _numbers_of_pair(left, r, right, c, (gap, bound), work)


@inlined
def _numbers_of_pair(
    rows: Images, r: int, columns: Images, c: int, proof: tuple[float, float], work: Workspace
) -> tuple[float, float, float]:
    """Return what `conclude` writes: the value of the permutation in `work`, that of the identity, the upper bound."""
    count_i, count_j = rows.token_counts[r], columns.token_counts[c]
    count = max(count_i, count_j)
    trace, value = identity_and_matched_value(
        rows.raw[r, :count], columns.raw[c, :count], rows.double, work.permutation[:count]
    )
    bound = min(proof[1], value + proof[0])
    if count_i == count_j:
        value = max(trace, value)  # never worse than no matching
    else:
        trace = np.nan
    return value, trace, max(bound, value)


@inlined
def _multiply_while_open(
    rows: SearchImages, r: int, columns: SearchImages, c: int, pair: Pair, needed: float, memory: Memory
) -> bool:
    """Return whether usual prices prove all sums of affinities below `needed`; if not, these are in `memory`."""
    left, right, work = rows.images, columns.images, memory.work
    part = padded(pair.n_tokens) * left.means.shape[1]
    sort_tokens(left.packed[r], left.lengths[r], r, pair.n_tokens, memory.sorted_row)
    _set_usual_prices(columns, c, pair, memory)
    return multiply_while_open(
        memory.sorted_row,
        right.packed[c, :part],
        right.lengths[c],
        pair.n_tokens,
        memory.prices,
        needed,
        work.market.lowered,
        work.affinity,
    )


@inlined
def _set_usual_prices(columns: SearchImages, c: int, pair: Pair, memory: Memory) -> None:
    for s in range(padded(pair.n_tokens)):
        inside = s < pair.n_tokens
        memory.prices[s] = np.float32(columns.prices[c, s] * pair.size_i) if inside else np.inf


@inlined
def usual_bound(columns: SearchImages, c: int, pair: Pair, memory: Memory) -> float:
    """Return an upper bound on all sums of the affinities in `memory`, from the usual prices of the column's tokens."""
    _set_usual_prices(columns, c, pair, memory)
    market = memory.work.market
    return tighten_prices(memory.work.affinity, pair.n_tokens, memory.prices, market.lowered, market.bests)


@inlined
def _learn_prices(
    rows: SearchImages, r: int, columns: SearchImages, c: int, pair: Pair, memory: Memory
) -> None:
    """Let the prices that proved the last bound of an auction count in the usual prices of both images' tokens."""
    if pair.size_i > 0.0 and pair.size_j > 0.0:
        _average(rows, r, memory.work.market.bests, pair.n_tokens, 1.0 / pair.size_j)
        _average(columns, c, memory.work.market.lowered, pair.n_tokens, 1.0 / pair.size_i)


@inlined
def _average(
    side: SearchImages, image: int, prices: NDArray[np.float32], n_tokens: int, factor: float
) -> None:
    side.n_learned[image] = min(side.n_learned[image] + 1, _MOST_LEARNED)
    weight = 1.0 / side.n_learned[image]
    for s in range(n_tokens):
        side.prices[image, s] += np.float32(weight * (prices[s] * factor - side.prices[image, s]))


@inlined
def sketch_bound(
    rows: SearchImages,
    r: int,
    columns: SearchImages,
    c: int,
    pair: Pair,
    floor: float,
    settings: Settings,
    memory: Memory,
) -> float:
    """Return an upper bound on the matched inner product of a pair from their sketches; see `pruning_bounds`."""
    size = pair.size_i * pair.size_j
    if pair.n_tokens == 1 or not size > 0.0:
        return np.inf
    n_channels, n, work = settings.sketch_channels, pair.n_tokens, memory.work
    width = padded(n)
    affinity, part = work.affinity[: width * width], width * n_channels
    multiply_packed(rows.sketches[r, :part], columns.sketches[c, :part], n_channels, n, n, affinity)
    slack = settings.sketch_rounding * size
    least = affinity_floor(pair, floor, slack)
    dual = usual_bound(columns, c, pair, memory)
    if not dual < least:
        _, dual = run_auction(affinity, n, size, _SKETCH_GAP * size, work.market, least)
        if dual < np.inf:
            _learn_prices(rows, r, columns, c, pair, memory)
    return bound_of_dual(pair, dual, slack)

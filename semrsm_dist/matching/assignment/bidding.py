"""The auction: nearly optimal assignments with prices that prove how near.

Bertsekas' forward auction with eps-scaling, two bids at a time. An unassigned row takes the
column j with the largest ``A_ij - p_j``, raises its price by the lead over the second best plus eps and
evicts the row that held it. When all rows are assigned, the assignment is within S eps of the optimum.
Usually it is several times better, which tightened prices prove (`tighten_prices`): so eps is chosen for the gap
expected rather than for S eps. The next phase, with a smaller eps, starts from lowered prices, and rows
that hold a nearly best column at these prices keep it.

Bids look at affinities in 16 bits, of which a register holds twice as many and the cache twice the matrix. What
makes that accurate is refinement: rounded is not A but what is left of it at prices that earlier phases found,
``A_ij - p_j - max_k (A_ik - p_k)``, in units that suit the eps of the phases to come. Columns far from
the best are clipped; few bids come near them, and then the residuals are rounded anew. Whatever rounding and
clipping do to the bids, the bound and the value are computed from the affinities in float32.

D. P. Bertsekas, Auction algorithms for network flow problems, Computational Optimization and
Applications 1 (1992), 7-66.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.bounds import rounded_up, tighten_prices
from semrsm_dist.matching.compiled.jit import compiled, inlined
from semrsm_dist.matching.compiled.lane_bids import (
    CLIPPED,
    LARGEST,
    SMALLEST,
    best_two,
    raise_maxima,
    round_residuals,
    row_max,
)
from semrsm_dist.matching.compiled.lanes import LANES
from semrsm_dist.matching.compiled.product import padded

FREE = -1

BIDS_PER_TOKEN = 400
"""An auction that needs more bids than this for each token is in a price war; it stops unfinished."""

# Chosen on photographs through networks with random weights (S = 49 to 3136) at tolerances from 1e-2 to 0, where
# the valley is flat.
_FIRST_GAP = 0.1  # S eps of the first phase, relative to the norms
_MOST_SHRINK = 14.0  # of eps, from one phase to the next
_EXPECTED_GAP = 0.3  # proven gap of a finished phase, relative to S eps: rarely more
_RETRY_SHRINK = 2.0  # where it was more
_LEAST_RETRY = (
    1e-3  # of the eps that should have sufficed: float32 prices can be too coarse for the tolerance
)
_FEWEST_UNITS, _MOST_UNITS = 4.0, 64.0  # units of an eps: fewer round too much, more clip too much
_MOST_LEAD = 2**13  # units by which a bid can exceed eps; every smaller rise is a good bid too


class Market(NamedTuple):
    """The state of an auction, for S rows and S columns, and memory that it works with."""

    prices: NDArray[np.float32]  # of the columns; +inf beyond S
    columns: NDArray[np.int32]  # of each row
    owners: NDArray[np.int32]  # of each column, `FREE` for none
    waiting: NDArray[np.int32]  # rows without a column, of which the last bids next
    lowered: NDArray[np.float32]  # the prices of the last bound
    bests: NDArray[np.float32]  # and the largest affinity minus price of each row
    rounded: NDArray[np.int16]  # residuals of the affinities, flat, in units
    rises: NDArray[np.int16]  # of the prices since the residuals were rounded, in units
    lowered_rises: NDArray[np.int16]  # `lowered` and `bests` in units
    rounded_bests: NDArray[np.int16]


@compiled
def make_market(width: int) -> Market:
    """Return memory for auctions among at most `width` rows, a multiple of 16."""
    return Market(
        np.empty(width, np.float32),
        np.empty(width, np.int32),
        np.empty(width, np.int32),
        np.empty(width, np.int32),
        np.empty(width, np.float32),
        np.empty(width, np.float32),
        np.empty(width * width, np.int16),
        np.empty(width, np.int16),
        np.empty(width, np.int16),
        np.empty(width, np.int16),
    )


@compiled
def run_auction(
    affinity: NDArray[np.float32],
    n_tokens: int,
    size: float,
    tolerance: float,
    market: Market,
    floor: float = -np.inf,
) -> tuple[bool, float]:
    """Assign until the bound exceeds the value by at most `tolerance`, in units of the affinity, or is below `floor`.

    `affinity` is flat, in rows of padded(S), with S >= 2; `size`, the product of the norms of both (centred, scaled)
    representations, is the scale of eps. The result is in the market's `prices` and `columns`.

    Returns whether it finished, which it did not if given up at the floor, if the bids ran out or if float32 could not
    prove it (only `prices` are then useful); and an upper bound on the value of every assignment (`tighten_prices`),
    infinite when neither finished nor given up.
    """
    _open(n_tokens, market)
    budget = BIDS_PER_TOKEN * n_tokens
    last = tolerance / _EXPECTED_GAP
    gap = max(_FIRST_GAP * size, last)
    n_steps = np.ceil(np.log(gap / last) / np.log(_MOST_SHRINK))
    shrink = (gap / last) ** (1.0 / n_steps) if n_steps > 0 else _RETRY_SHRINK
    unit = 0.0  # nothing is rounded yet
    kept = 0.5  # rows whose column is at most this share of eps worse than the best need not bid again
    while True:
        epsilon = gap / n_tokens
        if unit == 0.0 or epsilon < _FEWEST_UNITS * unit:
            _take_rises(n_tokens, unit, market)
            unit = max(epsilon / _MOST_UNITS, min(epsilon, last / n_tokens) / _FEWEST_UNITS)
            _round_residuals(affinity, n_tokens, unit, market)
        steps = round(epsilon / unit)
        n_waiting = _release(n_tokens, kept * steps, market)
        if n_waiting == 0 and kept == 0.0:  # optimal up to rounding: float32 cannot prove more
            return False, np.inf
        budget = _run_phase(affinity, n_tokens, n_waiting, steps, unit, budget, market)
        if budget < 0:
            return False, np.inf
        if gap > 1.01 * last:
            _lower_rises(n_tokens, market)
            if floor > -np.inf:
                bound = _bound(affinity, n_tokens, unit, market)
                if bound < floor:
                    return False, bound
            gap = max(gap / shrink, last)
        else:
            _take_rises(n_tokens, unit, market)
            bound = tighten_prices(affinity, n_tokens, market.prices, market.lowered, market.bests)
            if bound < floor:
                return False, bound
            if bound - _value(affinity, n_tokens, market) <= tolerance:
                return True, bound
            gap /= _RETRY_SHRINK
            if gap < _LEAST_RETRY * last:
                return False, np.inf
            unit, kept = 0.0, 0.0


@compiled
def _open(n_tokens: int, market: Market) -> None:
    """Begin with prices of zero and all rows without a column."""
    for j in range(padded(n_tokens)):
        market.prices[j] = 0.0 if j < n_tokens else np.inf
        market.columns[j] = FREE
        market.owners[j] = FREE
        market.rises[j] = 0


@compiled
def _round_residuals(affinity: NDArray[np.float32], n_tokens: int, unit: float, market: Market) -> None:
    """Round what is left of the affinities at the present prices."""
    step = padded(n_tokens)
    factor = np.float32(1.0 / unit)
    for i in range(n_tokens):
        best = row_max(affinity, i * step, market.prices, step // LANES)
        round_residuals(affinity, i * step, market.prices, best, factor, market.rounded, step // LANES)
        market.rounded_bests[i] = 0
    for j in range(step):
        market.rises[j] = 0 if j < n_tokens else LARGEST


@compiled
def _take_rises(n_tokens: int, unit: float, market: Market) -> None:
    """Add to the prices what they rose by since the residuals were rounded."""
    for j in range(n_tokens):
        market.prices[j] += np.float32(market.rises[j] * unit)
        market.rises[j] = 0


@compiled
def _release(n_tokens: int, kept: float, market: Market) -> int:
    """Take their columns from rows that could do better by more than `kept` units; return how many wait."""
    step = padded(n_tokens)
    n_waiting = 0
    for i in range(n_tokens - 1, -1, -1):
        j = market.columns[i]
        if j != FREE:
            worth = np.int64(market.rounded[i * step + j]) - market.rises[j]
            if worth >= market.rounded_bests[i] - kept:
                continue
            market.owners[j] = FREE
        market.waiting[n_waiting] = i
        n_waiting += 1
    return n_waiting


@compiled
def _run_phase(
    affinity: NDArray[np.float32],
    n_tokens: int,
    n_waiting: int,
    steps: int,
    unit: float,
    budget: int,
    market: Market,
) -> int:
    """Bid until every row holds a column; return what is left of `budget`, -1 if that was not enough."""
    while True:
        n_waiting, budget = run_bids(market, n_tokens, n_waiting, steps, budget)
        if n_waiting == 0:
            return budget
        _take_rises(n_tokens, unit, market)
        if budget <= 0:
            return -1
        _round_residuals(affinity, n_tokens, unit, market)  # 16 bits do not reach further


@compiled
def run_bids(market: Market, n_tokens: int, n_waiting: int, steps: int, budget: int) -> tuple[int, int]:
    """Let the rows that wait bid until none does, the budget is spent or 16 bits do not reach further.

    Two rows bid at the same prices, so that the processor looks for both at once: nearly twice as fast up to
    200 columns. If both want one column, the second waits on. Otherwise both bids are good: what the first
    takes is then worth less to the second, whose price rises by less than it might, still by eps or more.

    `steps` is eps, the least rise of a price, in units. Returns what is left of `n_waiting` and `budget`; at least one
    bid is made if the rises are zero.
    """
    rounded, rises, waiting = market.rounded, market.rises, market.waiting
    columns, owners = market.columns, market.owners  # not looked up at every bid: that counts references
    step = padded(n_tokens)
    n_blocks = step // LANES
    while n_waiting > 0 and budget > 0:
        i = waiting[n_waiting - 1]
        best, second, j = best_two(rounded, i * step, rises, n_blocks)
        rise = rises[j] + min(best - second, _MOST_LEAD) + steps
        if best <= CLIPPED or rise >= LARGEST:
            break
        n_waiting -= 1
        budget -= 1
        if n_waiting > 0:
            other = waiting[n_waiting - 1]
            best, second, place = best_two(rounded, other * step, rises, n_blocks)
            other_rise = rises[place] + min(best - second, _MOST_LEAD) + steps
            if place != j and best > CLIPPED and other_rise < LARGEST:
                n_waiting -= 1
                budget -= 1
                rises[place] = other_rise
                n_waiting = _evict(other, place, columns, owners, waiting, n_waiting)
        rises[j] = rise
        n_waiting = _evict(i, j, columns, owners, waiting, n_waiting)
    return n_waiting, budget


@inlined
def _evict(
    row: int,
    column: int,
    columns: NDArray[np.int32],
    owners: NDArray[np.int32],
    waiting: NDArray[np.int32],
    n_waiting: int,
) -> int:
    """Give a column to a row, let the row that held it wait, and return how many do."""
    evicted = owners[column]
    owners[column] = row
    columns[row] = column
    if evicted == FREE:
        return n_waiting
    waiting[n_waiting] = evicted
    return n_waiting + 1


@compiled
def _lower_rises(n_tokens: int, market: Market) -> None:
    """Lower the rises as far as they prove the same: `tighten_prices` in units."""
    step = padded(n_tokens)
    for j in range(step):
        market.lowered_rises[j] = SMALLEST
    for i in range(n_tokens):
        best = row_max(market.rounded, i * step, market.rises, step // LANES)
        market.rounded_bests[i] = best
        raise_maxima(market.rounded, i * step, best, market.lowered_rises, step // LANES)
    for j in range(n_tokens):
        market.rises[j] = market.lowered_rises[j]


@compiled
def _bound(affinity: NDArray[np.float32], n_tokens: int, unit: float, market: Market) -> float:
    """Return the upper bound that the prices with their rises prove, without changing either.

    The bound is ``sum_i max_j (A_ij - p_j) + sum_j p_j``, rounded up as in `tighten_prices`; `lowered` and `bests`
    then hold its two parts. Requesting the bound never changes the assignment.
    """
    step = padded(n_tokens)
    total, size = 0.0, 0.0
    for j in range(step):
        market.lowered[j] = np.inf
        if j < n_tokens:
            market.lowered[j] = market.prices[j] + np.float32(market.rises[j] * unit)
            total += np.float64(market.lowered[j])
            size += abs(np.float64(market.lowered[j]))
    rounded = 0.0
    for i in range(n_tokens):
        market.bests[i] = row_max(affinity, i * step, market.lowered, step // LANES)
        total += np.float64(market.bests[i])
        rounded += abs(np.float64(market.bests[i]))
    return rounded_up(total, rounded, size, n_tokens)


@compiled
def _value(affinity: NDArray[np.float32], n_tokens: int, market: Market) -> float:
    """Return the sum of the affinities of the assignment."""
    step = padded(n_tokens)
    value = 0.0
    for i in range(n_tokens):
        value += np.float64(affinity[i * step + market.columns[i]])
    return value

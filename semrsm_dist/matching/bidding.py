"""The auction: nearly optimal assignments with prices that prove how near.

Bertsekas' forward auction with eps-scaling, two bids at a time. An unassigned row takes the
column j with the largest ``A_ij - p_j``, raises its price by the lead over the second best plus eps and
evicts the row that held it. When all rows are assigned, the assignment is within S eps of the optimum.
Usually it is several times better, which tightened prices prove (`tighten_prices`): so the gap is measured after
each phase, and eps is chosen for the gap expected rather than for S eps. The next phase, with a smaller
eps, starts from the tightened prices, and rows that hold a best column at these prices keep it.

D. P. Bertsekas, Auction algorithms for network flow problems, Computational Optimization and
Applications 1 (1992), 7-66.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.bounds import tighten_prices
from semrsm_dist.matching.jit import compiled
from semrsm_dist.matching.lanes import LANES, best_two

FREE = -1

BIDS_PER_TOKEN = 400
"""An auction that needs more bids than this for each token is in a price war; it stops unfinished."""

# Chosen on photographs through networks with random weights (S = 49 to 784) at tolerances from 1e-2 to 0, where
# the valley is flat: half or double of the first, 8 to 25 for the second and 0.2 to 0.45 for the third
# changed most times by less than 20 %, none for the better everywhere.
_FIRST_GAP = 0.1  # S eps of the first phase, relative to the norms
_MOST_SHRINK = 14.0  # of eps, from one phase to the next
_EXPECTED_GAP = 0.3  # proven gap of a finished phase, relative to S eps: rarely more
_RETRY_SHRINK = 2.0  # where it was more


@compiled
def run_phase(
    affinity: NDArray[np.float32],
    prices: NDArray[np.float32],
    columns: NDArray[np.int32],
    owners: NDArray[np.int32],
    waiting: NDArray[np.int32],
    n_waiting: int,
    epsilon: np.float32,
    budget: int,
) -> int:
    """Let the rows that wait bid until every row holds a column; return what is left of `budget`, -1 if unfinished.

    Two rows bid at the same prices, so that the processor looks for both at once: nearly twice as fast up to
    200 columns. If both want one column, the second waits on. Otherwise both bids are good: what the first
    takes is then worth less to the second, whose price rises by less than it might, still by eps or more.

    Parameters
    ----------
    affinity : (padded(S) ** 2,)
        Flat, rows of padded(S) columns.
    prices : (padded(S),)
        Of the columns; raised.
    columns, owners : (padded(S),)
        The column of each row and the row of each column, `FREE` for none.
    waiting : (padded(S),)
        Its first `n_waiting` entries are the rows without a column; the last of them bids next.
    epsilon : float32
        Least rise of a price.
    budget : int
        Bids allowed.
    """
    step = prices.size
    n_blocks = step // LANES
    while n_waiting > 0:
        if budget <= 0:
            return -1
        i = waiting[n_waiting - 1]
        best, second, j = best_two(affinity, i * step, prices, n_blocks)
        rise = (best - second) + epsilon
        n_waiting -= 1
        budget -= 1
        if n_waiting > 0:
            other = waiting[n_waiting - 1]
            best, second, place = best_two(affinity, other * step, prices, n_blocks)
            if place != j:
                n_waiting -= 1
                budget -= 1
                price = prices[place] + ((best - second) + epsilon)
                if not price > prices[place]:  # float32 holds no price between: eps is too fine
                    return -1
                prices[place] = price
                evicted = owners[place]
                owners[place] = other
                columns[other] = place
                if evicted != FREE:
                    waiting[n_waiting] = evicted
                    n_waiting += 1
        # The same once more: a function would cost more than the bid, as numba counts references to its arrays.
        price = prices[j] + rise
        if not price > prices[j]:
            return -1
        prices[j] = price
        evicted = owners[j]
        owners[j] = i
        columns[i] = j
        if evicted != FREE:
            waiting[n_waiting] = evicted
            n_waiting += 1
    return budget


@compiled
def run_auction(
    affinity: NDArray[np.float32],
    n_tokens: int,
    size: float,
    tolerance: float,
    prices: NDArray[np.float32],
    columns: NDArray[np.int32],
    owners: NDArray[np.int32],
    waiting: NDArray[np.int32],
    lowered: NDArray[np.float32],
    bests: NDArray[np.float32],
    floor: float = -np.inf,
) -> tuple[bool, float]:
    """Assign until the bound exceeds the value by at most `tolerance`, in units of the affinity.

    Parameters
    ----------
    affinity : (padded(S) ** 2,)
        Flat, rows of padded(S) columns.
    n_tokens : int
        S, at least 2.
    size : float
        Product of the norms of both (centred, scaled) representations: the scale of eps.
    tolerance : float
        The gap to reach, positive.
    prices, columns, owners, waiting, lowered, bests : (padded(S),)
        Workspace; `prices` and `columns` are the result.
    floor : float
        Give up as soon as the bound is below this.

    Returns
    -------
    finished : bool
        False when given up, when the bids ran out or when float32 could not prove it; only `prices` are then useful.
    bound : float
        Upper bound on the value of every assignment (`tighten_prices`); infinite when neither finished nor given up.
    """
    for j in range(prices.size):
        prices[j] = 0.0 if j < n_tokens else np.inf
    step = prices.size
    budget = BIDS_PER_TOKEN * n_tokens
    last = tolerance / _EXPECTED_GAP
    gap = max(_FIRST_GAP * size, last)
    n_steps = np.ceil(np.log(gap / last) / np.log(_MOST_SHRINK))
    shrink = (gap / last) ** (1.0 / n_steps) if n_steps > 0 else _RETRY_SHRINK
    for i in range(n_tokens):
        owners[i] = FREE
        waiting[i] = n_tokens - 1 - i
    n_waiting = n_tokens
    while True:
        epsilon = np.float32(gap / n_tokens)
        budget = run_phase(affinity, prices, columns, owners, waiting, n_waiting, epsilon, budget)
        if budget < 0:
            return False, np.inf
        bound = tighten_prices(affinity, n_tokens, prices, lowered, bests)
        if bound < floor:
            return False, bound
        value = 0.0
        for i in range(n_tokens):
            value += np.float64(affinity[i * step + columns[i]])
        if bound - value <= tolerance:
            return True, bound
        n_waiting = _release(affinity, n_tokens, prices, columns, owners, waiting, bests)
        if n_waiting == 0:  # an optimum, but for rounding: float32 can prove no more
            return False, np.inf
        gap = max(gap / shrink, last) if gap > 1.01 * last else gap / _RETRY_SHRINK


@compiled
def _release(
    affinity: NDArray[np.float32],
    n_tokens: int,
    prices: NDArray[np.float32],
    columns: NDArray[np.int32],
    owners: NDArray[np.int32],
    waiting: NDArray[np.int32],
    bests: NDArray[np.float32],
) -> int:
    """Let rows keep the columns that are still a best one; return how many do not and wait again."""
    step = prices.size
    n_waiting = 0
    for i in range(n_tokens - 1, -1, -1):
        j = columns[i]
        if affinity[i * step + j] - prices[j] < bests[i]:
            owners[j] = FREE
            waiting[n_waiting] = i
            n_waiting += 1
    return n_waiting

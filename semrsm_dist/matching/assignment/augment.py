"""The exact finish: shortest augmenting paths in float64, from any prices.

Given prices p, ``slack_ij = u_i + p_j - A_ij`` with ``u_i = max_j (A_ij - p_j)`` is never negative. Rows
whose slack-free column is free take it; each remaining row is assigned along the path of least total slack
to a free column (Dijkstra), after which the prices are optimal for the rows assigned so far. Good prices,
such as an auction's, leave few and short paths.

R. Jonker and A. Volgenant, A shortest augmenting path algorithm for dense and sparse linear
assignment problems, Computing 38 (1987), 325-340.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.compiled.jit import compiled

FREE = -1


@compiled
def assign_exactly(
    affinity: NDArray[np.float64], n: int, prices: NDArray[np.float64]
) -> tuple[NDArray[np.intp], float]:
    """Return the column of each of n rows in the assignment of largest value, and an upper bound.

    Only n rows and m >= n columns of the affinity count. `prices` (m,) are where to start, any finite values for n = m,
    zeros for n < m; optimal prices overwrite them. The bound ``sum_j p_j + sum_i max_j (A_ij - p_j)``, over assigned
    columns, equals the optimum but for float64 rounding.
    """
    m = prices.size
    columns = np.full(n, FREE, np.intp)
    owners = np.full(m, FREE, np.intp)
    for i in range(n):
        best, place = -np.inf, 0
        for j in range(m):
            value = affinity[i, j] - prices[j]
            if value > best:
                best, place = value, j
        if owners[place] == FREE:
            owners[place] = i
            columns[i] = place
    distance = np.empty(m)
    parent = np.empty(m, np.intp)
    scanned = np.empty(m, np.intp)
    remaining = np.empty(m, np.intp)
    for i in range(n):
        if columns[i] == FREE:
            _augment(affinity, i, prices, columns, owners, distance, parent, scanned, remaining)
    bound = 0.0
    for j in range(m):
        if owners[j] != FREE:
            bound += prices[j]
    for i in range(n):
        best = -np.inf
        for j in range(m):
            best = max(best, affinity[i, j] - prices[j])
        bound += best
    return columns, bound


@compiled
def _augment(
    affinity: NDArray[np.float64],
    start: int,
    prices: NDArray[np.float64],
    columns: NDArray[np.intp],
    owners: NDArray[np.intp],
    distance: NDArray[np.float64],
    parent: NDArray[np.intp],
    scanned: NDArray[np.intp],
    remaining: NDArray[np.intp],
) -> None:
    """Assign row `start`, re-assigning others along the shortest path, and update the prices."""
    m = prices.size
    n_remaining = m
    for j in range(m):
        remaining[j] = j
        distance[j] = np.inf
        parent[j] = start
    n_scanned = 0
    i = start
    length = 0.0
    # The slack of the path's own arcs is zero: measuring from the row's assigned column (or, at the start,
    # from its best column) makes the row potential unnecessary.
    offset = -np.inf
    for j in range(m):
        offset = max(offset, affinity[i, j] - prices[j])
    while True:
        nearest, place = np.inf, 0
        for k in range(n_remaining):
            j = remaining[k]
            through = length + (offset - (affinity[i, j] - prices[j]))
            if through < distance[j]:
                distance[j] = through
                parent[j] = i
            if distance[j] < nearest or (distance[j] == nearest and owners[j] == FREE):
                nearest, place = distance[j], k
        length = max(length, nearest)
        sink = remaining[place]
        n_remaining -= 1
        remaining[place] = remaining[n_remaining]
        if owners[sink] == FREE:
            break
        scanned[n_scanned] = sink
        n_scanned += 1
        i = owners[sink]
        offset = affinity[i, sink] - prices[sink]
    for k in range(n_scanned):
        j = scanned[k]
        prices[j] += length - distance[j]
    while True:
        i = parent[sink]
        owners[sink] = i
        columns[i], sink = sink, columns[i]
        if i == start:
            break

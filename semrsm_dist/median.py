"""The exact median of numbers that do not fit in memory.

The numbers come in blocks that can be read again. Each pass counts them into equal bins of the interval that still
holds the median and narrows the interval to one bin; what is left is sorted. Memory is bounded, the result is
that of sorting everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

Blocks = Callable[[], Iterable[NDArray[np.float64]]]

BINS = 1 << 16
IN_MEMORY = 1 << 22


def streaming_median(blocks: Blocks) -> float:
    """Return the median of all numbers in the blocks, as `numpy.median` defines it.

    Parameters
    ----------
    blocks
        Called once for each pass; yields one-dimensional finite float64 arrays, every time the same.

    Returns
    -------
    float
        NaN if there are no numbers.
    """
    count, low, high = 0, np.inf, -np.inf
    for values in blocks():
        if values.size:
            count += values.size
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    if count == 0:
        return float("nan")
    upper = _order_statistic(blocks, count // 2, count, low, high)
    if count % 2:
        return upper
    lower = _order_statistic(blocks, count // 2 - 1, count, low, high)
    return (lower + upper) / 2


def _order_statistic(blocks: Blocks, rank: int, count: int, low: float, high: float) -> float:
    """Return the number of 0-based `rank`, known to be among the `count` numbers in [low, high]."""
    while count > IN_MEMORY and low < high:
        edges = np.linspace(low, high, BINS + 1)
        bins = np.zeros(BINS, dtype=np.int64)
        for values in blocks():
            inside = values[(values >= low) & (values <= high)]
            # The bin of a number is defined by the edges themselves, so that the next interval keeps exactly
            # the numbers counted here.
            positions = np.searchsorted(edges, inside, side="right") - 1
            bins += np.bincount(np.clip(positions, 0, BINS - 1), minlength=BINS)
        before = np.concatenate([[0], np.cumsum(bins)])
        chosen = int(np.searchsorted(before, rank, side="right")) - 1
        rank -= int(before[chosen])
        count = int(bins[chosen])
        top = edges[chosen + 1] if chosen == BINS - 1 else np.nextafter(edges[chosen + 1], -np.inf)
        if (edges[chosen], top) == (low, high):
            break
        low, high = float(edges[chosen]), float(top)
    if low == high:
        return low
    kept = [values[(values >= low) & (values <= high)] for values in blocks()]
    return float(np.partition(np.concatenate(kept), rank)[rank])

"""The exact median of numbers that do not fit in memory.

The numbers come in blocks that can be read again. Their bits, read as integers, have the same order as the numbers, so
the median is found digit by digit: each pass counts the numbers by the 16 bits after those that are already known. Four
passes determine all 64 bits, for any distribution. As soon as the remaining numbers fit in memory, they are sorted.
Memory is bounded, and the result is that of sorting everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

Blocks = Callable[[], Iterable[NDArray[np.float64]]]

DIGIT_BITS = 16
IN_MEMORY = 1 << 22


def streaming_median(blocks: Blocks) -> float:
    """Return the median of all numbers in the blocks, as `numpy.median` defines it.

    Parameters
    ----------
    blocks
        Called once per pass, at most six times; yields the same one-dimensional float64 arrays without NaN each
        time.

    Returns
    -------
    float
        NaN if there are no numbers. The mean of the two middle numbers does not overflow.
    """
    counts = _count_digits(blocks, known=0, shift=64)
    total = int(counts.sum())
    if total == 0:
        return math.nan
    upper = _order_statistic(blocks, total // 2, counts)
    if total % 2:
        return upper
    lower = _predecessor(blocks, total // 2, upper)
    middle = (lower + upper) / 2
    return lower / 2 + upper / 2 if math.isinf(middle) else middle


def _order_statistic(blocks: Blocks, rank: int, counts: NDArray[np.int64]) -> float:
    """Return the number of 0-based `rank`, given how often each first digit occurs."""
    known, shift = 0, 64
    while True:
        before = np.cumsum(counts)
        digit = int(np.searchsorted(before, rank, side="right"))
        rank -= int(before[digit] - counts[digit])
        known, shift = known << DIGIT_BITS | digit, shift - DIGIT_BITS
        if shift == 0:
            return _number_of(known)
        if counts[digit] <= IN_MEMORY:
            kept = np.concatenate([values[_keys(values) >> np.uint64(shift) == known] for values in blocks()])
            return float(np.partition(kept, rank)[rank])
        counts = _count_digits(blocks, known, shift)


def _count_digits(blocks: Blocks, known: int, shift: int) -> NDArray[np.int64]:
    """Count by their next digit the numbers whose key begins with `known`, which is followed by `shift` bits."""
    counts = np.zeros(1 << DIGIT_BITS, dtype=np.int64)
    for values in blocks():
        keys = _keys(values)
        if shift < 64:
            keys = keys[keys >> np.uint64(shift) == known]
        digits = keys >> np.uint64(shift - DIGIT_BITS) & np.uint64((1 << DIGIT_BITS) - 1)
        np.add.at(counts, digits.astype(np.intp), 1)
    return counts


def _predecessor(blocks: Blocks, rank: int, number: float) -> float:
    """Return the number of rank `rank - 1`, where `number` has rank `rank`."""
    n_smaller, largest = 0, -math.inf
    for values in blocks():
        smaller = values[values < number]
        if smaller.size:
            n_smaller, largest = n_smaller + smaller.size, max(largest, float(smaller.max()))
    return largest if n_smaller == rank else number


def _keys(values: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Return integers in the order of the numbers: IEEE 754 bits, the sign bit flipped, all bits of negatives."""
    bits = np.ascontiguousarray(values, dtype=np.float64).view(np.uint64)
    sign = np.uint64(1 << 63)
    return np.where(bits & sign, ~bits, bits | sign)


def _number_of(key: int) -> float:
    bits = key ^ (1 << 63) if key >> 63 else ~key & (1 << 64) - 1
    return float(np.uint64(bits).view(np.float64))

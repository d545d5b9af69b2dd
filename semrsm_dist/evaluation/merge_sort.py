"""Merge sort of pairs of numbers that counts how far they were from sorted.

It works on arrays that may lie in files: blocks are sorted in memory, then runs are merged from one end to the
other, so that only the pages at work need to be there. The number of inversions comes along for nothing, which is how
rank correlations are counted (W. R. Knight, A computer method for calculating Kendall's tau with ungrouped data,
JASA 61 (1966)).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.compiled.jit import compiled

BLOCK = 1 << 20
"""Pairs that are sorted in memory at once."""

Numbers = NDArray[np.float64]


def sort_counting(
    first: Numbers,
    second: Numbers,
    spare: tuple[Numbers, Numbers],
    *,
    block: int = BLOCK,
) -> int:
    """Sort pairs of numbers in place, by the first and among equals by the second.

    Parameters
    ----------
    first, second : (n,)
        The pairs, without NaN.
    spare
        Two arrays like these to work in; what they hold is lost.
    block
        Pairs to sort in memory at once.

    Returns
    -------
    int
        The inversions: in how many of the n (n - 1) / 2 choices of two pairs the greater stood before the lesser.
    """
    inversions = 0
    for start in range(0, len(first), block):
        part = slice(start, start + block)
        here = np.array(first[part]), np.array(second[part])
        inversions += int(_sort_runs(*here, np.empty_like(here[0]), np.empty_like(here[1]), 1))
        first[part], second[part] = here
    return inversions + int(_sort_runs(first, second, *spare, block))


@compiled
def _sort_runs(
    first: Numbers,
    second: Numbers,
    spare_first: Numbers,
    spare_second: Numbers,
    width: int,
) -> int:
    """Sort what is sorted within runs of `width`; return the inversions."""
    n = len(first)
    inversions = 0
    a, b, to_a, to_b = first, second, spare_first, spare_second
    in_spare = False
    while width < n:
        for low in range(0, n, 2 * width):
            middle, high = min(low + width, n), min(low + 2 * width, n)
            inversions += _merge(a, b, low, middle, high, to_a, to_b)
        a, b, to_a, to_b = to_a, to_b, a, b
        in_spare = not in_spare
        width *= 2
    if in_spare:
        first[:] = spare_first
        second[:] = spare_second
    return inversions


@compiled
def _merge(
    a: Numbers,
    b: Numbers,
    low: int,
    middle: int,
    high: int,
    to_a: Numbers,
    to_b: Numbers,
) -> int:
    """Merge two sorted runs, low:middle and middle:high; return how often the right one goes before the left."""
    left, right = low, middle
    inversions = 0
    for place in range(low, high):
        from_right = right < high and (
            left >= middle or a[right] < a[left] or (a[right] == a[left] and b[right] < b[left])
        )
        if from_right:
            source = right
            right += 1
            inversions += middle - left
        else:
            source = left
            left += 1
        to_a[place] = a[source]
        to_b[place] = b[source]
    return inversions

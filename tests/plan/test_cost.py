"""Estimates of time and memory: positive, growing, and bounds that hold at extremes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.plan.cost import choose_block_size, feature_bytes, result_bytes


@given(
    pair_seconds=st.floats(0, 1e6),
    side=st.integers(1, 256),
    target=st.floats(0, 1e308),
    panel_bytes=st.integers(0, 2**40),
    budget=st.integers(-(2**30), 2**44),
)
def test_blocks_fit_memory_and_time(pair_seconds, side, target, panel_bytes, budget):
    block = choose_block_size(pair_seconds, side, target, panel_bytes, budget)
    assert block >= 1
    if block > 1:
        assert (block + 1) * panel_bytes <= budget  # its row panels and one column panel
        assert block**2 * pair_seconds * side**2 <= target * (1 + 1e-12)


@pytest.mark.parametrize(
    ("pair_seconds", "target", "panel_bytes", "budget", "expected"),
    [
        (1e-3, 1.0, 1, 10**9, 3),  # tiles of 0.1 s: nine of them
        (1e-3, 0.05, 1, 10**9, 1),  # one tile takes longer than the task should
        (1e-3, 100.0, 100, 350, 2),  # two rows and a column
        (1e-3, 100.0, 100, 299, 1),
        (1e-3, 100.0, 100, 0, 1),  # a requested tile size may be too large: one tile at a time
        (0.0, math.inf, 0, 10**6 + 1, 10**6),
    ],
)
def test_block_sides(pair_seconds, target, panel_bytes, budget, expected):
    assert choose_block_size(pair_seconds, 10, target, panel_bytes, budget) == expected


def test_bytes_are_those_of_the_arrays():
    assert feature_bytes(10, 49, 64, 2) == 10 * 49 * 64 * 2
    blocks, matrices = 3 * 8 * 45, (3 + 2 * 2) * 8 * 100
    assert result_bytes(10, 10, 45, 2) == blocks + matrices

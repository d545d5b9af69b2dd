"""The streaming median is that of sorting everything, in few passes and little memory, for any numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.results import median
from semrsm_dist.results.median import streaming_median

TINY = 5e-324
LARGEST = np.finfo(np.float64).max
rng = np.random.default_rng(0)
numbers = st.floats(allow_nan=False, allow_infinity=False)
repeated = st.sampled_from([0.0, -0.0, 1.0, -1.0, TINY, -TINY, 1 + 2**-52, LARGEST, -LARGEST, 2.0**-1022])
near_one = st.integers(-40, 40).map(lambda ulps: 1.0 + ulps * 2**-53)
subnormal = st.integers(-200_000, 200_000).map(lambda units: units * TINY)


class Source:
    """Blocks of numbers that count how often and how much of them is read."""

    def __init__(self, values, size=3):
        self.values = np.asarray(values, dtype=np.float64)
        self.size = size
        self.passes = 0

    def __call__(self):
        self.passes += 1
        yield np.array([])
        for start in range(0, self.values.size, self.size):
            yield self.values[start : start + self.size]


def median_of(values):
    """Return the mean of the two middle numbers of the sorted list, in exact arithmetic until the end."""
    ordered = sorted(float(value) for value in values)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return (low + high) / 2 if math.isfinite(low + high) else low / 2 + high / 2


@pytest.fixture(params=[1, 4], ids=lambda size: f"memory {size}")
def little_memory(request, monkeypatch):
    monkeypatch.setattr(median, "IN_MEMORY", request.param)


@pytest.fixture
def no_memory(monkeypatch):
    """All passes are needed."""
    monkeypatch.setattr(median, "IN_MEMORY", 0)


@pytest.mark.parametrize("memory", [0, 3, 1000])
@given(st.lists(numbers | repeated | near_one | subnormal, min_size=1, max_size=60), st.integers(1, 9))
def test_it_is_the_median_of_sorting_everything(memory, values, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(median, "IN_MEMORY", memory)
        source = Source(values, size)
        assert streaming_median(source) == median_of(values)
    assert source.passes <= 6


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=99), st.integers(1, 40))
def test_it_agrees_with_numpy(values, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(median, "IN_MEMORY", 2)
        assert streaming_median(Source(values, size)) == np.median(values)


@pytest.mark.parametrize(
    "values",
    [
        rng.normal(size=1001),
        rng.gamma(50, size=1000),
        10.0 ** rng.uniform(-300, 300, size=1000),
        np.r_[10.0 ** rng.uniform(-323, -290, size=1000), 1e300],
        np.r_[-LARGEST, LARGEST, rng.normal(size=100)],
        np.r_[-LARGEST, LARGEST],
        np.full(100, LARGEST),
        np.r_[np.full(50, LARGEST / 2), np.full(50, LARGEST)],
        np.arange(98_304)[::-1] * TINY,  # the width of 65536 equal bins is no whole number of subnormals
        rng.integers(0, 130_000, size=999) * TINY,
        np.r_[np.zeros(50), np.full(50, LARGEST)],
        np.r_[np.ones(50), np.full(50, 1 + 2**-52)],
        np.r_[np.ones(51), np.full(50, 1 + 2**-52)],
        np.full(99, -3.25),
        np.tile([-0.0, 0.0], 20),
        np.arange(1000.0),
        -np.arange(1000.0),
        [7.0],
        [3.0, 1.0],
    ],
)
def test_hard_spreads(little_memory, values):
    source = Source(values, 97)
    assert streaming_median(source) == median_of(values)
    assert source.passes <= 6


def test_passes_are_few_and_needed(no_memory):
    source = Source(rng.normal(size=1001))
    assert streaming_median(source) == np.median(source.values)
    assert source.passes == 4


def test_it_keeps_no_more_than_it_may(monkeypatch):
    monkeypatch.setattr(median, "IN_MEMORY", 50)
    sizes = []
    concatenate = np.concatenate
    monkeypatch.setattr(
        np, "concatenate", lambda parts: sizes.append(concatenate(parts).size) or concatenate(parts)
    )
    values = rng.normal(size=5000)
    assert streaming_median(Source(values)) == np.median(values)
    assert sizes
    assert max(sizes) <= 50


def test_nothing_has_no_median():
    assert math.isnan(streaming_median(Source([])))
    assert math.isnan(streaming_median(lambda: iter(())))


def test_infinities_are_the_largest_and_smallest(no_memory):
    assert streaming_median(Source([math.inf, 1.0, 2.0])) == 2.0
    assert streaming_median(Source([-math.inf, 1.0, 2.0])) == 1.0
    assert streaming_median(Source([1.0, math.inf])) == math.inf
    assert math.isnan(streaming_median(Source([-math.inf, math.inf])))


def test_strided_blocks_are_read_as_they_are(little_memory):
    values = rng.normal(size=(20, 30))
    assert streaming_median(lambda: iter(values.T[:, ::3])) == np.median(values.T[:, ::3])

"""The largest numbers of rows that come in blocks: what a stable sort of the whole rows begins with."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from semrsm_dist.evaluation.largest import NONE, Largest

# Few different values, so that many are equal; NaN and both infinities among them.
NUMBERS = st.sampled_from([np.nan, -np.inf, -2.0, -0.0, 0.0, 1.0, 1.5, np.inf])


@st.composite
def matrices_in_blocks(draw):
    shape = draw(st.integers(1, 4)), draw(st.integers(0, 40))
    cuts = sorted(draw(st.lists(st.integers(0, shape[1]), max_size=5)))
    return draw(arrays(np.float64, shape, elements=NUMBERS)), [0, *cuts, shape[1]], draw(st.integers(1, 12))


@given(matrices_in_blocks())
def test_they_are_the_beginning_of_a_stable_sort(drawn):
    matrix, cuts, m = drawn
    largest = Largest(len(matrix), m)
    for start, stop in itertools.pairwise(cuts):
        largest.add(matrix[:, start:stop])
    for row, values, indices in zip(matrix, largest.values, largest.indices, strict=True):
        best = [index for index in np.argsort(-row, kind="stable") if not np.isnan(row[index])][:m]
        assert indices.tolist() == best + [NONE] * (m - len(best))
        np.testing.assert_array_equal(values, [*row[best], *[np.nan] * (m - len(best))])


def test_long_rows_are_thinned_out_before_they_are_sorted():
    matrix = np.random.default_rng(0).normal(size=(3, 5000)).round(1)  # with many equal numbers
    matrix[2, 40:] = np.nan
    largest = Largest(3, 50)
    largest.add(matrix)
    expected = np.argsort(-matrix, axis=1, kind="stable")[:, :50]
    np.testing.assert_array_equal(largest.indices[:2], expected[:2])
    np.testing.assert_array_equal(largest.indices[2], [*expected[2, :40], *[NONE] * 10])

"""Arrays in the page: what is read is what was written, and bounds stay bounds."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from semrsm_dist.report.page_data import Array

numbers = arrays(np.float64, st.integers(1, 9), elements=st.floats(-1e30, 1e30) | st.just(np.nan))


@given(numbers)
def test_numbers_are_kept_in_single_precision(values):
    np.testing.assert_array_equal(Array.floats(values).read(), values.astype(np.float32))


@given(arrays(np.int64, (3, 2), elements=st.integers(-1, 299)), st.sampled_from([300, 2**16, 2**20]))
def test_indices_are_kept_and_none_is_told_apart(values, size):
    array = Array.indices(values, size)
    read = array.read().astype(np.int64)
    np.testing.assert_array_equal(np.where(read == array.missing, -1, read), values)


@given(numbers)
def test_coarse_numbers_are_near(values):
    read = Array.coarse(values).read()
    np.testing.assert_array_equal(np.isnan(read), np.isnan(values))
    np.testing.assert_allclose(read, values, rtol=2**-8, atol=1e-37)


@given(arrays(np.float64, 5, elements=st.floats(0, 1e30)))
def test_a_coarse_bound_is_never_below_what_it_bounds(values):
    read = Array.coarse(values, upward=True).read().astype(np.float64)
    assert np.all(read >= values)
    assert np.all(read <= values * (1 + 2**-6) + 1e-37)

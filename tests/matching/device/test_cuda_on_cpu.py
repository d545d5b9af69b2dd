"""What stands in for CUDA on a CPU: that it rounds up."""

import ctypes
import math
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

single = st.floats(-(2.0**100), 2.0**100, width=32)
double = st.floats(-1e300, 1e300)


@given(a=single, b=single)
def test_differences_are_rounded_up(emulated, a, b):
    subtract = emulated.program().subtract_rounding_up
    subtract.restype, subtract.argtypes = ctypes.c_float, (ctypes.c_float, ctypes.c_float)
    found, exact = subtract(a, b), Fraction(a) - Fraction(b)
    below = np.nextafter(np.float32(found), np.float32(-math.inf))
    assert Fraction(float(below)) < exact <= Fraction(found)


@given(a=double, b=double)
def test_sums_are_rounded_up(emulated, a, b):
    add = emulated.program().add_rounding_up
    add.restype, add.argtypes = ctypes.c_double, (ctypes.c_double, ctypes.c_double)
    found, exact = add(a, b), Fraction(a) + Fraction(b)
    assert Fraction(math.nextafter(found, -math.inf)) < exact <= Fraction(found)

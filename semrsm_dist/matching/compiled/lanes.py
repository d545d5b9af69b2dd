"""Vector instructions for numba, which plain loops do not compile to.

The intrinsics built on this emit LLVM instructions on vectors of 16 lanes. LLVM lowers them to whatever the
machine has (AVX-512, AVX2, NEON), so nothing is built at installation. The arrays are
one-dimensional and contiguous; positions in them are element offsets. All loads accept unaligned
addresses, aligned ones are faster. The order of all operations is fixed: equal inputs give equal
bits, wherever in an array they lie.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import core, extending

# numba's own annotations describe the calls in its compiled code, not those made here.
cgutils: Any = core.cgutils
types: Any = core.types
intrinsic: Callable[[Callable[..., Any]], Any] = extending.intrinsic

LANES = 16
"""Rows of affinities are padded to a multiple of this many columns."""

FLOAT = ir.FloatType()
DOUBLE = ir.DoubleType()
INT16, INT32, INT64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
# Infinities must keep their meaning (padded columns cost +inf), NaN never occurs.
FAST = ("nnan", "nsz")

_HAS_TIME_STAMP = platform.machine() in ("x86_64", "AMD64")


def vector(element: ir.Type, count: int = LANES) -> ir.VectorType:
    """Return the vector type of this many elements."""
    return ir.VectorType(element, count)


def suffix(kind: ir.VectorType) -> str:
    """Return how the names of LLVM's own intrinsics end for this type."""
    return f"v{kind.count}{ {'float': 'f32', 'double': 'f64', 'i16': 'i16'}[str(kind.element)] }"


def call(builder: Any, name: str, result: ir.Type, arguments: Sequence[Any], fast: Sequence[str] = ()) -> Any:
    """Call an LLVM intrinsic by its full name."""
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments, fastmath=fast)


def address(context: Any, builder: Any, kind: Any, array: Any, offset: Any = None) -> Any:
    """Return the address of the first element of an array of numba's, or of the one at an offset."""
    start = context.make_array(kind)(context, builder, array).data
    return start if offset is None else builder.gep(start, [offset])


def load(builder: Any, start: Any, offset: Any, kind: ir.Type, align: int) -> Any:
    """Load `kind` (a scalar or a vector) at an element offset."""
    at = builder.gep(start, [offset])
    if isinstance(kind, ir.VectorType):
        at = builder.bitcast(at, kind.as_pointer())
    return builder.load(at, align=align)


def store(builder: Any, value: Any, start: Any, offset: Any, align: int) -> None:
    """Store a vector at an element offset."""
    at = builder.bitcast(builder.gep(start, [offset]), value.type.as_pointer())
    builder.store(value, at, align=align)


def prefetch(builder: Any, start: Any, offset: Any) -> None:
    """Prefetch the cache line of an element that is read soon; any address is allowed."""
    at = builder.bitcast(builder.gep(start, [offset]), ir.IntType(8).as_pointer())
    for_reading, keep, data = INT32(0), INT32(3), INT32(1)
    call(builder, "llvm.prefetch.p0i8", ir.VoidType(), [at, for_reading, keep, data])


def splat(builder: Any, scalar: Any, count: int = LANES) -> Any:
    """Return a vector that holds one scalar in all lanes."""
    kind = vector(scalar.type, count)
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, INT32(0))
    zeros = ir.Constant(vector(INT32, count), [0] * count)
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), zeros)


def variable(builder: Any, value: Any) -> Any:
    """Return a place that holds a value to begin with and can be stored to in a loop."""
    slot = cgutils.alloca_once(builder, value.type)
    builder.store(value, slot)
    return slot


@intrinsic
def read_cycles(typingctx: Any) -> Any:
    """Return the processor's time stamp, or 0 on machines where reading it is a privilege."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        if not _HAS_TIME_STAMP:
            return ir.Constant(INT64, 0)
        return call(builder, "llvm.readcyclecounter", INT64, [])

    return types.int64(), codegen


@intrinsic
def borrowed(typingctx: Any, value: Any) -> Any:
    """Return an array, or a tuple with arrays in it, that compiled code does not count references to.

    Counting takes atomic operations at every slice and every call, for a small pair more than the values of its
    matching. The caller keeps the arrays alive.
    """

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return _without_owners(context, builder, sig.args[0], arguments[0])

    return value(value), codegen


def _without_owners(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = ir.Constant(array.meminfo.type, None)
        return array._getvalue()
    if isinstance(kind, types.BaseTuple):
        for index, part in enumerate(kind.types):
            item = _without_owners(context, builder, part, builder.extract_value(value, index))
            value = builder.insert_value(value, item, index)
    return value

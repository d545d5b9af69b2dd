"""Vector instructions for numba: what plain loops do not compile to.

Each function here emits LLVM instructions on vectors of 16 lanes. LLVM lowers them to whatever the
machine has (AVX-512, AVX2, NEON), so nothing is built at installation. The arrays are
one-dimensional and contiguous; positions in them are element offsets. All loads accept unaligned
addresses, aligned ones are faster. The order of all operations is fixed: equal inputs give equal
bits, wherever in an array they lie.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import core, extending

# numba's own annotations describe the calls in its compiled code, not those made here.
cgutils: Any = core.cgutils
types: Any = core.types
intrinsic: Callable[[Callable[..., Any]], Any] = extending.intrinsic

LANES = 16
"""Rows of affinities are padded to a multiple of this many columns."""

_FLOAT = ir.FloatType()
_DOUBLE = ir.DoubleType()
_INT32 = ir.IntType(32)
_MAXIMUM = 2**31 - 1
# Infinities must keep their meaning (padded columns cost +inf), NaN never occurs.
_FAST = ("nnan", "nsz")

_HAS_AVX512 = bool(llvm.get_host_cpu_features().get("avx512f", False))
_HAS_TIME_STAMP = platform.machine() in ("x86_64", "AMD64")
PRODUCT_ROWS = 8 if _HAS_AVX512 else 4
"""Rows of one block of the product in float32, half as many in float64: what the registers hold."""
PRODUCT_VECTORS = 3 if _HAS_AVX512 else 1


def _vector(element: ir.Type, count: int = LANES) -> ir.VectorType:
    return ir.VectorType(element, count)


def _suffix(kind: ir.VectorType) -> str:
    return f"v{kind.count}{ {'float': 'f32', 'double': 'f64', 'i32': 'i32'}[str(kind.element)] }"


def _call(
    builder: Any, name: str, result: ir.Type, arguments: Sequence[Any], fast: Sequence[str] = ()
) -> Any:
    """Call an LLVM intrinsic by its full name."""
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments, fastmath=fast)


def _pointer(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


def _load(builder: Any, pointer: Any, offset: Any, kind: ir.Type, align: int) -> Any:
    """Load `kind` (a scalar or a vector) at an element offset."""
    at = builder.gep(pointer, [offset])
    if isinstance(kind, ir.VectorType):
        at = builder.bitcast(at, kind.as_pointer())
    return builder.load(at, align=align)


def _splat(builder: Any, scalar: Any, count: int = LANES) -> Any:
    kind = _vector(scalar.type, count)
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, _INT32(0))
    zeros = ir.Constant(_vector(_INT32, count), [0] * count)
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), zeros)


def _variable(builder: Any, value: Any) -> Any:
    slot = cgutils.alloca_once(builder, value.type)
    builder.store(value, slot)
    return slot


def _select_max(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b, flags=_FAST), a, b)


def _select_min(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", a, b, flags=_FAST), a, b)


def _halves(builder: Any, vector: Any, width: int) -> tuple[Any, Any]:
    """Return the lower and the upper half, `width` lanes each."""
    low = ir.Constant(_vector(_INT32, width), list(range(width)))
    high = ir.Constant(_vector(_INT32, width), list(range(width, 2 * width)))
    return builder.shuffle_vector(vector, vector, low), builder.shuffle_vector(vector, vector, high)


class _BestTwo:
    """The largest, the second largest and the place of the largest, kept for each lane apart."""

    def __init__(self, builder: Any, first_column: int) -> None:
        self.builder = builder
        lowest = ir.Constant(_vector(_FLOAT), [float("-inf")] * LANES)
        columns = ir.Constant(_vector(_INT32), list(range(first_column, first_column + LANES)))
        self.best = _variable(builder, lowest)
        self.second = _variable(builder, lowest)
        self.index = _variable(builder, columns)
        self.current = _variable(builder, columns)

    def take(self, value: Any, step: int) -> None:
        """Account for one vector of values; the next one lies `step` columns on."""
        builder = self.builder
        best = builder.load(self.best)
        current = builder.load(self.current)
        second = _select_max(builder, builder.load(self.second), _select_min(builder, value, best))
        greater = builder.fcmp_ordered(">", value, best, flags=_FAST)
        builder.store(second, self.second)
        builder.store(builder.select(greater, value, best), self.best)
        builder.store(builder.select(greater, current, builder.load(self.index)), self.index)
        builder.store(builder.add(current, ir.Constant(_vector(_INT32), [step] * LANES)), self.current)

    def reduce(self) -> tuple[Any, Any, Any]:
        """Return best, second and the index of the best (in the first lane that holds it), over all lanes."""
        builder = self.builder
        lanes, index = builder.load(self.best), builder.load(self.index)
        best, second = lanes, builder.load(self.second)
        for width in (8, 4, 2, 1):
            best, best_beyond = _halves(builder, best, width)
            second, second_beyond = _halves(builder, second, width)
            runner_up = _select_min(builder, best, best_beyond)
            second = _select_max(builder, _select_max(builder, second, second_beyond), runner_up)
            best = _select_max(builder, best, best_beyond)
        top = builder.extract_element(best, _INT32(0))
        holds = builder.fcmp_ordered("==", lanes, _splat(builder, top), flags=_FAST)
        bits = builder.bitcast(holds, ir.IntType(LANES))
        lane = builder.cttz(bits, ir.Constant(ir.IntType(1), 1))
        place = builder.extract_element(index, builder.zext(lane, _INT32))
        return top, builder.extract_element(second, _INT32(0)), place


@intrinsic
def read_cycles(typingctx: Any) -> Any:
    """Return the processor's time stamp, or 0 on machines where reading it is a privilege."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        if not _HAS_TIME_STAMP:
            return ir.Constant(ir.IntType(64), 0)
        return _call(builder, "llvm.readcyclecounter", ir.IntType(64), [])

    return types.int64(), codegen


@intrinsic
def best_two(typingctx: Any, affinity: Any, offset: Any, prices: Any, n_blocks: Any) -> Any:
    """Return best, second best and the column of the best of ``affinity[offset + j] - prices[j]``.

    Over ``16 * n_blocks`` columns of float32; of equal bests the lowest column.
    """
    signature = types.Tuple((types.float32, types.float32, types.int64))(
        affinity, types.int64, prices, types.int64
    )

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        row = builder.gep(_pointer(context, builder, sig.args[0], arguments[0]), [arguments[1]])
        price = _pointer(context, builder, sig.args[2], arguments[2])
        lanes = _BestTwo(builder, 0)
        with cgutils.for_range(builder, arguments[3]) as loop:
            at = builder.mul(loop.index, ir.Constant(loop.index.type, LANES))
            value = builder.fsub(
                _load(builder, row, at, _vector(_FLOAT), 4), _load(builder, price, at, _vector(_FLOAT), 4)
            )
            lanes.take(value, LANES)
        best, second, place = lanes.reduce()
        items = (best, second, builder.sext(place, ir.IntType(64)))
        return context.make_tuple(builder, sig.return_type, items)

    return signature, codegen


@intrinsic
def row_max(typingctx: Any, affinity: Any, offset: Any, prices: Any, n_blocks: Any) -> Any:
    """Return the largest ``affinity[offset + j] - prices[j]`` of ``16 * n_blocks`` columns (float32)."""
    signature = types.float32(affinity, types.int64, prices, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        row = builder.gep(_pointer(context, builder, sig.args[0], arguments[0]), [arguments[1]])
        price = _pointer(context, builder, sig.args[2], arguments[2])
        best = _variable(builder, ir.Constant(_vector(_FLOAT), [float("-inf")] * LANES))
        with cgutils.for_range(builder, arguments[3]) as loop:
            at = builder.mul(loop.index, ir.Constant(loop.index.type, LANES))
            value = builder.fsub(
                _load(builder, row, at, _vector(_FLOAT), 4), _load(builder, price, at, _vector(_FLOAT), 4)
            )
            builder.store(_select_max(builder, value, builder.load(best)), best)
        return _call(builder, "llvm.vector.reduce.fmax.v16f32", _FLOAT, [builder.load(best)], _FAST)

    return signature, codegen


@intrinsic
def raise_maxima(typingctx: Any, affinity: Any, offset: Any, shift: Any, maxima: Any, n_blocks: Any) -> Any:
    """Set ``maxima[j]`` to the larger of itself and ``affinity[offset + j] - shift`` (float32)."""
    signature = types.void(affinity, types.int64, types.float32, maxima, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        row = builder.gep(_pointer(context, builder, sig.args[0], arguments[0]), [arguments[1]])
        shift = _splat(builder, arguments[2])
        maxima = _pointer(context, builder, sig.args[3], arguments[3])
        kind = _vector(_FLOAT)
        with cgutils.for_range(builder, arguments[4]) as loop:
            at = builder.mul(loop.index, ir.Constant(loop.index.type, LANES))
            value = builder.fsub(_load(builder, row, at, kind, 4), shift)
            target = builder.bitcast(builder.gep(maxima, [at]), kind.as_pointer())
            larger = _select_max(builder, value, builder.load(target, align=4))
            builder.store(larger, target, align=4)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def mask_above(typingctx: Any, affinity: Any, offset: Any, prices: Any, block: Any, threshold: Any) -> Any:
    """Return a bit for each of 16 columns, the lowest first: whether ``affinity - price`` exceeds the threshold."""
    signature = types.int64(affinity, types.int64, prices, types.int64, types.float32)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        row = builder.gep(_pointer(context, builder, sig.args[0], arguments[0]), [arguments[1]])
        price = _pointer(context, builder, sig.args[2], arguments[2])
        at = builder.mul(arguments[3], ir.Constant(arguments[3].type, LANES))
        value = builder.fsub(
            _load(builder, row, at, _vector(_FLOAT), 4), _load(builder, price, at, _vector(_FLOAT), 4)
        )
        above = builder.fcmp_ordered(">", value, _splat(builder, arguments[4]), flags=_FAST)
        return builder.zext(builder.bitcast(above, ir.IntType(LANES)), ir.IntType(64))

    return signature, codegen


def _sum_in_float64(builder: Any, n: Any, product: Callable[[Any, Any, bool], Any]) -> Any:
    """Return a sum of `n` terms; `product` adds those at an index, 16 or a single one, to a total."""
    lanes = ir.Constant(n.type, LANES)
    whole = builder.sdiv(n, lanes)
    sums = _variable(builder, ir.Constant(_vector(_DOUBLE), [0.0] * LANES))
    with cgutils.for_range(builder, whole) as loop:
        builder.store(product(builder.mul(loop.index, lanes), builder.load(sums), True), sums)
    tail = _variable(builder, ir.Constant(_DOUBLE, 0.0))
    one = ir.Constant(n.type, 1)
    with cgutils.for_range_slice(builder, builder.mul(whole, lanes), n, one) as (index, _):
        builder.store(product(index, builder.load(tail), False), tail)
    return builder.fadd(_add_up(builder, builder.load(sums)), builder.load(tail))


def _add_up(builder: Any, lanes: Any) -> Any:
    """Return the sum over the lanes of a vector."""
    # Without the flag "reassoc" a reduction adds in sequence; halving by hand is faster and fixed too.
    for width in (8, 4, 2, 1):
        lanes = builder.fadd(*_halves(builder, lanes, width))
    return builder.extract_element(lanes, _INT32(0))


def _reader(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Callable[[Any, bool], Any]:
    """Return what loads 16 elements, or one, of a float32 or float64 array as float64."""
    start = builder.gep(_pointer(context, builder, kind, array), [offset])
    single = kind.dtype == types.float32

    def load(at: Any, vectors: bool) -> Any:
        element = _FLOAT if single else _DOUBLE
        value = _load(builder, start, at, _vector(element) if vectors else element, 4 if single else 8)
        return builder.fpext(value, _vector(_DOUBLE) if vectors else _DOUBLE) if single else value

    return load


def _multiply_add(builder: Any, a: Any, b: Any, total: Any, vectors: bool) -> Any:
    return _call(builder, "llvm.fmuladd." + ("v16f64" if vectors else "f64"), total.type, [a, b, total])


@intrinsic
def dot(typingctx: Any, a: Any, a_offset: Any, b: Any, b_offset: Any, n: Any) -> Any:
    """Return the inner product of `n` elements of two float32 or float64 arrays, summed in float64."""
    signature = types.float64(a, types.int64, b, types.int64, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        left = _reader(context, builder, sig.args[0], arguments[0], arguments[1])
        right = _reader(context, builder, sig.args[2], arguments[2], arguments[3])

        def product(at: Any, total: Any, vectors: bool) -> Any:
            return _multiply_add(builder, left(at, vectors), right(at, vectors), total, vectors)

        return _sum_in_float64(builder, arguments[4], product)

    return signature, codegen


@intrinsic
def aligned_dot(typingctx: Any, a: Any, b: Any, permutation: Any, n: Any) -> Any:
    """Return ``sum_s <a[s], b[permutation[s]]>`` of flat arrays of tokens of `n` channels, summed in float64.

    The lanes are added up once, at the end: for few channels that is most of the work otherwise.
    """
    signature = types.float64(a, b, permutation, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        partners = context.make_array(sig.args[2])(context, builder, arguments[2])
        n_rows, length = cgutils.unpack_tuple(builder, partners.shape)[0], arguments[3]
        lanes, one = ir.Constant(length.type, LANES), ir.Constant(length.type, 1)
        whole = builder.mul(builder.sdiv(length, lanes), lanes)
        total = _variable(builder, ir.Constant(_vector(_DOUBLE), [0.0] * LANES))
        tail = _variable(builder, ir.Constant(_DOUBLE, 0.0))
        with cgutils.for_range(builder, n_rows) as row:
            partner = builder.load(builder.gep(partners.data, [row.index]))
            left = _reader(context, builder, sig.args[0], arguments[0], builder.mul(row.index, length))
            right = _reader(context, builder, sig.args[1], arguments[1], builder.mul(partner, length))
            with cgutils.for_range_slice(builder, ir.Constant(length.type, 0), whole, lanes) as (index, _):
                terms = left(index, True), right(index, True), builder.load(total)
                builder.store(_multiply_add(builder, *terms, True), total)
            with cgutils.for_range_slice(builder, whole, length, one) as (index, _):
                terms = left(index, False), right(index, False), builder.load(tail)
                builder.store(_multiply_add(builder, *terms, False), tail)
        return builder.fadd(_add_up(builder, builder.load(total)), builder.load(tail))

    return signature, codegen


@intrinsic
def dot_of_differences(
    typingctx: Any, a: Any, a_offset: Any, mean: Any, b: Any, b_offset: Any, other_offset: Any, n: Any
) -> Any:
    """Return ``sum_c (a[c] - mean[c]) (b[c] - other[c])`` in float64, `other` being part of the array `b`."""
    integer = types.int64
    signature = types.float64(a, integer, mean, b, integer, integer, integer)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        token = _reader(context, builder, sig.args[0], arguments[0], arguments[1])
        centre = _reader(context, builder, sig.args[2], arguments[2], ir.Constant(arguments[1].type, 0))
        left = _reader(context, builder, sig.args[3], arguments[3], arguments[4])
        right = _reader(context, builder, sig.args[3], arguments[3], arguments[5])

        def product(at: Any, total: Any, vectors: bool) -> Any:
            centred = builder.fsub(token(at, vectors), centre(at, vectors))
            difference = builder.fsub(left(at, vectors), right(at, vectors))
            return _multiply_add(builder, centred, difference, total, vectors)

        return _sum_in_float64(builder, arguments[6], product)

    return signature, codegen


def _make_multiply(n_vectors: int) -> Any:
    """Return the intrinsic that multiplies a block of packed rows by ``16 * n_vectors`` packed columns."""

    @intrinsic
    def multiply(
        typingctx: Any, a: Any, a_offset: Any, b: Any, b_offset: Any, b_step: Any, n: Any,
        out: Any, out_offset: Any, out_step: Any, add: Any,
    ) -> Any:  # fmt: skip
        integer = types.int64
        signature = types.void(a, integer, b, integer, integer, integer, out, integer, integer, types.boolean)

        def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
            element = _FLOAT if sig.args[0].dtype == types.float32 else _DOUBLE
            align = 4 if element is _FLOAT else 8
            n_rows = PRODUCT_ROWS if element is _FLOAT else PRODUCT_ROWS // 2
            kind = _vector(element)
            a_start = builder.gep(_pointer(context, builder, sig.args[0], arguments[0]), [arguments[1]])
            b_start = _pointer(context, builder, sig.args[2], arguments[2])
            columns = []
            for v in range(n_vectors):
                shift = builder.mul(arguments[4], ir.Constant(arguments[4].type, v))
                columns.append(builder.gep(b_start, [builder.add(arguments[3], shift)]))
            zero = ir.Constant(kind, [0.0] * LANES)
            sums = [[_variable(builder, zero) for _ in range(n_vectors)] for _ in range(n_rows)]
            with cgutils.for_range(builder, arguments[5]) as loop:
                at = builder.mul(loop.index, ir.Constant(loop.index.type, LANES))
                loaded = [_load(builder, column, at, kind, align) for column in columns]
                for r in range(n_rows):
                    place = builder.add(at, ir.Constant(at.type, r))
                    factor = _splat(builder, _load(builder, a_start, place, element, align))
                    for v in range(n_vectors):
                        name = f"llvm.fmuladd.{_suffix(kind)}"
                        value = _call(builder, name, kind, [factor, loaded[v], builder.load(sums[r][v])])
                        builder.store(value, sums[r][v])
            out_start = _pointer(context, builder, sig.args[6], arguments[6])
            for r in range(n_rows):
                row = builder.add(arguments[7], builder.mul(arguments[8], ir.Constant(arguments[8].type, r)))
                for v in range(n_vectors):
                    at = builder.gep(out_start, [builder.add(row, ir.Constant(row.type, LANES * v))])
                    at = builder.bitcast(at, kind.as_pointer())
                    before = builder.select(arguments[9], builder.load(at, align=align), zero)
                    builder.store(builder.fadd(before, builder.load(sums[r][v])), at, align=align)
            return context.get_dummy_value()

        return signature, codegen

    return multiply


multiply_one = _make_multiply(1)
multiply_two = _make_multiply(2)
multiply_three = _make_multiply(3)

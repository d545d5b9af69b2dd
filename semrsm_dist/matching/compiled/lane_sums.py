"""Inner products of tokens in float64, on vectors: see `semrsm_dist.matching.compiled.lanes`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from semrsm_dist.matching.compiled.lanes import (
    DOUBLE,
    FLOAT,
    INT32,
    LANES,
    address,
    call,
    cgutils,
    intrinsic,
    load,
    prefetch,
    types,
    variable,
    vector,
)

_ROWS_AHEAD = 2  # tokens from what is summed to what is fetched


def _sum_in_float64(builder: Any, n: Any, product: Callable[[Any, Any, bool], Any]) -> Any:
    """Return a sum of `n` terms; `product` adds those at an index, 16 or a single one, to a total."""
    lanes = ir.Constant(n.type, LANES)
    whole = builder.sdiv(n, lanes)
    sums = variable(builder, ir.Constant(vector(DOUBLE), [0.0] * LANES))
    with cgutils.for_range(builder, whole) as loop:
        builder.store(product(builder.mul(loop.index, lanes), builder.load(sums), True), sums)
    tail = variable(builder, ir.Constant(DOUBLE, 0.0))
    one = ir.Constant(n.type, 1)
    with cgutils.for_range_slice(builder, builder.mul(whole, lanes), n, one) as (index, _):
        builder.store(product(index, builder.load(tail), False), tail)
    return builder.fadd(_add_up(builder, builder.load(sums)), builder.load(tail))


def _add_up(builder: Any, lanes: Any) -> Any:
    """Return the sum over the lanes of a vector."""
    # Without the flag "reassoc" a reduction adds in sequence; halving by hand is faster and fixed too.
    for width in (8, 4, 2, 1):
        low, high = (list(range(start, start + width)) for start in (0, width))
        parts = [
            builder.shuffle_vector(lanes, lanes, ir.Constant(vector(INT32, width), k)) for k in (low, high)
        ]
        lanes = builder.fadd(*parts)
    return builder.extract_element(lanes, INT32(0))


def _reader(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Callable[[Any, bool], Any]:
    """Return what loads 16 elements, or one, of a float32 or float64 array as float64."""
    start = address(context, builder, kind, array, offset)
    single = kind.dtype == types.float32

    def read(at: Any, vectors: bool) -> Any:
        element = FLOAT if single else DOUBLE
        value = load(builder, start, at, vector(element) if vectors else element, 4 if single else 8)
        return builder.fpext(value, vector(DOUBLE) if vectors else DOUBLE) if single else value

    return read


def _multiply_add(builder: Any, a: Any, b: Any, total: Any, vectors: bool) -> Any:
    return call(builder, "llvm.fmuladd." + ("v16f64" if vectors else "f64"), total.type, [a, b, total])


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
def aligned_dots(typingctx: Any, a: Any, b: Any, permutation: Any, n: Any) -> Any:
    """Return ``sum_s <a[s], b[s]>`` and ``sum_s <a[s], b[permutation[s]]>`` of (S, n) tokens, summed in float64.

    Both sums take their terms in the same order. The lanes are added up once, at the end: for few channels that is
    most of the work otherwise. Large images come from beyond the second cache, so each is read once, and ahead:
    the processor cannot foresee the partners.
    """
    signature = types.UniTuple(types.float64, 2)(a, b, permutation, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        tokens = context.make_array(sig.args[0])(context, builder, arguments[0])
        n_rows, length = cgutils.unpack_tuple(builder, tokens.shape)[0], arguments[3]
        zero, one, lanes = (ir.Constant(length.type, k) for k in (0, 1, LANES))
        whole = builder.mul(builder.sdiv(length, lanes), lanes)
        totals = [variable(builder, ir.Constant(vector(DOUBLE), [0.0] * LANES)) for _ in range(2)]
        tails = [variable(builder, ir.Constant(DOUBLE, 0.0)) for _ in range(2)]
        partners = address(context, builder, sig.args[2], arguments[2])
        last = builder.sub(n_rows, one)

        def places(row: Any) -> list[tuple[int, Any]]:
            """Return array and offset of the three tokens that a row takes."""
            partner = builder.load(builder.gep(partners, [row]))
            return [(k, builder.mul(token, length)) for k, token in ((0, row), (1, row), (1, partner))]

        with cgutils.for_range(builder, n_rows) as row:
            ahead = builder.add(row.index, ir.Constant(length.type, _ROWS_AHEAD))
            ahead = builder.select(builder.icmp_signed("<", ahead, last), ahead, last)
            coming = [
                address(context, builder, sig.args[k], arguments[k], place) for k, place in places(ahead)
            ]
            left, *rights = (
                _reader(context, builder, sig.args[k], arguments[k], place) for k, place in places(row.index)
            )
            for begin, end, step, sums in ((zero, whole, lanes, totals), (whole, length, one, tails)):
                with cgutils.for_range_slice(builder, begin, end, step) as (at, _):
                    vectors = step is lanes
                    for start in coming if vectors else ():
                        prefetch(builder, start, at)
                    factor = left(at, vectors)
                    for right, total in zip(rights, sums, strict=True):
                        terms = factor, right(at, vectors), builder.load(total)
                        builder.store(_multiply_add(builder, *terms, vectors), total)
        values = (
            builder.fadd(_add_up(builder, builder.load(total)), builder.load(tail))
            for total, tail in zip(totals, tails, strict=True)
        )
        return cgutils.pack_array(builder, list(values))

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

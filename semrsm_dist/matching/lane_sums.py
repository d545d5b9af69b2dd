"""Inner products of tokens in float64, on vectors: see `semrsm_dist.matching.lanes`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from semrsm_dist.matching.lanes import (
    DOUBLE,
    FLOAT,
    INT32,
    LANES,
    call,
    cgutils,
    intrinsic,
    load,
    pointer,
    types,
    variable,
    vector,
)


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
    start = builder.gep(pointer(context, builder, kind, array), [offset])
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
def aligned_dot(typingctx: Any, a: Any, b: Any, permutation: Any, n: Any) -> Any:
    """Return ``sum_s <a[s], b[permutation[s]]>`` of (S, n) tokens, summed in float64; None is the identity.

    The lanes are added up once, at the end: for few channels that is most of the work otherwise.
    """
    signature = types.float64(a, b, permutation, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        tokens = context.make_array(sig.args[0])(context, builder, arguments[0])
        n_rows, length = cgutils.unpack_tuple(builder, tokens.shape)[0], arguments[3]
        lanes, one = ir.Constant(length.type, LANES), ir.Constant(length.type, 1)
        whole = builder.mul(builder.sdiv(length, lanes), lanes)
        total = variable(builder, ir.Constant(vector(DOUBLE), [0.0] * LANES))
        tail = variable(builder, ir.Constant(DOUBLE, 0.0))
        with cgutils.for_range(builder, n_rows) as row:
            partner = row.index
            if sig.args[2] != types.none:
                partners = pointer(context, builder, sig.args[2], arguments[2])
                partner = builder.load(builder.gep(partners, [row.index]))
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

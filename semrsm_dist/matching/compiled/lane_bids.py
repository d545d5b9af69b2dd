"""The operations of an auction on a row of affinities, as vectors: see `semrsm_dist.matching.compiled.lanes`.

Affinities come in float32, or rounded to 16-bit integers, of which a register holds twice as many. Integers
saturate instead of overflowing: a column whose price is `LARGEST` is worth `SMALLEST` at any affinity below 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from semrsm_dist.matching.compiled.lanes import (
    FAST,
    FLOAT,
    INT16,
    INT32,
    INT64,
    LANES,
    address,
    call,
    cgutils,
    intrinsic,
    load,
    splat,
    store,
    types,
    variable,
    vector,
)

SMALLEST, LARGEST = -(2**15), 2**15 - 1
"""The 16-bit integers."""

CLIPPED = -(2**14)
"""`round_residuals` writes this for everything at or below it."""


class _Numbers:
    """Arithmetic on vectors of float32 or of 16-bit integers."""

    def __init__(self, builder: Any, array: Any) -> None:
        self.builder = builder
        self.real = array.dtype == types.float32
        self.align = 4 if self.real else 2
        self.kind = vector(FLOAT if self.real else INT16)
        self.lowest = ir.Constant(self.kind, [float("-inf") if self.real else SMALLEST] * LANES)

    def load(self, start: Any, at: Any) -> Any:
        return load(self.builder, start, at, self.kind, self.align)

    def subtract(self, a: Any, b: Any) -> Any:
        return (
            self.builder.fsub(a, b)
            if self.real
            else call(self.builder, "llvm.ssub.sat.v16i16", self.kind, [a, b])
        )

    def greater(self, a: Any, b: Any) -> Any:
        compare = self.builder.fcmp_ordered if self.real else self.builder.icmp_signed
        return compare(">", a, b, **({"flags": FAST} if self.real else {}))

    def larger(self, a: Any, b: Any) -> Any:
        return self.builder.select(self.greater(a, b), a, b)

    def smaller(self, a: Any, b: Any) -> Any:
        return self.builder.select(self.greater(b, a), a, b)

    def largest(self, lanes: Any) -> Any:
        """Return the largest lane."""
        if self.real:
            return call(self.builder, "llvm.vector.reduce.fmax.v16f32", FLOAT, [lanes], FAST)
        return call(self.builder, "llvm.vector.reduce.smax.v16i16", INT16, [lanes])


def _on_blocks(builder: Any, n_blocks: Any, visit: Callable[[Any, Any], None]) -> None:
    """Call `visit` with the number of each block of 16 columns and with its first column."""
    with cgutils.for_range(builder, n_blocks) as loop:
        visit(loop.index, builder.mul(loop.index, ir.Constant(loop.index.type, LANES)))


@intrinsic
def best_two(typingctx: Any, rounded: Any, offset: Any, rises: Any, n_blocks: Any) -> Any:
    """Return best, second best and the column of the best of ``rounded[offset + j] - rises[j]``.

    Over ``16 * n_blocks`` columns of 16-bit integers. Of equal bests, one of those in the first lane that holds one.
    """
    signature = types.Tuple((types.int64, types.int64, types.int64))(rounded, types.int64, rises, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        numbers = _Numbers(builder, sig.args[0])
        row = address(context, builder, sig.args[0], arguments[0], arguments[1])
        price = address(context, builder, sig.args[2], arguments[2])
        best, second = variable(builder, numbers.lowest), variable(builder, numbers.lowest)
        place = variable(builder, ir.Constant(numbers.kind, [0] * LANES))  # block of the best of each lane

        def visit(block: Any, at: Any) -> None:
            value = numbers.subtract(numbers.load(row, at), numbers.load(price, at))
            before = builder.load(best)
            runner_up = numbers.smaller(value, before)
            builder.store(numbers.larger(builder.load(second), runner_up), second)
            here = splat(builder, builder.trunc(block, INT16))
            builder.store(builder.select(numbers.greater(value, before), here, builder.load(place)), place)
            builder.store(numbers.larger(value, before), best)

        _on_blocks(builder, arguments[3], visit)
        lanes = builder.load(best)
        top = numbers.largest(lanes)
        bits = builder.bitcast(builder.icmp_signed("==", lanes, splat(builder, top)), ir.IntType(LANES))
        lane = builder.cttz(bits, ir.Constant(ir.IntType(1), 1))
        # The second best: the second of the best one's lane, or the best of another lane.
        numbered = ir.Constant(numbers.kind, list(range(LANES)))
        in_lane = builder.icmp_signed("==", numbered, splat(builder, lane))
        runner_up = numbers.largest(builder.select(in_lane, builder.load(second), lanes))
        block = builder.extract_element(builder.load(place), builder.zext(lane, INT32))
        column = builder.mul(builder.sext(block, INT64), ir.Constant(INT64, LANES))
        column = builder.add(column, builder.zext(lane, INT64))
        items = (builder.sext(top, INT64), builder.sext(runner_up, INT64), column)
        return context.make_tuple(builder, sig.return_type, items)

    return signature, codegen


@intrinsic
def row_max(typingctx: Any, affinity: Any, offset: Any, prices: Any, n_blocks: Any) -> Any:
    """Return the largest ``affinity[offset + j] - prices[j]`` of ``16 * n_blocks`` columns."""
    signature = affinity.dtype(affinity, types.int64, prices, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        numbers = _Numbers(builder, sig.args[0])
        row = address(context, builder, sig.args[0], arguments[0], arguments[1])
        price = address(context, builder, sig.args[2], arguments[2])
        best = variable(builder, numbers.lowest)

        def visit(block: Any, at: Any) -> None:
            value = numbers.subtract(numbers.load(row, at), numbers.load(price, at))
            builder.store(numbers.larger(value, builder.load(best)), best)

        _on_blocks(builder, arguments[3], visit)
        return numbers.largest(builder.load(best))

    return signature, codegen


@intrinsic
def raise_maxima(typingctx: Any, affinity: Any, offset: Any, shift: Any, maxima: Any, n_blocks: Any) -> Any:
    """Set ``maxima[j]`` to the larger of itself and ``affinity[offset + j] - shift``."""
    signature = types.void(affinity, types.int64, affinity.dtype, maxima, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        numbers = _Numbers(builder, sig.args[0])
        row = address(context, builder, sig.args[0], arguments[0], arguments[1])
        shift = splat(builder, arguments[2])
        maxima = address(context, builder, sig.args[3], arguments[3])

        def visit(block: Any, at: Any) -> None:
            value = numbers.subtract(numbers.load(row, at), shift)
            larger = numbers.larger(value, numbers.load(maxima, at))
            store(builder, larger, maxima, at, numbers.align)

        _on_blocks(builder, arguments[4], visit)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def copy_row(typingctx: Any, row: Any, offset: Any, to: Any, to_offset: Any, n_blocks: Any) -> Any:
    """Copy ``16 * n_blocks`` elements between offsets of two arrays; with slices, a search takes a sixth longer."""
    signature = types.void(row, types.int64, to, types.int64, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        numbers = _Numbers(builder, sig.args[0])
        source = address(context, builder, sig.args[0], arguments[0], arguments[1])
        target = address(context, builder, sig.args[2], arguments[2], arguments[3])

        def visit(block: Any, at: Any) -> None:
            store(builder, numbers.load(source, at), target, at, numbers.align)

        _on_blocks(builder, arguments[4], visit)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def mask_above(typingctx: Any, affinity: Any, offset: Any, prices: Any, block: Any, threshold: Any) -> Any:
    """Return a bit for each of 16 columns, the lowest first: whether ``affinity - price`` exceeds the threshold."""
    signature = types.int64(affinity, types.int64, prices, types.int64, types.float32)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        numbers = _Numbers(builder, sig.args[0])
        row = address(context, builder, sig.args[0], arguments[0], arguments[1])
        price = address(context, builder, sig.args[2], arguments[2])
        at = builder.mul(arguments[3], ir.Constant(arguments[3].type, LANES))
        value = numbers.subtract(numbers.load(row, at), numbers.load(price, at))
        above = numbers.greater(value, splat(builder, arguments[4]))
        return builder.zext(builder.bitcast(above, ir.IntType(LANES)), INT64)

    return signature, codegen


@intrinsic
def round_residuals(
    typingctx: Any,
    affinity: Any,
    offset: Any,
    prices: Any,
    best: Any,
    factor: Any,
    rounded: Any,
    n_blocks: Any,
) -> Any:
    """Write ``factor * (affinity[offset + j] - prices[j] - best)`` to ``rounded[offset + j]``.

    Rounded to the nearest integer, and to `CLIPPED` what is less than that; `best` is the `row_max`.
    """
    signature = types.void(affinity, types.int64, prices, types.float32, types.float32, rounded, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        numbers = _Numbers(builder, sig.args[0])
        row = address(context, builder, sig.args[0], arguments[0], arguments[1])
        out = address(context, builder, sig.args[5], arguments[5], arguments[1])
        price = address(context, builder, sig.args[2], arguments[2])
        best, factor = splat(builder, arguments[3]), splat(builder, arguments[4])
        clipped = ir.Constant(numbers.kind, [float(CLIPPED)] * LANES)

        def visit(block: Any, at: Any) -> None:
            value = numbers.subtract(numbers.load(row, at), numbers.load(price, at))
            value = numbers.larger(builder.fmul(builder.fsub(value, best), factor), clipped)
            value = call(builder, "llvm.nearbyint.v16f32", numbers.kind, [value])
            whole = builder.trunc(builder.fptosi(value, vector(INT32)), vector(INT16))
            store(builder, whole, out, at, 2)

        _on_blocks(builder, arguments[6], visit)
        return context.get_dummy_value()

    return signature, codegen

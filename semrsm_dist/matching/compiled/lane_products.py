"""A block of the affinity product in registers: see `semrsm_dist.matching.compiled.lanes`."""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from semrsm_dist.matching.compiled.lanes import (
    DOUBLE,
    FLOAT,
    INT64,
    LANES,
    address,
    call,
    cgutils,
    intrinsic,
    load,
    splat,
    store,
    suffix,
    types,
    variable,
    vector,
)

_HAS_AVX512 = bool(llvm.get_host_cpu_features().get("avx512f", False))
ROWS_AT_ONCE = (8, 4) if _HAS_AVX512 else (6, 4)
"""Rows of a block of the product in float32, many and few; half as many in float64. What the registers hold."""
VECTORS_AT_ONCE = 3 if _HAS_AVX512 else 1
"""Vectors of 16 columns in the widest block."""
HALF = LANES // 2


def make_multiply(n_rows: int, n_vectors: int, width: int = LANES) -> Any:
    """Return the intrinsic that multiplies a block of packed rows by packed columns.

    Columns are `n_vectors` vectors of 16 or, if `width` is `HALF`, the first half of one: the other half of the
    product is then zero. Rows may begin at any token.
    """

    @intrinsic
    def multiply(
        typingctx: Any, a: Any, b: Any, n_channels: Any, row: Any, column: Any, first: Any, n: Any,
        out: Any, out_step: Any, add: Any,
    ) -> Any:  # fmt: skip
        integer = types.int64
        signature = types.void(a, b, integer, integer, integer, integer, integer, out, integer, types.boolean)

        def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
            channels, row, column, begin, length, out_width = (arguments[k] for k in (2, 3, 4, 5, 6, 8))
            element = FLOAT if sig.args[0].dtype == types.float32 else DOUBLE
            align = 4 if element is FLOAT else 8
            kind = vector(element, width)
            zero = ir.Constant(kind, [0.0] * width)
            tops = [builder.add(row, INT64(r)) for r in range(n_rows if element is FLOAT else n_rows // 2)]
            lefts = [builder.add(column, INT64(LANES * v)) for v in range(n_vectors)]
            a_start, b_start, out_start = (
                address(context, builder, sig.args[k], arguments[k]) for k in (0, 1, 7)
            )
            a_tokens = [builder.gep(a_start, [_place(builder, token, begin, channels)]) for token in tops]
            b_tokens = [builder.gep(b_start, [_place(builder, token, begin, channels)]) for token in lefts]
            sums = [[variable(builder, zero) for _ in lefts] for _ in tops]
            with cgutils.for_range(builder, length) as loop:
                at = builder.mul(loop.index, INT64(LANES))
                loaded = [load(builder, token, at, kind, align) for token in b_tokens]
                for token, totals in zip(a_tokens, sums, strict=True):
                    factor = splat(builder, load(builder, token, at, element, align), width)
                    for part, total in zip(loaded, totals, strict=True):
                        name = f"llvm.fmuladd.{suffix(kind)}"
                        builder.store(call(builder, name, kind, [factor, part, builder.load(total)]), total)
            for token, totals in zip(tops, sums, strict=True):
                for place, total in zip(lefts, totals, strict=True):
                    at = builder.add(builder.mul(token, out_width), place)
                    before = builder.select(arguments[9], load(builder, out_start, at, kind, align), zero)
                    store(builder, builder.fadd(before, builder.load(total)), out_start, at, align)
                    if width == HALF:
                        store(builder, zero, out_start, builder.add(at, INT64(HALF)), align)
            return context.get_dummy_value()

        return signature, codegen

    return multiply


def _place(builder: Any, token: Any, channel: Any, n_channels: Any) -> Any:
    """Return where in a packed image a channel of a token lies."""
    block, lane = builder.ashr(token, INT64(LANES.bit_length() - 1)), builder.and_(token, INT64(LANES - 1))
    first = builder.add(builder.mul(block, n_channels), channel)
    return builder.add(builder.mul(first, INT64(LANES)), lane)

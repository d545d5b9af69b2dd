"""A block of the affinity product in registers: see `semrsm_dist.matching.lanes`."""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from semrsm_dist.matching.lanes import (
    DOUBLE,
    FLOAT,
    LANES,
    call,
    cgutils,
    intrinsic,
    load,
    pointer,
    splat,
    suffix,
    types,
    variable,
    vector,
)

_HAS_AVX512 = bool(llvm.get_host_cpu_features().get("avx512f", False))
PRODUCT_ROWS = 8 if _HAS_AVX512 else 4
"""Rows of one block of the product in float32, half as many in float64: what the registers hold."""
PRODUCT_VECTORS = 3 if _HAS_AVX512 else 1


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
            element = FLOAT if sig.args[0].dtype == types.float32 else DOUBLE
            align = 4 if element is FLOAT else 8
            n_rows = PRODUCT_ROWS if element is FLOAT else PRODUCT_ROWS // 2
            kind = vector(element)
            a_start = builder.gep(pointer(context, builder, sig.args[0], arguments[0]), [arguments[1]])
            b_start = pointer(context, builder, sig.args[2], arguments[2])
            columns = []
            for v in range(n_vectors):
                shift = builder.mul(arguments[4], ir.Constant(arguments[4].type, v))
                columns.append(builder.gep(b_start, [builder.add(arguments[3], shift)]))
            zero = ir.Constant(kind, [0.0] * LANES)
            sums = [[variable(builder, zero) for _ in range(n_vectors)] for _ in range(n_rows)]
            with cgutils.for_range(builder, arguments[5]) as loop:
                at = builder.mul(loop.index, ir.Constant(loop.index.type, LANES))
                loaded = [load(builder, column, at, kind, align) for column in columns]
                for r in range(n_rows):
                    place = builder.add(at, ir.Constant(at.type, r))
                    factor = splat(builder, load(builder, a_start, place, element, align))
                    for v in range(n_vectors):
                        name = f"llvm.fmuladd.{suffix(kind)}"
                        value = call(builder, name, kind, [factor, loaded[v], builder.load(sums[r][v])])
                        builder.store(value, sums[r][v])
            out_start = pointer(context, builder, sig.args[6], arguments[6])
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

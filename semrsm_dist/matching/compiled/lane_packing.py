"""Packing of tokens for the product, 16 at once: see `semrsm_dist.matching.compiled.lanes`."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from semrsm_dist.matching.compiled.lanes import (
    DOUBLE,
    FLOAT,
    INT32,
    INT64,
    LANES,
    address,
    cgutils,
    intrinsic,
    load,
    splat,
    store,
    types,
    variable,
    vector,
)


@intrinsic
def pack_lanes(
    typingctx: Any, z: Any, first: Any, n: Any, mean: Any, factors: Any, packed: Any, at: Any, squares: Any
) -> Any:
    """Write `n` tokens (1 to 16) to `packed`, centred and scaled, each channel of all together, then zeros.

    `z` holds the tokens one after the other from element `first` on, as many channels each as `mean` has; `packed` is
    written from element `at` on, rounded to float32. What is written is ``(z - mean) * factors[0] * factors[1]``.
    `squares` (3 x 16) receives sums over the channels, one after the other: of the squares of those numbers, of the
    same after rounding, and of what rounding took away.
    """
    integer = types.int64
    pair = types.UniTuple(types.float64, 2)
    signature = types.void(z, integer, integer, mean, pair, packed, integer, squares)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        start = address(context, builder, sig.args[0], arguments[0], arguments[1])
        centre, out, sums = (address(context, builder, sig.args[k], arguments[k]) for k in (3, 5, 7))
        single = sig.args[0].dtype == types.float32
        kind, align = (FLOAT, 4) if single else (DOUBLE, 8)
        means = context.make_array(sig.args[3])(context, builder, arguments[3])
        n_channels = cgutils.unpack_tuple(builder, means.shape)[0]
        last = builder.sub(arguments[2], INT64(1))
        lanes = [
            builder.select(builder.icmp_signed("<", INT64(k), last), INT64(k), last) for k in range(LANES)
        ]
        tokens = [builder.gep(start, [builder.mul(lane, n_channels)]) for lane in lanes]
        is_token = builder.icmp_signed(
            "<", ir.Constant(vector(INT64), list(range(LANES))), splat(builder, arguments[2])
        )
        scales = [splat(builder, builder.extract_value(arguments[4], k)) for k in range(2)]
        zeros = ir.Constant(vector(DOUBLE), [0.0] * LANES)
        totals = [variable(builder, zeros) for _ in range(3)]
        with cgutils.for_range(builder, n_channels) as loop:
            value = ir.Constant(vector(kind), ir.Undefined)
            for lane, token in enumerate(tokens):
                value = builder.insert_element(
                    value, load(builder, token, loop.index, kind, align), INT32(lane)
                )
            value = builder.fpext(value, vector(DOUBLE)) if single else value
            value = builder.fsub(value, splat(builder, load(builder, centre, loop.index, DOUBLE, 8)))
            for scale in scales:
                value = builder.fmul(value, scale)
            value = builder.select(is_token, value, zeros)
            rounded = builder.fptrunc(value, vector(FLOAT))
            place = builder.add(arguments[6], builder.mul(loop.index, INT64(LANES)))
            store(builder, rounded, out, place, 4)
            rounded = builder.fpext(rounded, vector(DOUBLE))
            for total, term in zip(totals, (value, rounded, builder.fsub(value, rounded)), strict=True):
                builder.store(builder.fadd(builder.load(total), builder.fmul(term, term)), total)
        for k, total in enumerate(totals):
            store(builder, builder.load(total), sums, INT64(k * LANES), 8)
        return context.get_dummy_value()

    return signature, codegen

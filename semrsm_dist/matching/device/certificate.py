r"""What a device's results prove, with every rounding accounted for.

Let Z_i and Z_j be two images' representations, mu their mean tokens, and A and B the centred tokens divided by powers
of two, `scale` being the product of the two. Zero tokens fill the image that has fewer up to the other's number n. For
every permutation P (see `semrsm_dist.matching.assignment.auction_pair`)::

    <Z_i, P Z_j>  =  common + scale <A, P B>,        common = min(S_i, S_j) mu_i . mu_j

**The affinity in the panel.** The device multiplies A' and B', which are A and B rounded to float32, so that
``A = A' + E`` and ``B = B' + F`` with norms of E and F that are known. Every entry of the panel differs from
``a' . b'`` by at most ``g |a'| |b'|``, where g depends on the product (`rounding_of`). Summed over the tokens that P
pairs, by Cauchy-Schwarz, the panel's sum differs from <A, P B> by at most::

    slack  =  g ||A'|| ||B'|| + ||E|| (||B'|| + ||F||) + ||F|| ||A'||

Products that underflow are off by 2^-150 each, which the margin below covers many times over: as no power of two
exceeds ``4 ||Z||``, it is more than 2^-52 in units of the panel.

**The product in float32** sums channels in slices: the chain of roundings is that of one slice and of the sums of
slices, at most k long. So ``g = k u / (1 - k u)`` with ``u = 2^-24`` (`rounding_of_product`).

**The product in halves**, on tensor cores, splits each token, times a power of two, as ``a' = h + l + r``, the first
two in half precision, and sums ``h.h' + h.l' + l.h'`` in float32. With C channels, let ``w = 2^-28 sqrt(C)``: the norm
of C numbers below 2^-14, which are taken for 0, relative to that of a token, whose largest number is at least 2^14. As
half precision rounds to one part in 2^11::

    |a' - h|  <=  d |a'|,        d = 2^-11 + w
    |l|       <=  m |a'|,        m = (1 + 2^-11) d
    |r|       <=  e |a'|,        e = 2^-11 d + w

From ``(a' - r).(b' - r') = (h + l).(h' + l')``, what is dropped is ``a'.r' + r.b' - r.r' + l.l'``, at most
``(2 e + e^2 + m^2) |a'| |b'|``.

How tensor cores round is not documented. What is taken for granted is that products are exact, and that a sum of some
numbers, in whatever order and groups, aligns each to the largest and then rounds their sum, losing less than one part
in 2^23 of the largest, or of the sum, each time, in whatever direction. (Measurements of V100, T4 and A100 found no
more: Fasi et al., Numerical behavior of NVIDIA tensor cores, 2021.) That is at most two roundings for each
product; with ``v = 2^-23``, n roundings lose ``G(n) = n v / (1 - n v)`` of the sum of the numbers' sizes. Such a sum is
of 16 channels: first the 32 small products, then the 16 large ones on top. Then N such sums, N being C / 16 rounded up,
are added in ordinary float32, whose roundings are half as large. By ``G(i) + G(j) + G(i) G(j) <= G(i + j)``, all of
this loses at most ``G(32 + N / 2) |h| |h'| + G(96 + N / 2) (|h| |l'| + |l| |h'|)``. Altogether::

    g  =  G(32 + N / 2) (1 + d)^2 + 2 G(96 + N / 2) (1 + d) m + 2 e + e^2 + m^2

which is 6e-6 for 256 channels, a little more than twice that of float32. Tokens whose numbers are all below 2^-100 in
the panel may be lost; the margin covers them as it covers underflow. What is taken for granted here, each worker tries
on its GPU before it trusts it (`semrsm_dist.matching.device.selfcheck`).

**The bound.** The device finds u and q with ``panel_st <= u_s + q_t``, exactly, as it rounds both up, and sums them
rounded up in float64. So ``dual >= <panel, P>`` for every P, and::

    <Z_i, P Z_j>  <=  common + scale (dual + slack) + margin

where `margin` covers the float64 arithmetic of this module and of the value (`float64_rounding`).

**The value** is that of the device's permutation in Z_i and Z_j as they were given, summed in float64: neither the
product nor the auction can make it wrong, only small. Bound and value prove a gap. Pairs whose gap exceeds what is
allowed are open.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.assignment.auction_pair import EXACT, Images, frame_pair, images_of_panel, is_flat
from semrsm_dist.matching.compiled.jit import compiled
from semrsm_dist.matching.compiled.lanes import borrowed
from semrsm_dist.matching.compiled.product import rounding_of_product
from semrsm_dist.matching.device.source import SLICE, STEP, TASK
from semrsm_dist.matching.panel import PackedPanel
from semrsm_dist.matching.result import TileResult

_LEAST_TARGET = 2.0**-90  # far above the smallest float32, also as a unit of an eps of one of many rows
_ROUNDINGS_IN_TOLERANCE = (
    8.0  # then the product takes a quarter of the gap allowed, as bound and value may both be off
)

Product = Literal["float32", "halves"]


def choose_product(n_channels: int, tolerance: float) -> Product:
    """Return the product to use: in halves, unless its rounding takes too much of the tolerance.

    It depends on nothing else, least of all on the GPU, so that a run's parameters determine it.

    >>> [choose_product(256, tolerance) for tolerance in (1e-3, 1e-4, 1e-5, 0.0)]
    ['halves', 'halves', 'float32', 'float32']
    >>> [choose_product(n_channels, 1e-4) for n_channels in (768, 2048)]
    ['halves', 'float32']
    """
    enough = _ROUNDINGS_IN_TOLERANCE * rounding_of("halves", n_channels) <= (tolerance or EXACT)
    return "halves" if enough else "float32"


def rounding_of(product: Product, n_channels: int) -> float:
    """Return g such that an affinity in the panel differs from that of the float32 tokens by at most g |a'| |b'|."""
    if product == "float32":
        return rounding_of_product(n_channels, SLICE)
    vanished = 2.0**-28 * math.sqrt(n_channels)
    high = 2.0**-11 + vanished
    low = (1.0 + 2.0**-11) * high
    rest = 2.0**-11 * high + vanished
    steps = -(-n_channels // STEP)
    large, small = (_tensor_rounding(2 * count + 0.5 * steps) for count in (STEP, 3 * STEP))
    return large * (1 + high) ** 2 + 2 * small * (1 + high) * low + 2 * rest + rest**2 + low**2


def _tensor_rounding(n_roundings: float) -> float:
    """Return what a chain of roundings on tensor cores loses of the sizes that are summed, at most."""
    return n_roundings * 2.0**-23 / (1.0 - n_roundings * 2.0**-23)


FRAME = np.dtype(
    [*((name, "f8") for name in ("allowed", "offset", "scale", "slack", "spread")), ("equal", "?")],
    align=True,
)
"""What `conclude` needs of a pair, in the terms of the module's docstring.

`offset` is ``common + margin``; no permutation is worth more than that plus `spread`, a bound from the norms of tokens;
`allowed` is the gap that may be left between bound and value; `equal`, whether both images have n tokens.
"""

_STEPS = 8  # of ease, an octave
_MOST_EASE = 160  # of an image, in steps: where what differs between its tokens is a millionth of it
_CACHED_BYTES = 2**15  # of the columns that all rows meet before the next columns: they stay in the cache


class Framed(NamedTuple):
    """Pairs of images before their product.

    Attributes
    ----------
    tasks : ndarray of TASK, (n,)
        What the kernels need to know, the hardest pairs about first: so all end at about the same time. The order
        changes no number.
    frames : ndarray of FRAME, (n,)
        What proves a result, in the same order.
    """

    tasks: NDArray[Any]
    frames: NDArray[Any]


def frame_pairs(
    rows: PackedPanel, columns: PackedPanel, tolerance: float, wanted: NDArray[np.bool_] | None = None
) -> Framed:
    """Return what norms and means imply for each image of `rows` (R) with each of `columns` (K), or for those `wanted`.

    `wanted` is (R, K).
    """
    wanted = np.ones((rows.n_images, columns.n_images), np.bool_) if wanted is None else wanted
    n_channels, n_pairs = rows.n_channels, np.count_nonzero(wanted)
    rounding = rounding_of(choose_product(n_channels, tolerance), n_channels)
    framed = Framed(np.empty(n_pairs, TASK), np.empty(n_pairs, FRAME))
    sides = images_of_panel(rows, _is_double(rows)), images_of_panel(columns, _is_double(columns))
    ease = _ease_of(rows), _ease_of(columns)
    _frame_wanted(sides, ease, np.ascontiguousarray(wanted), tolerance, rounding, framed)
    return framed


def _is_double(panel: PackedPanel) -> bool:
    return panel.raw.dtype == np.float64


def _ease_of(panel: PackedPanel) -> NDArray[np.int64]:
    """Return how easy each image makes its pairs: how far it exceeds its centred self, in steps of its logarithm.

    What an auction must prove, relative to the norms of the centred images, is about the tolerance times this of both.
    """
    with np.errstate(divide="ignore", invalid="ignore", under="ignore"):
        excess = np.sqrt(panel.squared_norms) / (panel.scales * panel.centred_norms)
        steps = np.nan_to_num(_STEPS * np.log2(excess), nan=_MOST_EASE)
    ease: NDArray[np.int64] = np.clip(steps, 0, _MOST_EASE).astype(np.int64)
    return ease


@compiled
def _frame_wanted(
    sides: tuple[Images, Images],
    ease: tuple[NDArray[np.int64], NDArray[np.int64]],
    wanted: NDArray[np.bool_],
    tolerance: float,
    rounding: float,
    framed: Framed,
) -> None:
    """Write tasks and frames of the wanted pairs, by ease."""
    rows, columns = borrowed(sides[0]), borrowed(sides[1])
    tasks, frames = borrowed(framed)
    n_columns = wanted.shape[1]
    at_once = max(1, _CACHED_BYTES // (8 * (columns.means.shape[1] + columns.token_norms.shape[1])))
    places = _first_places(ease[0], ease[1], wanted)
    for first in range(0, n_columns, at_once):
        for r in range(wanted.shape[0]):
            for c in range(first, min(first + at_once, n_columns)):
                if not wanted[r, c]:
                    continue
                k = places[ease[0][r] + ease[1][c]]
                places[ease[0][r] + ease[1][c]] += 1
                pair = frame_pair(rows, r, columns, c, tolerance, rounding)
                # Bound and value may both be off by slack and margin. Where that leaves less than twice the slack, an
                # auction would prove nothing; nor where the kernels' float32 would underflow.
                target = (pair.allowed - 2.0 * pair.margin) / pair.scale - 2.0 * pair.slack
                if is_flat(pair) or target <= max(2.0 * pair.slack, _LEAST_TARGET):
                    target = np.inf
                task, frame = tasks[k], frames[k]
                task.row, task.column, task.n_tokens = r, c, pair.n_tokens
                task.size, task.target = pair.size_i * pair.size_j, target
                frame.allowed, frame.offset = pair.allowed, pair.common + pair.margin
                frame.scale, frame.slack, frame.spread = pair.scale, pair.slack, pair.spread
                frame.equal = rows.token_counts[r] == columns.token_counts[c]


@compiled
def _first_places(
    ease_i: NDArray[np.int64], ease_j: NDArray[np.int64], wanted: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return how many wanted pairs are harder than those of each ease."""
    places = np.zeros(2 * _MOST_EASE + 2, np.int64)
    for r in range(wanted.shape[0]):
        for c in range(wanted.shape[1]):
            places[ease_i[r] + ease_j[c] + 1] += wanted[r, c]
    for k in range(1, places.size):
        places[k] += places[k - 1]
    return places


@compiled
def conclude(
    framed: Framed,
    outcomes: NDArray[Any],
    values: NDArray[np.float64],
    origin: tuple[int, int],
    results: TileResult,
    is_open: NDArray[np.bool_],
) -> None:
    """Write what the results of a device prove, and which pairs are open.

    Parameters
    ----------
    framed
        The pairs (n,).
    outcomes
        (n,) of OUTCOME: `dual` bounds the sums of the panel, infinite where there is no bound.
    values
        (n, 2), of the identity and of the permutation found.
    origin
        The place of the first row and column in the arrays to be written.
    results, is_open
        Arrays (R, K); what is not among the pairs stays as it is.
    """
    for k in range(framed.tasks.size):
        task, frame = framed.tasks[k], framed.frames[k]
        r, c = origin[0] + task.row, origin[1] + task.column
        identity, value = values[k, 0], values[k, 1]
        if frame.equal and identity > value:  # never worse than no matching
            value = identity
        above = min(frame.spread, frame.scale * (outcomes[k].dual + frame.slack))
        # Of one token, there is one permutation.
        bound = value if task.n_tokens == 1 else max(frame.offset + above, value)
        results.matched[r, c] = value
        results.upper_bound[r, c] = bound
        results.identity[r, c] = identity if frame.equal else np.nan
        is_open[r, c] = not bound - value <= frame.allowed

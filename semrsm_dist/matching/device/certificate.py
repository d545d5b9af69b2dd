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
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.bounds import float64_rounding, inner_products
from semrsm_dist.matching.compiled.product import rounding_of_product
from semrsm_dist.matching.device.source import SLICE, STEP
from semrsm_dist.matching.panel import PackedPanel
from semrsm_dist.matching.result import TileResult

_LEAST_TARGET = 2.0**-90  # far above the smallest float32, also as a unit of an eps of one of many rows
_EXACT = 1e-6  # what tolerance 0 requests, on the cosine scale: as on the CPU
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
    enough = _ROUNDINGS_IN_TOLERANCE * rounding_of("halves", n_channels) <= (tolerance or _EXACT)
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


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """What is known of pairs before their product: arrays (R, K), in the terms of the module's docstring.

    Attributes
    ----------
    n_tokens : ndarray of int64
        n, the tokens of the larger image.
    equal : ndarray of bool
        Whether both images have n tokens.
    allowed : ndarray
        The gap that may be left between bound and value.
    common, scale, size, slack, margin : ndarray
        As above; `size` is ``||A'|| ||B'||``.
    spread : ndarray
        No permutation is worth more than `common` plus this: a bound from the norms of tokens.
    """

    n_tokens: NDArray[np.int64]
    equal: NDArray[np.bool_]
    allowed: NDArray[np.float64]
    common: NDArray[np.float64]
    scale: NDArray[np.float64]
    size: NDArray[np.float64]
    slack: NDArray[np.float64]
    margin: NDArray[np.float64]
    spread: NDArray[np.float64]

    @property
    def flat(self) -> NDArray[np.bool_]:
        """Whether every permutation is within what is allowed, because the tokens vary too little."""
        flat: NDArray[np.bool_] = (self.n_tokens == 1) | (2.0 * (self.spread + self.margin) <= self.allowed)
        return flat

    @property
    def targets(self) -> NDArray[np.float64]:
        """The gap that the auction must prove in the panel; infinite where there is nothing for it to do.

        Bound and value may both be off by slack and margin. Where that leaves less than twice the slack, an auction
        would prove nothing; nor where the kernels' float32 would underflow.
        """
        target = (self.allowed - 2.0 * self.margin) / self.scale - 2.0 * self.slack
        return np.where(self.flat | (target <= np.maximum(2.0 * self.slack, _LEAST_TARGET)), np.inf, target)


def frame_pairs(rows: PackedPanel, columns: PackedPanel, tolerance: float) -> Frames:
    """Return what norms and means imply for each image of `rows` (R) with each of `columns` (K)."""
    counts_i, counts_j = rows.token_counts[:, None], columns.token_counts
    n_tokens, fewest = np.maximum(counts_i, counts_j), np.minimum(counts_i, counts_j)
    equal = counts_i == counts_j
    size_i, lost_i = (column.T for column in _filled_norms(rows, n_tokens.T))
    size_j, lost_j = _filled_norms(columns, n_tokens)
    scale = np.outer(rows.scales, columns.scales)
    norms = np.outer(np.sqrt(rows.squared_norms), np.sqrt(columns.squared_norms))
    largest = scale * (size_i + lost_i) * (size_j + lost_j)
    n_channels = rows.n_channels
    rounding = rounding_of(choose_product(n_channels, tolerance), n_channels)
    roundings64 = np.array([float64_rounding(n, n_channels) for n in range(rows.n_tokens + 1)])
    means = inner_products(rows.means, columns.means, np.full(n_tokens.shape, n_channels))
    return Frames(
        n_tokens=n_tokens,
        equal=equal,
        allowed=(tolerance or _EXACT) * norms,
        common=fewest * means,
        scale=scale,
        size=size_i * size_j,
        slack=rounding * (size_i * size_j) + lost_i * (size_j + lost_j) + lost_j * size_i,
        margin=roundings64[n_tokens] * norms,
        spread=np.where(equal, inner_products(rows.token_norms, columns.token_norms, n_tokens), largest),
    )


def _filled_norms(
    panel: PackedPanel, n_tokens: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the norms of A' and of E, (.., T), when images are filled up to `n_tokens` (.., T)."""
    missing = n_tokens - panel.token_counts
    size = np.sqrt(panel.centred_norms**2 + missing * panel.filling_norms**2)
    return size, np.sqrt(panel.rounding_norms**2 + missing * panel.filling_rounding_norms**2)


def conclude(
    frames: Frames, duals: NDArray[Any], identity: NDArray[Any], matched: NDArray[Any]
) -> tuple[TileResult, NDArray[np.bool_]]:
    """Return what the results of a device prove, arrays (R, K), and which pairs are open.

    Parameters
    ----------
    frames
        Of the pairs.
    duals
        Bounds for the sums of the panel; infinite where there is none.
    identity, matched
        The values of the identity and of the permutation found.
    """
    value = np.where(frames.equal, np.maximum(matched, identity), matched)  # never worse than no matching
    bound = frames.common + frames.margin
    bound += np.minimum(frames.scale * (duals + frames.slack), frames.spread)
    bound = np.where(frames.n_tokens == 1, value, np.maximum(bound, value))  # one token: one permutation
    proven = bound - value <= frames.allowed
    return TileResult(value, bound, np.where(frames.equal, identity, np.nan)), ~proven

r"""What a device's results prove, with every rounding accounted for.

Let Z_i and Z_j be two images' representations, mu their mean tokens, and A and B the centred tokens divided by powers
of two, `scale` being the product of the two. Zero tokens fill the image that has fewer up to the other's number n. For
every permutation P (see `semrsm_dist.matching.assignment.auction_pair`)::

    <Z_i, P Z_j>  =  common + scale <A, P B>,        common = min(S_i, S_j) mu_i . mu_j

**The affinity in the panel.** The device multiplies A' and B', which are A and B rounded to float32, so that
``A = A' + E`` and ``B = B' + F`` with norms of E and F that are known. It sums channels in float32, in slices: the
chain of roundings is that of one slice and of the sums of slices, at most k long. So every entry of the panel differs
from ``a' . b'`` by at most ``g |a'| |b'|``, with ``g = k u / (1 - k u)`` and ``u = 2^-24`` (`rounding_of_product`).
Summed over the tokens that P pairs, by Cauchy-Schwarz, the panel's sum differs from <A, P B> by at most::

    slack  =  g ||A'|| ||B'|| + ||E|| (||B'|| + ||F||) + ||F|| ||A'||

Products that underflow are off by 2^-150 each, which the margin below covers many times over: as no power of two
exceeds ``4 ||Z||``, it is more than 2^-52 in units of the panel.

**The bound.** The device finds u and q with ``panel_st <= u_s + q_t``, exactly, as it rounds both up, and sums them
rounded up in float64. So ``dual >= <panel, P>`` for every P, and::

    <Z_i, P Z_j>  <=  common + scale (dual + slack) + margin

where `margin` covers the float64 arithmetic of this module and of the value (`float64_rounding`).

**The value** is that of the device's permutation in Z_i and Z_j as they were given, summed in float64: neither the
product nor the auction can make it wrong, only small. Bound and value prove a gap. Pairs whose gap exceeds what is
allowed are open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.bounds import float64_rounding, inner_products
from semrsm_dist.matching.compiled.product import rounding_of_product
from semrsm_dist.matching.device.source import SLICE
from semrsm_dist.matching.panel import PackedPanel
from semrsm_dist.matching.result import TileResult

_LEAST_TARGET = 2.0**-90  # far above the smallest float32, also as a unit of an eps of one of many rows
_EXACT = 1e-6  # what tolerance 0 requests, on the cosine scale: as on the CPU


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
    rounding = rounding_of_product(n_channels, SLICE)
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

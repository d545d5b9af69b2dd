"""The matcher `projection`: matched on few random directions of the channels, valued on all channels."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import override

from semrsm_dist.fields import Count, Seed, Tolerance
from semrsm_dist.matching.bounds import inner_product, matched_value, norm_bound
from semrsm_dist.matching.compiled.jit import compiled
from semrsm_dist.matching.compiled.lane_sums import dot
from semrsm_dist.matching.matcher import Limits, Matcher, PairMatch, product_seconds
from semrsm_dist.matching.matchers.auction import Auction
from semrsm_dist.matching.panel import PackedPanel, Panel, prepare_packed_panel, prepare_panel, read_only


class Projection(Matcher):
    """Project all images' tokens on the same few random directions and match them there.

    The directions are orthonormal and drawn uniformly, from the number of channels, `channels` and the seed
    alone. The permutation is that of the projected tokens, its value that of the full ones. With
    ``Z = Z Q Q^T + E`` the inner product of a pair of images is that of its projections plus that of its
    remainders E, so the certificate of the projected match plus the `norm_bound` of the remainders bounds the
    optimum: loose where the directions miss much, tight with as many directions as channels, which gives the
    optimum.
    """

    name: ClassVar[str] = "projection"

    channels: Annotated[Count, Limits("channels")] = 32
    """How many directions (k)."""
    seed: Seed = 0
    """Seed of the random directions."""
    tolerance: Tolerance = 0.0
    """How far the match of the projections may be below its optimum, on their cosine scale; 0 is exact in float32
    (1e-6)."""

    @functools.cached_property
    def inside(self) -> Auction:
        """The matcher of the projections."""
        return Auction(tolerance=self.tolerance)

    @override
    def prepare(self, z: ArrayLike, token_counts: ArrayLike | None = None) -> Panel:
        panel = super().prepare(z, token_counts)
        basis, _ = draw_basis(panel.n_channels, self.channels, self.seed)
        projected = np.empty((panel.n_images, panel.n_tokens, len(basis)))
        means, token_norms = np.empty_like(panel.means), np.empty_like(panel.token_norms)
        for t, image in enumerate(panel.raw):
            project(image, basis, projected[t])
            remainder = prepare_panel((image - projected[t] @ basis)[None])
            means[t], token_norms[t] = remainder.means[0], remainder.token_norms[0]
        added = read_only(means), read_only(token_norms), prepare_packed_panel(projected)
        return panel.extended(ProjectedPanel, *added)

    @override
    def compile(self) -> None:
        self.inside.compile()
        super().compile()

    @override
    def panel_bytes(self, n_images: int, n_tokens: int, n_channels: int) -> int:
        k = min(self.channels, n_channels)
        wider = 4 * n_images * n_tokens * k  # projections are kept in float64
        remainder = 8 * n_images * (n_tokens + n_channels)
        whole = super().panel_bytes(n_images, n_tokens, n_channels)
        return whole + self.inside.panel_bytes(n_images, n_tokens, k) + wider + remainder

    @override
    def pair_seconds(self, n_tokens: int, n_channels: int) -> float:
        k = min(self.channels, n_channels)
        product = product_seconds(n_tokens, n_tokens, k)
        return product + 1e-8 * math.pow(n_tokens, 1.9) + 1e-9 * n_tokens * n_channels

    @override
    def workspace_bytes(self, n_tokens: int, n_channels: int) -> int:
        return self.inside.workspace_bytes(n_tokens, min(self.channels, n_channels)) + 8 * n_tokens

    @override
    def match_prepared(self, rows: Panel, r: int, columns: Panel, c: int) -> PairMatch:
        left, right = cast(ProjectedPanel, rows), cast(ProjectedPanel, columns)
        _, bound, permutation = self.inside.match_prepared(left.projected, r, right.projected, c)
        value = matched_value(rows.raw[r], columns.raw[c], permutation)
        norms = float(np.sqrt(rows.squared_norms[r]) * np.sqrt(columns.squared_norms[c]))
        bound += rows.n_tokens * inner_product(left.remainder_means[r], right.remainder_means[c])
        bound += inner_product(left.remainder_norms[r], right.remainder_norms[c])
        bound += draw_basis(rows.n_channels, self.channels, self.seed).rounding * norms
        return value, max(value, min(bound, norm_bound(rows, r, columns, c))), permutation


@dataclass(frozen=True, slots=True, eq=False)
class ProjectedPanel(Panel):
    """A panel with its projections on k directions."""

    remainder_means: NDArray[np.float64]
    """(T, C) the mean token of what the projection leaves."""
    remainder_norms: NDArray[np.float64]
    """(T, S) norms of the tokens of what it leaves, after subtracting the mean, in descending order."""
    projected: PackedPanel
    """The projections (T, S, k), in float64: rounding them would spoil the bound."""


class Basis(NamedTuple):
    """Orthonormal directions, and their error."""

    directions: NDArray[np.float64]
    """(k, C), one per row."""
    rounding: float
    """The values of both parts of a pair add up to its value to within `rounding` of the norms."""


@functools.lru_cache(maxsize=64)
def draw_basis(n_channels: int, k: int, seed: int) -> Basis:
    """Return k random directions, the unit vectors where k is n_channels or more.

    The Q of a Gaussian matrix whose R has a positive diagonal is uniformly distributed (F. Mezzadri, How to
    generate random matrices from the classical compact groups, Notices of the AMS 54 (2007), 592-604).
    """
    k = min(k, n_channels)
    if k == n_channels:
        directions = np.eye(n_channels)
    else:
        q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(n_channels, k)))
        directions = np.ascontiguousarray((q * np.sign(np.diag(r))).T)
    # Rounding of the projection and of the remainder, each times the norm of Q, then what Q is not orthonormal.
    unit = 4.0 * np.sqrt(k) * (n_channels + k + 16.0) * 2.0**-52
    defect = float(np.linalg.norm(directions @ directions.T - np.eye(k)))
    return Basis(read_only(directions), unit + defect)


@compiled
def project(z: NDArray[np.floating[Any]], directions: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """Write the inner products (S, k) of the tokens of z (S, C) and directions (k, C) into `out`."""
    n_tokens, n_channels = z.shape
    flat, basis = z.ravel(), directions.ravel()
    for s in range(n_tokens):
        for q in range(directions.shape[0]):
            out[s, q] = dot(flat, s * n_channels, basis, q * n_channels, n_channels)

"""What a certificate takes for granted of a GPU, tried on that GPU before it is trusted."""

from __future__ import annotations

import numpy as np

from semrsm_dist.errors import WorkerLostError
from semrsm_dist.matching.bounds import float64_rounding
from semrsm_dist.matching.compiled.product import padded
from semrsm_dist.matching.device import source
from semrsm_dist.matching.device.certificate import Product, rounding_of
from semrsm_dist.matching.device.solver import Device, Layout, multiply, send_panel, solve
from semrsm_dist.matching.panel import PackedPanel, prepare_packed_panel

_TOLERANCE = 1e-3


def require_sound(device: Device, name: str) -> None:
    """Raise WorkerLostError unless products are as precise as certificates take them to be, and bounds are bounds."""
    worst = max(worst_product(device, "float32"), worst_product(device, "halves"))
    if not worst <= 1.0:
        raise WorkerLostError(
            f"{name} computes products less precisely than its certificates need (error {worst:.2g} times what is "
            "allowed for): nothing was matched there; use device: cpu, and report this"
        )
    if not encloses_values(device):
        raise WorkerLostError(
            f"{name} returned values above its own bounds: nothing was matched there; use device: cpu, and report this"
        )


def worst_product(device: Device, product: Product) -> float:
    """Return the largest error of products of tokens of very different sizes, relative to what is allowed for it.

    Some tokens are multiplied by themselves: all terms of such a sum are positive, and its roundings add up.
    """
    worst = 0.0
    for n_channels in (3, 40, 333):
        right = _make_panel(5, n_channels)
        left = right.part(slice(3))
        sent = [send_panel(device, panel, Layout(product, double=False)) for panel in (left, right)]
        affinity = multiply(device, sent[0], sent[1], padded(left.n_tokens), n_channels)
        a, b = (_unpack(panel) for panel in (left, right))
        error = np.abs(device.fetch(affinity, (len(a), len(b)), np.float32) - a @ b.T)
        lengths = np.outer(*(np.sqrt(np.einsum("sc,sc->s", x, x)) for x in (a, b)))
        allowed = rounding_of(product, n_channels) * lengths + 1e-15 * lengths + 2.0**-140
        worst = max(worst, float((error / allowed).max()))
    return worst


def encloses_values(device: Device) -> bool:
    """Return whether no bound lies below the value of a random permutation, or of the permutation found."""
    panel, rng = _make_panel(6, 40), np.random.default_rng(1)
    found, _ = solve(device, panel, panel, _TOLERANCE)
    z = panel.raw.astype(np.float64)
    others = np.max(
        [np.einsum("isc,jsc->ij", z[:, rng.permutation(z.shape[1])], z) for _ in range(20)], axis=0
    )
    norms = np.sqrt(np.outer(panel.squared_norms, panel.squared_norms))
    rounding = 2 * float64_rounding(panel.n_tokens, panel.n_channels) * norms
    return bool((np.maximum(others, found.matched) <= found.upper_bound + rounding).all())


def _make_panel(n_images: int, n_channels: int) -> PackedPanel:
    """Return images whose tokens differ in size by many orders of magnitude."""
    rng = np.random.default_rng(n_channels)
    z = rng.normal(size=(n_images, 20, n_channels)) * 10.0 ** rng.uniform(-5, 0, (n_images, 20, 1))
    return prepare_packed_panel(z.astype(np.float32))


def _unpack(panel: PackedPanel) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return the tokens (T * padded(S), C) that are multiplied."""
    groups = panel.packed.reshape(-1, panel.n_channels, source.GROUP)
    return groups.swapaxes(1, 2).reshape(-1, panel.n_channels).astype(np.float64)

"""The agreement of layers as words and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from semrsm_dist.errors import counted
from semrsm_dist.evaluation.agreement import Estimate
from semrsm_dist.evaluation.retrieval import SEMANTIC, SPATIAL
from semrsm_dist.experiments.evidence import note_sample
from semrsm_dist.experiments.tables import write_interval
from semrsm_dist.plot.looks import (
    DIFFERENCE,
    KINDS,
    count_rows,
    draw_kinds,
    make_panels,
    share_legend,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WITHIN = "within"
PANELS_ACROSS = 3
Places = tuple[tuple[str, str], tuple[str, str]]


@dataclass(frozen=True, slots=True)
class MostChanged:
    """The layer whose RSM agrees least with its own before, by CKA, for each kind.

    `share` is the share of resamples in which it is that layer, `apart` that in which the kinds name different layers:
    NaN without resamples in which all layers have a value.
    """

    layer: dict[str, str]
    share: dict[str, float]
    apart: float


def find_most_changed(found: Mapping[Places, Mapping[str, Estimate]]) -> MostChanged | None:
    """Return which layer changed most by CKA of each kind of RSM; None where no layers of one name are compared."""
    layers = [a for (a, kind), (b, other) in found if a == b and kind == other == KINDS[0]]
    estimates = {
        kind: [found[(layer, kind), (layer, kind)]["cka"] for layer in layers] for kind in KINDS if layers
    }
    if len(layers) < 2 or any(np.isnan(each.value) for some in estimates.values() for each in some):
        return None
    least = {kind: int(np.argmin([each.value for each in some])) for kind, some in estimates.items()}
    replicates = {kind: np.stack([each.replicates for each in some]) for kind, some in estimates.items()}
    # CKA is undefined in a resample of fewer than four different images.
    defined = ~np.any([np.isnan(each).any(axis=0) for each in replicates.values()], axis=0)
    resampled = {kind: np.argmin(each[:, defined], axis=0) for kind, each in replicates.items()}
    count = int(defined.sum())
    return MostChanged(
        layer={kind: layers[index] for kind, index in least.items()},
        share={kind: float(np.mean(resampled[kind] == least[kind])) if count else np.nan for kind in KINDS},
        apart=float(np.mean(resampled[KINDS[0]] != resampled[KINDS[1]])) if count else np.nan,
    )


def write_text(table: pd.DataFrame, changed: Mapping[str, MostChanged | None]) -> str:
    """Return how far the kinds agree within each layer, and what each says of the layers that changed."""
    lines = ["CKA (debiased) of the semantic and the spatio-semantic RSM of a layer:"]
    within = table[(table.comparison == WITHIN) & (table.measure == "cka")]
    own = within[(within.layer_a == within.layer_b) & (within.kind_a != within.kind_b)]
    lines += [f"  {row['layer_a']:<12} {write_interval(row, form='.3f')}" for _, row in own.iterrows()]
    for name in table.comparison.unique():
        if name == WITHIN:
            continue
        rows = table[(table.comparison == name) & (table.measure == "cka") & (table.layer_a == table.layer_b)]
        lines += ["", f"CKA of each layer, {name}, with the network before ({rows.n_images.max()} images):"]
        for layer, parts in rows.groupby("layer_a", sort=False):
            by_kind = {row["kind_a"]: write_interval(row, form=".3f") for _, row in parts.iterrows()}
            lines.append(
                f"  {layer:<12} "
                + "   ".join(f"{kind} {by_kind[kind]}" for kind in (*KINDS, DIFFERENCE) if kind in by_kind)
            )
        lines.append("  " + _conclude(changed.get(name)))
    if (table.comparison != WITHIN).any():
        lines += [
            "",
            "Intervals are over images: each network is one, and another training would give another.",
        ]
    undefined = table[table.value.isna()]
    if len(undefined):
        lines += [
            "",
            f"undefined: {len(undefined)} of {len(table)} values, of matrices that are constant, too small or, for "
            "CKA, incomplete",
        ]
    left_out = int(table.n_left_out.max())
    if left_out:
        lines += ["", f"left out: up to {counted(left_out, 'pair')} without a similarity"]
    return "\n".join(lines + note_sample(table))


def _conclude(changed: MostChanged | None) -> str:
    if changed is None:
        return "no layers of one name to order, or CKA undefined in one of them"
    named = ", ".join(
        f"{kind} {changed.layer[kind]} (in {_percent(changed.share[kind])} of resamples)" for kind in KINDS
    )
    if changed.layer[KINDS[0]] == changed.layer[KINDS[1]]:
        verdict = "the same conclusion"
    else:
        verdict = f"another conclusion, in {_percent(changed.apart)} of resamples"
    return f"changed most: {named}: {verdict}"


def _percent(share: float) -> str:
    return "an unknown share" if np.isnan(share) else f"{share:.0%}"


def draw_layers(figure: Figure, table: pd.DataFrame) -> None:
    """Draw the CKA of layers within the network as maps, and before and after as lines with intervals."""
    others = [name for name in table.comparison.unique() if name != WITHIN]
    down = count_rows(len(others), PANELS_ACROSS) if others else 0
    figure.set_size_inches(3.4 * PANELS_ACROSS, 3.3 * (1 + down) + 0.4 * bool(others))
    parts = figure.subfigures(1 + bool(others), 1, squeeze=False, height_ratios=[1, down][: 1 + bool(others)])
    cka = table[table.measure == "cka"]
    within = cka[cka.comparison == WITHIN]
    low = float(np.nanmin([0.0, within.value.min()]))
    pairs = ((SPATIAL, SPATIAL), (SEMANTIC, SEMANTIC), (SEMANTIC, SPATIAL))
    for panel, kinds in zip(make_panels(parts[0, 0], len(pairs), across=PANELS_ACROSS), pairs, strict=True):
        _draw_map(panel, within, kinds, low)
    if others:
        panels = make_panels(parts[1, 0], len(others), across=PANELS_ACROSS)
        for panel, name in zip(panels, others, strict=True):
            rows = cka[(cka.comparison == name) & (cka.layer_a == cka.layer_b)]
            rows = rows.assign(kind=rows.kind_a, layer=rows.layer_a)
            draw_kinds(panel, rows, list(rows.layer.unique()))
            panel.set_title(name, fontsize=9, parse_math=False)
        panels[0].set_ylabel("CKA with the network before", fontsize=8)
        share_legend(parts[1, 0], panels[:1], ncols=2)


def _draw_map(panel: Axes, within: pd.DataFrame, kinds: tuple[str, str], low: float) -> None:
    layers = list(dict.fromkeys([*within.layer_a, *within.layer_b]))
    values = np.full((len(layers), len(layers)), np.nan)
    if kinds[0] == kinds[1]:
        np.fill_diagonal(values, 1.0)
    for row in within.itertuples():
        for (layer_a, kind_a), (layer_b, kind_b) in (
            ((row.layer_a, row.kind_a), (row.layer_b, row.kind_b)),
            ((row.layer_b, row.kind_b), (row.layer_a, row.kind_a)),
        ):
            if (kind_a, kind_b) == kinds:
                values[layers.index(layer_a), layers.index(layer_b)] = row.value
    panel.imshow(values, vmin=low, vmax=1.0, cmap="viridis")
    if len(layers) <= 8:
        for i, j in np.argwhere(~np.isnan(values)):
            colour = "black" if values[i, j] > (1.0 + low) / 2 else "white"
            panel.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=7, color=colour)
    panel.set_xticks(range(len(layers)), layers, rotation=30, ha="right", fontsize=8)
    panel.set_yticks(range(len(layers)), layers, fontsize=8)
    panel.set_xlabel(kinds[1], fontsize=8)
    panel.set_ylabel(kinds[0], fontsize=8)
    panel.set_title("CKA between layers", fontsize=9)

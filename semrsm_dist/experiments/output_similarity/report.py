"""The correlations of RSMs with the classifier's outputs as words and as a picture."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pandas as pd

from semrsm_dist.errors import counted
from semrsm_dist.experiments.evidence import note_sample
from semrsm_dist.experiments.tables import count_verdicts, write_grid
from semrsm_dist.plot.looks import DIFFERENCE, draw_kinds, make_panels, share_legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEANINGS = {
    "classes": "one of the classes (softmax)",
    "labels": "yes or no to each label (sigmoid; the divergence is the mean over labels)",
    "given": "given probabilities",
}


def write_text(table: pd.DataFrame) -> str:
    """Return the Pearson correlations as the paper tabulates them, and how often matching changes them for sure."""
    first = table.iloc[0]
    shown = table[(table.measure == "pearson") & (table.kind != DIFFERENCE)]
    lines = [
        "Pearson correlation of similarity and JSD of the outputs (more negative is better), "
        f"{first.n_images} images; outputs: {MEANINGS[first.outputs]}",
        "",
        write_grid(shown, "value", "layer", ["kernel", "kind"]),
        "",
    ]
    for measure, rows in table[table.kind == DIFFERENCE].groupby("measure", sort=False):
        worse, better, undecided = count_verdicts(rows)
        undefined = int(rows.value.isna().sum())
        lines.append(
            f"{measure}: of {len(rows)} layers x kernels, matching makes it more negative in {better}, less in "
            f"{worse}, neither for sure in {undecided - undefined}"
            + (f", undefined in {undefined}" if undefined else "")
            + f" ({first.confidence:.0%} intervals over images)"
        )
    return "\n".join([*lines, *_caveats(table)])


def _caveats(table: pd.DataFrame) -> list[str]:
    lines = []
    kept = table[table.kind != DIFFERENCE]
    if kept.value.isna().any():
        where = kept[kept.value.isna()]
        lines.append(
            f"undefined: {len(where)} of {len(kept)} correlations, as the outputs or the similarities are the same for "
            "all pairs, or no pair is left"
        )
    left_out = kept.groupby(["layer", "kernel"], sort=False).n_left_out.max()
    for (layer, kernel), count in left_out[left_out > 0].items():
        lines.append(
            f"left out: {counted(count, 'pair')} of {layer}, {kernel}, whose similarity is undefined"
        )
    if (kept.n_resampled < kept.n_images).any() and (kept.resamples > 0).all():
        lines.append(f"intervals: from {kept.n_resampled.max()} of the images, scaled to all of them")
    return lines + note_sample(kept)


def draw_correlations(figure: Figure, table: pd.DataFrame) -> None:
    """Draw a panel for each measure and kernel: the correlation over the layers, with intervals."""
    measures, kernels, layers = (list(table[name].unique()) for name in ("measure", "kernel", "layer"))
    figure.set_size_inches(3.4 * len(kernels) + 0.6, 2.9 * len(measures) + 0.4)
    panels = make_panels(figure, len(measures) * len(kernels), across=len(kernels), sharex=True, sharey="row")
    for panel, (measure, kernel) in zip(panels, product(measures, kernels), strict=True):
        draw_kinds(panel, table[(table.measure == measure) & (table.kernel == kernel)], layers)
        panel.axhline(0, color="0.6", lw=0.8, zorder=0)
        panel.set_title(f"{kernel}, {measure}", fontsize=9)
    figure.supylabel("correlation with output JSD (lower is better)", fontsize=9)
    share_legend(figure, panels[:1], ncols=2)

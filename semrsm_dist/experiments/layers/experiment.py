"""How alike the RSMs of all layers are, and which layers change when a network is pruned or trained on.

All layers and both kinds of RSM are compared with each other within a network, and layer by layer between two networks
on the same images: by CKA, and by the correlation of the entries (Pearson, Spearman, Kendall's tau-a), as in
representational similarity analysis. Wald et al. (2024) find semantic and spatio-semantic RSMs to differ most in early
layers. What semantic RSMs say of a network before and after pruning and fine-tuning they leave open.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd

from semrsm_dist.config.schema import RunConfig, load_config
from semrsm_dist.errors import InputError
from semrsm_dist.evaluation.agreement import MEASURES, Estimate, agreement
from semrsm_dist.evaluation.entries import Entries
from semrsm_dist.experiments.evidence import Findings
from semrsm_dist.experiments.layer_features import LayerFeatures
from semrsm_dist.experiments.layers import LayersParameters
from semrsm_dist.experiments.layers.report import WITHIN, draw_layers, find_most_changed, write_text
from semrsm_dist.experiments.layers.variants import (
    ORIGINAL,
    default_variants,
    derive_config,
    require_network,
)
from semrsm_dist.experiments.runs import complete_run, require_symmetric
from semrsm_dist.plot.looks import DIFFERENCE
from semrsm_dist.progress import Reporter
from semrsm_dist.results.run import Run
from semrsm_dist.store.tiles import KINDS

ALIGNMENTS = ("cka", "cka-biased")

Place = tuple[str, str]
"""Layer and kind of an RSM."""


def evaluate(config: RunConfig, parameters: LayersParameters, reporter: Reporter) -> Findings:
    """Compare the RSMs of all layers within a network, and with those of other networks on the same images."""
    chosen = default_variants(config) if parameters.variants is None else parameters.variants
    require_network(config, chosen)
    second = None if parameters.other is None else load_config(parameters.other)
    resamples, seed, kernel = parameters.resamples, parameters.seed, parameters.kernel
    for one in filter(None, (config, second)):
        require_symmetric(one, "layers")
    comparisons = _run_all(config, second, chosen, parameters.images, reporter)
    rows: list[dict[str, Any]] = []
    changed: dict[str, Any] = {}
    total = sum(len(each.places()) for each in comparisons)
    with reporter.stage("evaluation", total, "comparisons") as shown:
        for each in comparisons:
            each.require_same_images()
            found = {}
            for places in each.places():
                found[places] = each.compare(*places, kernel, resamples, seed)
                shown.advance(1)
            rows += each.tabulate(found)
            changed[each.name] = find_most_changed(found)
    table = pd.DataFrame(rows).assign(kernel=kernel, resamples=resamples, seed=seed)
    return Findings(
        table,
        lambda figure: draw_layers(figure, table),
        write_text(table, changed),
        {"other": None if second is None else second.model_dump(mode="json"), "variants": list(chosen)},
    )


def _run_all(
    config: RunConfig, second: RunConfig | None, variants: Sequence[str], images: int, reporter: Reporter
) -> list[Comparison]:
    """Compute what is missing of all runs, and return what is to be compared with what."""
    run = complete_run(config, reporter)
    comparisons = [Comparison(WITHIN, run, None)]
    if second is not None:
        comparisons.append(Comparison(str(second.run), run, complete_run(second, reporter)))
    if variants:
        runs = {}
        for name, derived in [(name, derive_config(config, name, images)) for name in (ORIGINAL, *variants)]:
            runs[name] = complete_run(derived, reporter)
        comparisons += [Comparison(name, runs[ORIGINAL], runs[name]) for name in variants]
    for one in {id(run): run for each in comparisons for run in (each.run, each.other) if run}.values():
        for layer in one.requested_layers:
            if LayerFeatures(one, layer).has_unequal_tokens():
                reporter.note(
                    f"{one.directory.path}: layer {layer}: images differ in their number of tokens, so CKA of the "
                    "spatio-semantic RSM is undefined; it is taken of the semantic one alone, and correlations of the "
                    "pairs with a similarity"
                )
    return comparisons


@dataclass(frozen=True)
class Comparison:
    """The RSMs of a run compared with each other, or with those of a second run."""

    name: str
    run: Run
    other: Run | None

    def require_same_images(self) -> None:
        """Raise InputError unless both runs are of the same images in the same order."""
        if self.other is None:
            return
        one, two = self.run.manifest(), self.other.manifest()
        if one.digest() != two.digest():
            raise InputError(
                f"{self.other.directory.path}: its {two.n_readable} images are not the {one.n_readable} of "
                f"{self.run.directory.path} in the same order, so their RSMs cannot be compared entry by entry; run "
                "both on the same data"
            )

    def places(self) -> list[tuple[Place, Place]]:
        """Return which RSMs are compared: within a run all with each other, between two those of one kind."""
        own = list(product(self.run.requested_layers, KINDS))
        if self.other is None:
            return list(combinations(own, 2))
        return [
            ((a, kind), (b, kind))
            for kind in KINDS
            for a, b in product(self.run.requested_layers, self.other.requested_layers)
        ]

    def compare(
        self, place: Place, other: Place, kernel: str, resamples: int, seed: int
    ) -> dict[str, Estimate]:
        """Return all measures of how two RSMs agree."""
        one, two = (self.run, *place), (self.other or self.run, *other)
        pairs = Entries(
            one[0].similarity_rows(one[1], kernel, one[2]),
            two[0].similarity_rows(two[1], kernel, two[2]),
            self.run.manifest().n_readable,
            rows_at_once=self.run.chunk_size(place[0]),
        )
        measures = [
            name for name in MEASURES if name not in ALIGNMENTS or (_is_whole(*one) and _is_whole(*two))
        ]
        found = agreement(pairs, measures, resamples=resamples, seed=seed)
        undefined = {
            name: Estimate(np.nan, np.full(resamples if name == "cka" else 0, np.nan), 0, pairs.n_all, 0)
            for name in ALIGNMENTS
        }
        return {name: found.get(name) or undefined[name] for name in MEASURES}

    def tabulate(self, found: dict[tuple[Place, Place], dict[str, Estimate]]) -> Iterator[dict[str, Any]]:
        """Yield a row for each measure of each two RSMs; between runs, for layers of one name, how the kinds differ."""
        n_images = self.run.manifest().n_readable
        for ((layer_a, kind_a), (layer_b, kind_b)), estimates in found.items():
            for measure, estimate in estimates.items():
                places = {"layer_a": layer_a, "kind_a": kind_a, "layer_b": layer_b, "kind_b": kind_b}
                yield {"comparison": self.name, **places, **_row(measure, estimate, n_images)}
        for layer in [] if self.other is None else self.run.requested_layers:
            if ((layer, "semantic"), (layer, "semantic")) not in found:
                continue
            semantic, spatial = (
                found[(layer, kind), (layer, kind)] for kind in ("semantic", "spatio-semantic")
            )
            for measure, estimate in semantic.items():
                places = {"layer_a": layer, "kind_a": DIFFERENCE, "layer_b": layer, "kind_b": DIFFERENCE}
                difference = estimate.minus(spatial[measure])
                yield {"comparison": self.name, **places, **_row(measure, difference, n_images)}


def _is_whole(run: Run, layer: str, kind: str) -> bool:
    """Return whether all images of an RSM that are similar to themselves are to all others, which CKA requires."""
    return kind == "semantic" or not LayerFeatures(run, layer).has_unequal_tokens()


def _row(measure: str, estimate: Estimate, n_images: int) -> dict[str, Any]:
    return {"measure": measure, **estimate.columns(), "n_images": n_images}

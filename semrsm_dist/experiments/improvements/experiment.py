"""What makes matching better, and whether anything makes it better than pooling.

Each family of changes has settings. Half of the queries, by a hash of their names, choose the setting of each family,
pooling included; the other half are reported. So nothing is tuned on what is reported, and the rivals are tuned as
well. Differences are paired by query; p-values are adjusted for the number of families and layers by Holm's method.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from semrsm_dist.config.schema import RunConfig
from semrsm_dist.errors import InputError
from semrsm_dist.evaluation.bootstrap import draw_counts, mean_interval, percentile_interval
from semrsm_dist.evaluation.regression import bootstrap_p_values, holm
from semrsm_dist.evaluation.retrieval import SEMANTIC
from semrsm_dist.experiments.evidence import Findings
from semrsm_dist.experiments.improvements import ImprovementsParameters
from semrsm_dist.experiments.improvements.candidates import (
    POOLING,
    Bench,
    Candidate,
    combine_layers,
    list_candidates,
)
from semrsm_dist.experiments.improvements.report import (
    CHOOSING,
    REPORTED,
    draw_improvements,
    write_text,
)
from semrsm_dist.experiments.improvements.treatments import note_grid
from semrsm_dist.experiments.layer_features import LayerFeatures
from semrsm_dist.experiments.near_duplicates import find_groups, make_task
from semrsm_dist.experiments.query_scores import Scores, score_rows
from semrsm_dist.experiments.runs import complete_run, evaluation_folder
from semrsm_dist.machine import available_cpus
from semrsm_dist.progress import Reporter

Key = tuple[str, str]
"""Layer and family."""


def evaluate(config: RunConfig, parameters: ImprovementsParameters, reporter: Reporter) -> Findings:
    """Try families of changes to matching on a run of images with labels."""
    run = complete_run(config, reporter)
    groups = find_groups(run, parameters.near_duplicates)
    task = make_task(run, groups)
    side = run.record.row_side
    names = [
        group or name for group, name in zip(groups.names[side], run.manifest(side).image_ids(), strict=True)
    ]
    chooses = choose_half(names)
    folder = evaluation_folder(config) / "improvements"
    bench = Bench(config, parameters, folder, reporter, config.workers or available_cpus())
    tried: list[tuple[Candidate, Scores]] = []
    for layer in run.requested_layers:
        for candidate in list_candidates(run, layer, bench):
            tried.append((candidate, score_rows(candidate.read_rows, task, run.chunk_size(layer))))
    if len(run.requested_layers) > 1:
        at_once = run.chunk_size(run.requested_layers[0])
        for candidate in combine_layers([one for one, _ in tried], len(run.requested_layers)):
            tried.append((candidate, score_rows(candidate.read_rows, task, at_once)))
    judged = ~np.all([np.isnan(scores) for _, scores in tried], axis=0)
    if not (judged & chooses).any() or not (judged & ~chooses).any():
        raise InputError(
            f"{config.run}: of {len(names)} queries, one half has none that can be judged; give more images with "
            "labels, outside one group of near-duplicates"
        )
    table = _tabulate(tried, chooses, parameters)
    notes = [groups.note]
    if parameters.prior:
        notes += [note_grid(LayerFeatures(run, layer)) for layer in run.requested_layers]
    return Findings(
        table,
        lambda figure: draw_improvements(figure, table),
        write_text(table, [note for note in notes if note]),
    )


def choose_half(names: Sequence[str]) -> NDArray[np.bool_]:
    """Return which of the queries choose settings, by a hash of their names: the others are reported."""
    return np.array([hashlib.sha256(name.encode()).digest()[0] % 2 == 0 for name in names])


def _tabulate(
    tried: Sequence[tuple[Candidate, Scores]], chooses: NDArray[np.bool_], parameters: ImprovementsParameters
) -> pd.DataFrame:
    """Return a row for each setting on the half that chooses, and for each family's chosen one on the other half."""
    rows = [
        {
            "quantity": CHOOSING,
            "layer": one.layer,
            "family": one.family,
            "setting": one.setting,
            "gap": one.gap,
            "value": _mean(scores[chooses]),
            "n": int(np.count_nonzero(~np.isnan(scores[chooses]))),
        }
        for one, scores in tried
    ]
    best = _choose(tried, chooses)
    settings: dict[str, Any] = {"resamples": parameters.resamples, "seed": parameters.seed}
    for (layer, family), (one, scores) in best.items():
        reported = scores[~chooses]
        place = {"layer": layer, "family": family, "setting": one.setting, "gap": one.gap}
        rows.append(
            {
                "quantity": REPORTED,
                **place,
                **mean_interval(reported, **settings).columns(),
                "n": int(np.count_nonzero(~np.isnan(reported))),
            }
        )
        for against in (SEMANTIC, POOLING):
            if family != against:
                gain = reported - best[layer, against][1][~chooses]
                rows.append(
                    {"quantity": REPORTED, **place, "against": against, **_difference(gain, **settings)}
                )
    table = pd.DataFrame(rows).assign(**settings)
    for against in (SEMANTIC, POOLING):
        compared = table["against"] == against
        table.loc[compared, "p_holm"] = holm(table.loc[compared, "p"])
    return table


def _choose(
    tried: Sequence[tuple[Candidate, Scores]], chooses: NDArray[np.bool_]
) -> Mapping[Key, tuple[Candidate, Scores]]:
    """Return the setting of each layer and family with the best mean over the half that chooses, ties the first."""
    best: dict[Key, tuple[Candidate, Scores]] = {}
    for one, scores in tried:
        key = one.layer, one.family
        known = best.get(key)
        least = -np.inf if known is None else np.nan_to_num(_mean(known[1][chooses]), nan=-np.inf)
        if known is None or _mean(scores[chooses]) > least:
            best[key] = one, scores
    return best


def _mean(scores: Scores) -> float:
    """Return the mean over the queries that have a score; NaN without any."""
    return float(np.nanmean(scores)) if (~np.isnan(scores)).any() else np.nan


def _difference(gain: Scores, *, resamples: int, seed: int) -> dict[str, Any]:
    """Return the mean difference over queries with its interval and p-value; one query has neither."""
    defined = gain[~np.isnan(gain)]
    if defined.size < 2:
        found = mean_interval(gain, resamples=resamples, seed=seed)
        return {**found.columns(), "p": np.nan, "n": defined.size}
    replicates = draw_counts(defined.size, resamples=resamples, seed=seed) @ defined / defined.size
    interval = percentile_interval(float(defined.mean()), replicates)
    p_value = float(bootstrap_p_values(replicates[:, None], defined.size)[0])
    return {**interval.columns(), "p": p_value, "n": defined.size}

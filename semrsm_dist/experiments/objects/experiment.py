"""Whether matching gains more where objects are small, many, off the centre or among others.

The paper explains its gain by objects that are not centred and by large spatial extents. Here the gain in F1@1 of each
query, over comparing position by position and over average pooling, is regressed on what the boxes around the query's
objects say, all predictors together. Intervals and p-values come from a bootstrap over queries; the p-values of all
slopes are adjusted for their number by Holm's method.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from semrsm_dist.config.schema import RunConfig
from semrsm_dist.errors import InputError
from semrsm_dist.evaluation.bootstrap import mean_interval
from semrsm_dist.evaluation.regression import fit_slopes, holm
from semrsm_dist.evaluation.retrieval import POOLED, SEMANTIC, SPATIAL, Names
from semrsm_dist.experiments.evidence import Findings
from semrsm_dist.experiments.near_duplicates import find_groups, make_task
from semrsm_dist.experiments.objects import ObjectsParameters
from semrsm_dist.experiments.objects.boxes import PREDICTORS, describe_objects, find_boxes
from semrsm_dist.experiments.objects.report import GAIN, LEVEL, SLOPE, draw_slopes, write_text
from semrsm_dist.experiments.query_scores import score_methods
from semrsm_dist.experiments.runs import complete_run
from semrsm_dist.progress import Reporter
from semrsm_dist.store.record import Side

THIRDS = ("lowest third", "middle third", "highest third")


def evaluate(config: RunConfig, parameters: ObjectsParameters, reporter: Reporter) -> Findings:
    """Regress each query's gain of matching on what is known of its objects."""
    side: Side = "images" if config.queries is None else "queries"
    objects = describe_objects(find_boxes(config, side, parameters.boxes))
    run = complete_run(config, reporter)
    predictors = objects.reindex(run.manifest(side).image_ids())
    if predictors.notna().all(axis=1).sum() < len(PREDICTORS) + 2:
        known = predictors["size"].notna().sum()
        raise InputError(
            f"{parameters.boxes or config.run}: boxes of {known} of {len(predictors)} {side} of the run, too few for "
            "a regression; give a table whose image_id are those of the run, or more images"
        )
    groups = find_groups(run, parameters.near_duplicates)
    task, clusters = make_task(run, groups), _cluster(groups.names[side])
    rows: list[dict[str, Any]] = []
    for layer in run.requested_layers:
        scores = score_methods(run, layer, parameters.kernel, task)
        for against in (SPATIAL, POOLED):
            gain = scores[SEMANTIC] - scores[against]
            place = {"layer": layer, "against": against, "kernel": parameters.kernel}
            rows += ({**place, **row} for row in _judge(predictors, gain, clusters, parameters))
    table = pd.DataFrame(rows).assign(resamples=parameters.resamples, seed=parameters.seed)
    if not (table["n"] > 0).any():
        raise InputError(
            f"{config.run}: no query with boxes can be judged, so there is no gain to explain: all lack labels, other "
            "images outside their group of near-duplicates, or a defined similarity; give more images"
        )
    slopes = table["quantity"] == SLOPE
    table.loc[slopes, "p_holm"] = holm(table.loc[slopes, "p"])
    notes = [groups.note] if groups.note else []
    return Findings(
        table,
        lambda figure: draw_slopes(figure, table),
        write_text(table, predictors.corr(), notes),
        {"predictors": PREDICTORS},
    )


def _judge(
    predictors: pd.DataFrame,
    gain: NDArray[np.float64],
    clusters: NDArray[np.intp],
    parameters: ObjectsParameters,
) -> Iterator[dict[str, Any]]:
    """Yield the mean gain, its slope on each predictor, and its mean in each third of the predictor's values."""
    settings: dict[str, Any] = {"resamples": parameters.resamples, "seed": parameters.seed}
    has_boxes = predictors.notna().all(axis=1).to_numpy()
    judged = np.where(has_boxes, gain, np.nan)
    n = int(np.count_nonzero(~np.isnan(judged)))
    counts = {"n": n, "n_left_out": len(gain) - n}
    yield {"quantity": GAIN, **mean_interval(judged, clusters=clusters, **settings).columns(), **counts}
    slopes = fit_slopes(predictors.to_numpy(float), gain, clusters=clusters, **settings)
    for place, (name, p_value) in enumerate(zip(predictors, slopes.p_values(), strict=True)):
        found = slopes.interval(place).columns()
        yield {"quantity": SLOPE, "predictor": name, **found, "p": float(p_value), **counts}
    for name, values in predictors.items():
        ranks = values.where(~np.isnan(judged)).rank().to_numpy()  # equal values share a rank, so a third
        third = np.floor((ranks - 0.5) * len(THIRDS) / max(n, 1))
        for level, label in enumerate(THIRDS):
            if not (third == level).any():
                continue
            inside = np.where(third == level, judged, np.nan)
            yield {
                "quantity": LEVEL,
                "predictor": name,
                "level": label,
                "predictor_mean": float(values[third == level].mean()),
                **mean_interval(inside, clusters=clusters, **settings).columns(),
                "n": int(np.count_nonzero(~np.isnan(inside))),
                "n_left_out": 0,
            }


def _cluster(groups: Names) -> NDArray[np.intp]:
    """Return codes of what is resampled together: images of one group, others on their own."""
    names = [("alone", place) if group is None else ("group", group) for place, group in enumerate(groups)]
    known = {name: code for code, name in enumerate(dict.fromkeys(names))}
    return np.array([known[name] for name in names], dtype=np.intp)

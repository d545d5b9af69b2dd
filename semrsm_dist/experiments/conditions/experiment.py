"""When permutation invariance helps: its gain under one condition after another, and where it must lose.

The paper leaves open how the gain depends on the scale of objects, on clutter, on how differently they are placed and
on resolution. Scenes of digits have a control for each. And one task is made for position to matter: a digit on
the left is another label than the same digit on the right. Matching is blind to that, unless the features themselves
know where they are, as those near the borders of a padded network do.

Each condition is a small run of its own below the given run's directory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from semrsm_dist.config.schema import RunConfig
from semrsm_dist.data.sources.digits import DigitScenes
from semrsm_dist.errors import ConfigError, first_line
from semrsm_dist.evaluation.bootstrap import mean_interval
from semrsm_dist.evaluation.retrieval import CHANCE, POOLED, SPATIAL
from semrsm_dist.experiments.conditions import ConditionsParameters
from semrsm_dist.experiments.conditions.grid import Condition, list_conditions
from semrsm_dist.experiments.conditions.report import draw_gains, write_text
from semrsm_dist.experiments.evidence import Findings
from semrsm_dist.experiments.near_duplicates import find_groups, make_task
from semrsm_dist.experiments.query_scores import score_methods
from semrsm_dist.experiments.runs import choose_kernels, complete_run, evaluation_folder
from semrsm_dist.progress import Reporter
from semrsm_dist.results.run import Run


def evaluate(config: RunConfig, parameters: ConditionsParameters, reporter: Reporter) -> Findings:
    """Measure F1@1 of semantic less spatio-semantic similarity under each condition around a run on digit scenes."""
    kernel, seed, resamples = parameters.kernel, parameters.seed, parameters.resamples
    scenes = _require_scenes(config, parameters.images)
    base = _base_config(config, scenes, layers=parameters.layers, kernel=kernel)
    own_size = _input_size(complete_run(base, reporter))
    conditions, left_out = list_conditions(scenes, own_size, parameters.factors)
    runs = {(scenes.model_dump_json(), own_size): base}
    rows: list[dict[str, Any]] = []
    for condition in conditions:
        derived = runs.setdefault(condition.settings(), _derive(base, condition))
        try:
            run = complete_run(derived, reporter)
        except ConfigError as error:  # such as an input size that the network cannot take; the base ran
            left_out.append(f"{condition.factor} {condition.level:.4g}: {first_line(error)}")
            continue
        rows += _measure(run, condition, kernel=kernel, resamples=resamples, seed=seed)
    if not rows:
        raise ConfigError(
            "factors: none of the conditions can be made of these scenes; widen the ranges of data or vary others:\n"
            + "\n".join(f"  {line}" for line in left_out)
        )
    table = pd.DataFrame(rows)
    return Findings(
        table,
        lambda figure: draw_gains(figure, table),
        write_text(table, left_out),
        {
            "config": base.model_dump(mode="json"),
            "conditions": [
                [c.factor, c.level, c.data.model_dump(mode="json"), c.input_size] for c in conditions
            ],
        },
    )


def _measure(
    run: Run, condition: Condition, *, kernel: str, resamples: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield one row per layer and method; `gain` is over comparing position by position, paired by query."""
    task = make_task(run, find_groups(run, None))
    for layer in run.requested_layers:
        scores = score_methods(run, layer, kernel, task)
        for method, f1 in scores.items():
            level = mean_interval(f1, resamples=resamples, seed=seed)
            gain = mean_interval(f1 - scores[SPATIAL], resamples=resamples, seed=seed)
            yield {
                "factor": condition.factor,
                "level": condition.level,
                "layer": layer,
                "n_tokens": run.record.layers[layer].n_tokens,
                "method": method,
                "kernel": {POOLED: "cosine", CHANCE: "-"}.get(method, kernel),
                "k": 1,
                "f1": level.estimate,
                "f1_low": level.low,
                "f1_high": level.high,
                **gain.columns("gain"),
                "n": int(np.count_nonzero(~np.isnan(f1))),
                "resamples": resamples,
                "seed": seed,
                "scene_seed": condition.data.seed,
                "run": run.directory.path.name,
            }


def _require_scenes(config: RunConfig, images: int) -> DigitScenes:
    if not isinstance(config.data, DigitScenes) or config.queries is not None:
        raise ConfigError(
            "the experiment conditions varies the controls of digit scenes, which other images do not have; give a "
            "run with data.source: digits and no queries"
        )
    return config.data.model_copy(update={"n_images": images})


def _base_config(
    config: RunConfig, scenes: DigitScenes, *, layers: Sequence[str] | None, kernel: str
) -> RunConfig:
    document = config.model_dump()
    own = document["model"]["layers"]
    wanted = tuple(layers) if layers is not None else tuple(dict.fromkeys((own[len(own) // 3], own[-1])))
    return RunConfig.model_validate(
        {
            **document,
            "run": evaluation_folder(config) / "conditions" / f"{scenes.n_images}-images" / "base",
            "data": scenes,
            "model": {**document["model"], "layers": wanted},
            "kernels": choose_kernels(config, [kernel]),
        }
    )


def _derive(base: RunConfig, condition: Condition) -> RunConfig:
    document = base.model_dump()
    return RunConfig.model_validate(
        {
            **document,
            "run": Path(base.run).with_name(condition.name),
            "data": condition.data,
            "model": {**document["model"], "input_size": condition.input_size},
        }
    )


def _input_size(run: Run) -> tuple[int, int]:
    _, height, width = run.record.model.facts["preprocessing"]["input_size"]
    return int(height), int(width)

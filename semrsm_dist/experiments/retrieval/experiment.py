"""Retrieval on multi-label images: semantic RSMs against spatio-semantic ones and against what people use instead.

F1@k is the mean, over queries and their k best hits, of the overlap of the label sets (Wald et al. 2024, section 4.2,
in our reading). The paper leaves open how semantic similarity compares with established retrieval: here it meets
average pooling with and without PCA and whitening, GeM and max pooling, VLAD, late interaction, optimal transport, and
the class token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.config.matching import MatchingConfig
from semrsm_dist.config.schema import KernelConfig, RunConfig
from semrsm_dist.errors import ConfigError, counted
from semrsm_dist.evaluation.pooling import cosine_rows
from semrsm_dist.evaluation.retrieval import (
    CHANCE,
    SEMANTIC,
    Hits,
    RetrievalTask,
    chance_scores,
    find_hits,
    score_hits,
)
from semrsm_dist.experiments.evidence import Findings
from semrsm_dist.experiments.labels import require_areas, require_weights
from semrsm_dist.experiments.layer_features import LayerFeatures
from semrsm_dist.experiments.near_duplicates import Groups, find_groups, make_task
from semrsm_dist.experiments.retrieval import RetrievalParameters
from semrsm_dist.experiments.retrieval.methods import CLASS_TOKEN, Method, list_methods
from semrsm_dist.experiments.retrieval.report import (
    Key,
    Scores,
    add_doubts,
    add_effort,
    draw_scores,
    tabulate,
    write_doubts,
    write_effort,
    write_text,
)
from semrsm_dist.experiments.retrieval.search import progressive_hits
from semrsm_dist.experiments.runs import complete_run, evaluation_folder
from semrsm_dist.machine import available_cpus
from semrsm_dist.progress import Reporter
from semrsm_dist.results.run import Run


def evaluate(config: RunConfig, parameters: RetrievalParameters, reporter: Reporter) -> Findings:
    """Compare retrieval by semantic similarity with the other methods, on a run of images with labels."""
    ks = tuple(sorted(set(parameters.k)))
    _require_search(parameters, config)
    run = complete_run(config, reporter)
    groups = find_groups(run, parameters.near_duplicates)
    tasks = _list_tasks(run, groups, parameters)
    folder = evaluation_folder(config) / "retrieval"
    class_tokens = _read_class_tokens(config, run, folder, reporter)
    workers = config.workers or available_cpus()
    scores: Scores = {}
    hits: dict[Key, Hits] = {}
    notes = [groups.note] * bool(groups.note)
    manifests = run.manifest("images"), None if run.is_symmetric else run.manifest("queries")
    notes += require_areas(*manifests, parameters.min_area)
    if parameters.weights != "none":
        notes += require_weights(*manifests, parameters.weights, parameters.min_area)
    effort: list[dict[str, Any]] = []
    for layer in run.requested_layers:
        methods = list_methods(LayerFeatures(run, layer), parameters, folder, reporter, workers)
        own = [class_tokens[layer]] if layer in class_tokens else []
        found, about = _find(run, layer, chain(methods, own), tasks, max(ks))
        hits |= found
        notes += about
        scores |= {key: score_hits(item.indices, tasks[key.groups], ks) for key, item in found.items()}
        for handling, task in tasks.items():
            # What random hits can be expected to score, the same for every k.
            chance = chance_scores(task)[:, None]
            scores[Key(layer, CHANCE, "-", handling)] = np.repeat(chance, len(ks), axis=1)
            if parameters.search == "progressive":
                key = Key(layer, SEMANTIC, "cosine", handling)
                scores[key], took = _search(run, layer, handling, task, ks, workers)
                effort.append(took)
    table = tabulate(scores, ks, resamples=parameters.resamples, seed=parameters.seed)
    table["weights"] = parameters.weights
    add_doubts(table, hits)
    notes += write_doubts(hits, ks)
    if effort:
        add_effort(table, effort)
        notes += write_effort(effort)
    return Findings(
        table,
        lambda figure: draw_scores(figure, table),
        write_text(table, [*_warn(tasks, class_tokens), *notes]),
    )


def _find(
    run: Run, layer: str, methods: Iterable[Method], tasks: dict[str, RetrievalTask], k: int
) -> tuple[dict[Key, Hits], list[str]]:
    """Return the hits of each method at each task, and what is to be noted about the methods."""
    hits: dict[Key, Hits] = {}
    notes: list[str] = []
    for method in methods:
        notes += [f"{layer}: {method.name}: {method.note}"] * bool(method.note)
        for groups, task in tasks.items():
            key = Key(layer, method.name, method.kernel, groups)
            most, at_once = task.most_hits(k), run.chunk_size(layer)
            hits[key] = find_hits(method.read_rows, task, most, rows_at_once=at_once)
    return hits, notes


def _search(
    run: Run, layer: str, groups: str, task: RetrievalTask, ks: Sequence[int], workers: int
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Return each query's F1@k by semantic cosine from progressive search, and what it took."""
    if not task.depends_on_groups_alone():
        raise ConfigError(
            "search: progressive finds hits among all images of the database, but some have no labels or are copies of "
            "queries, and cannot be hits here; leave search at matrix"
        )
    hits = progressive_hits(run, layer, max(ks), near_duplicates=groups == "included", workers=workers)
    effort = {"layer": layer, "groups": groups, **hits.shares(), "identical": hits.identical}
    return score_hits(hits.found.indices.astype(np.intp), task, ks), effort


def _require_search(parameters: RetrievalParameters, config: RunConfig) -> None:
    if parameters.search != "progressive":
        return
    if parameters.near_duplicates is not None:
        raise ConfigError(
            "search: progressive finds near-duplicates by the groups of the data alone; leave near_duplicates out, or "
            "search at matrix"
        )
    matcher = config.matching.matcher
    if matcher != "auction":
        raise ConfigError(
            f"search: progressive needs the matcher 'auction', but the run matches with {matcher!r}, whose numbers a "
            "search cannot give; leave search at matrix"
        )


def _list_tasks(run: Run, groups: Groups, parameters: RetrievalParameters) -> dict[str, RetrievalTask]:
    """Return the retrieval tasks by what they do with near-duplicates; only one where there are no groups."""
    settings = parameters.min_area, parameters.weights
    included = make_task(run, None, *settings)
    if not groups.rule_out_hits():
        return {"none": included}
    return {"excluded": make_task(run, groups, *settings), "included": included}


def _warn(tasks: dict[str, RetrievalTask], class_tokens: dict[str, Method]) -> list[str]:
    task = next(iter(tasks.values()))
    warnings = []
    if task.has_one_label_set():
        warnings.append(
            "all labelled images have the same labels: every hit is right, F1 is 1 for every method, and nothing is "
            "learnt from it"
        )
    foreign = task.count_hopeless()
    if foreign:
        warnings.append(
            f"{counted(foreign, 'query', 'queries')} {'has' if foreign == 1 else 'have'} only labels that no other "
            "image of the database has; F1 is 0 then, whatever is found"
        )
    if not class_tokens:
        warnings.append("no layer has a class token")
    return warnings


def _read_class_tokens(config: RunConfig, run: Run, folder: Path, reporter: Reporter) -> dict[str, Method]:
    """Return retrieval by the class token of each layer that has one, from a run of its own on the same images."""
    model = config.model
    if model is None or not run.record.fingerprint.get("model.n_prefix_tokens"):
        return {}
    from semrsm_dist.features.layers import class_token_layers  # noqa: PLC0415 - torch only where it is needed
    from semrsm_dist.features.models import load_model  # noqa: PLC0415
    from semrsm_dist.pipeline.inputs import model_spec  # noqa: PLC0415

    names = {layer.module: layer.name for layer in class_token_layers(load_model(model_spec(model)))}
    there = [layer for layer in run.requested_layers if layer in names]
    if not there:
        return {}
    derived = config.model_copy(
        update={
            "run": folder / "class-token",
            "model": model.model_copy(update={"layers": tuple(names[layer] for layer in there)}),
            "matching": MatchingConfig(matcher="identity"),  # one token an image: nothing to match
            "kernels": (KernelConfig(name="cosine"),),
        }
    )
    tokens, found = complete_run(derived, reporter), {}
    for layer in there:
        pooled = LayerFeatures(tokens, names[layer]).read_pooled()
        found[layer] = Method(CLASS_TOKEN, "cosine", cosine_rows(*pooled))
    return found

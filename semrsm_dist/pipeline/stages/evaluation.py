"""What a session reports of finished results: certificates and retrieval scores."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.data.manifest import Manifest
from semrsm_dist.engine.protocol import Task
from semrsm_dist.errors import WorkError, shorten
from semrsm_dist.evaluation.entries import row_slices
from semrsm_dist.evaluation.retrieval import (
    POOLED,
    SEMANTIC,
    RetrievalImages,
    RetrievalTask,
    mean_scores,
    score_hits,
)
from semrsm_dist.pipeline.faults import list_failures
from semrsm_dist.pipeline.session import Session
from semrsm_dist.pipeline.stages.evaluation_worker import (
    METHODS,
    Evaluated,
    EvaluationWorker,
    Gaps,
    Rows,
    Scoring,
)
from semrsm_dist.progress import Stage
from semrsm_dist.results.run import Run
from semrsm_dist.store.record import NeighbourSettings, RunRecord, Side
from semrsm_dist.store.results import result_store
from semrsm_dist.store.tiles import KINDS

CERTIFICATE = ("mean_gap", "max_gap", "undefined_images")
POOLED_SHARE = 4
"""Pooled vectors that a worker holds take at most 1/4 of its memory."""


def evaluate(session: Session, record: RunRecord, manifests: Mapping[Side, Manifest]) -> dict[str, Any]:
    """Return certificates and retrieval scores, from the last summary if they are still valid.

    These are `evaluated`, what the numbers depend on; `certificates` by layer; `retrieval`, a list of scores. Raises
    WorkError if some of the matrices could not be read.
    """
    evaluated = _dependence(session, record)
    known = session.directory.read_summary() or {}
    if not session.counts["matching"]["computed"] and known.get("evaluated") == evaluated:
        certificates = {
            layer: {name: facts[name] for name in CERTIFICATE} for layer, facts in known["layers"].items()
        }
        return {"evaluated": evaluated, "certificates": certificates, "retrieval": known["retrieval"]}
    of_layers = _evaluate_matrices if record.neighbours is None else _evaluate_neighbours
    certificates, scores = of_layers(session, record, manifests)
    return {"evaluated": evaluated, "certificates": certificates, "retrieval": scores}


def _evaluate_matrices(
    session: Session, record: RunRecord, manifests: Mapping[Side, Manifest]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return certificates and scores of matrices, whose rows workers read, a few at a time."""
    run, kernel, ks = Run(session.directory.path), session.config.retrieval.kernel, session.config.retrieval.k
    scoring = None
    with session.timed("evaluation"):
        if _are_labelled(record, manifests) and ks:
            task = retrieval_task(manifests)
            widths = {
                (layer, kind): run.kernel_matrix(layer, kernel, kind).sigma
                for layer in record.requested
                for kind in KINDS
            }
            scoring = Scoring(task, tuple(ks), kernel, widths)
    units = [
        Rows(layer, rows.start, rows.stop)
        for layer in record.requested
        for rows in row_slices(record.counts[record.row_side], run.chunk_size(layer))
    ]
    layouts = {layer: record.layout(layer) for layer in record.requested}
    room = session.config.matching.cpu_memory // POOLED_SHARE
    worker = EvaluationWorker(session.directory.path, record.row_side, layouts, scoring, room)
    outcome = session.work(
        "evaluation",
        lambda: session.start_tasks(worker),
        [Task((rows,)) for rows in units],
        unit="rows",
        total=sum(rows.stop - rows.start for rows in units),
    )
    if outcome.failures:
        raise WorkError(
            f"{len(outcome.failures)} of {len(units)} parts of the matrices could not be read to evaluate them; the "
            f"solved tiles are kept, and the run's command tries again:\n{list_failures(outcome.failures)}"
        )
    found: dict[Hashable, Evaluated] = dict(outcome.values)
    certificates, scores = {}, []
    for layer in record.requested:
        parts = [found[rows] for rows in units if rows.layer == layer]
        norms = run.matrices(layer).squared_norms
        certificates[layer] = _certified([part.gaps for part in parts], _count_zeros(run, norms))
        if scoring is not None:
            scores += _mean_scores(layer, parts, scoring)
    return certificates, scores


def _mean_scores(layer: str, parts: Sequence[Evaluated], scoring: Scoring) -> list[dict[str, Any]]:
    """Return the scores of a layer over all queries, by method and number of hits."""
    scores = []
    for method in METHODS:
        of_queries = np.concatenate([part.scores[method] for part in parts])
        used = "cosine" if method == POOLED else scoring.kernel
        scores += [
            {"layer": layer, "method": method, "kernel": used} | asdict(score)
            for score in mean_scores(of_queries, scoring.ks)
        ]
    return scores


def _evaluate_neighbours(
    session: Session, record: RunRecord, manifests: Mapping[Side, Manifest]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return certificates and scores of neighbours, which are few."""
    run, is_labelled = Run(session.directory.path), _are_labelled(record, manifests)
    total = len(record.requested) * record.counts[record.row_side]
    certificates, scores = {}, []
    with session.timed("evaluation"), session.reporter.stage("evaluation", total, "rows") as shown:
        for layer in record.requested:
            certificates[layer] = _certificate_of_neighbours(session, run, layer, shown)
            scores += _retrieval_of_neighbours(session, manifests, run, layer) if is_labelled else []
    return certificates, scores


def _are_labelled(record: RunRecord, manifests: Mapping[Side, Manifest]) -> bool:
    return all(any(manifests[side].labels()) for side in record.sides)


def retrieval_task(manifests: Mapping[Side, Manifest]) -> RetrievalTask:
    """Return the retrieval task of a run: its images among themselves, or queries against them."""
    sides = {
        side: RetrievalImages(manifest.labels(), manifest.groups(), manifest.contents())
        for side, manifest in manifests.items()
    }
    return RetrievalTask(*(sides[side] for side in ("queries", "images") if side in sides))


def warn_of_zeros(session: Session, record: RunRecord, manifests: Mapping[Side, Manifest]) -> None:
    """Warn of images that have no similarity to any other, because their representation is zero."""
    for layer in record.requested:
        store = result_store(session.directory, record, layer)
        for side, manifest in manifests.items():
            norms = store.coordinate("squared_norm_j" if side == "images" else "squared_norm_i")
            zero = np.flatnonzero(norms == 0)
            if zero.size:
                names = manifest.image_ids()
                shown = shorten(repr(names[index]) for index in zero)
                session.warn(
                    f"layer {layer}: the representation of {zero.size} of {norms.size} {side} is zero ({shown}); "
                    "their cosine similarities are undefined (NaN), and retrieval leaves them out"
                )


def _dependence(session: Session, record: RunRecord) -> dict[str, Any]:
    """Return what may change from one session to the next: the settings, and how the layers are assembled."""
    stores = {layer: result_store(session.directory, record, layer) for layer in record.requested}
    return {
        "retrieval": session.config.retrieval.model_dump(mode="json"),
        "recipes": {layer: store.read_attributes()["recipe"] for layer, store in stores.items()},
    }


def _certificate_of_neighbours(session: Session, run: Run, layer: str, shown: Stage) -> dict[str, Any]:
    """Return the certificate of a layer, over all images and their neighbours."""
    neighbours = run.layer_neighbours(layer)
    gaps = []
    for rows in row_slices(neighbours.n_rows, run.layout(layer).tile_size):
        if session.stop.is_set():
            raise KeyboardInterrupt
        gaps.append(Gaps.of(neighbours.read(rows).gap))
        shown.advance(rows.stop - rows.start)
    return _certified(gaps, _count_zeros(run, neighbours.squared_norms))


def _count_zeros(run: Run, squared_norms: tuple[NDArray[np.float64], NDArray[np.float64]]) -> int:
    sides = squared_norms[:1] if run.is_symmetric else squared_norms
    return sum(int(np.count_nonzero(norms == 0)) for norms in sides)


def _certified(gaps: Sequence[Gaps], undefined: int) -> dict[str, Any]:
    known = sum(gaps, Gaps())
    return {
        "mean_gap": known.total / known.count if known.count else None,
        "max_gap": known.largest if known.count else None,
        "undefined_images": undefined,
    }


def _retrieval_of_neighbours(
    session: Session, manifests: Mapping[Side, Manifest], run: Run, layer: str
) -> list[dict[str, Any]]:
    """Return the scores of the method `semantic` for each k up to the number of neighbours.

    None where hits are not the neighbours: of images without labels or with exact copies, or above a threshold.
    """
    k, threshold = run.record.neighbours or NeighbourSettings(0, None)
    task, retrieval = retrieval_task(manifests), session.config.retrieval
    ks = [wanted for wanted in retrieval.k if wanted <= k]
    if retrieval.kernel != "cosine" or threshold is not None or not task.depends_on_groups_alone() or not ks:
        session.warn(
            f"layer {layer}: retrieval is not scored: its hits may be none of the {k} neighbours, where images have no "
            "labels or exact copies, k is larger, the kernel is not cosine, or there is a threshold"
        )
        return []
    indices = run.layer_neighbours(layer).read(slice(None)).indices
    return [
        {"layer": layer, "method": SEMANTIC, "kernel": "cosine"} | asdict(score)
        for score in mean_scores(score_hits(indices, task, ks), ks)
    ]

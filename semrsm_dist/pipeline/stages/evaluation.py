"""What a session reports of finished matrices: certificates and retrieval scores, read chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.data.manifest import Manifest
from semrsm_dist.errors import InputError
from semrsm_dist.evaluation.entries import RowReader, row_slices
from semrsm_dist.evaluation.pooling import cosine_rows
from semrsm_dist.evaluation.retrieval import (
    POOLED,
    SEMANTIC,
    SPATIAL,
    RetrievalImages,
    RetrievalTask,
    mean_scores,
    retrieval_scores,
    score_hits,
)
from semrsm_dist.pipeline.session import Session
from semrsm_dist.progress import Stage
from semrsm_dist.results.run import Run
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.record import NeighbourSettings, RunRecord, Side
from semrsm_dist.store.results import result_store

METHODS = (SPATIAL, POOLED, SEMANTIC)

CERTIFICATE = ("mean_gap", "max_gap", "undefined_images")
NAMED = 5
"""Maximum images that a warning names."""


def evaluate(session: Session, record: RunRecord, manifests: Mapping[Side, Manifest]) -> dict[str, Any]:
    """Return certificates and retrieval scores, from the last summary if they are still valid.

    Returns
    -------
    dict
        `evaluated`, what the numbers depend on; `certificates` by layer; `retrieval`, a list of scores.
    """
    evaluated = _dependence(session, record)
    known = session.directory.read_summary() or {}
    if not session.counts["matching"]["computed"] and known.get("evaluated") == evaluated:
        certificates = {
            layer: {name: facts[name] for name in CERTIFICATE} for layer, facts in known["layers"].items()
        }
        return {"evaluated": evaluated, "certificates": certificates, "retrieval": known["retrieval"]}
    run = Run(session.directory.path)
    is_labelled = all(any(manifests[side].labels()) for side in record.sides)
    passes = 1 + len(METHODS) * (is_labelled and record.neighbours is None)
    total = len(record.requested) * record.counts[record.row_side] * passes
    certificates, scores = {}, []
    with session.reporter.stage("evaluation", total, "rows") as shown:
        watched = _Watched(session, shown)
        for layer in record.requested:
            if record.neighbours is not None:
                certificates[layer] = _certificate_of_neighbours(run, layer, watched)
                scores += _retrieval_of_neighbours(session, manifests, run, layer) if is_labelled else []
            else:
                certificates[layer] = _certificate(run, layer, watched)
                scores += _retrieval(session, manifests, run, layer, watched) if is_labelled else []
    return {"evaluated": evaluated, "certificates": certificates, "retrieval": scores}


def retrieval_task(
    images: Manifest, queries: Manifest | None = None, *, near_duplicates: bool = False
) -> RetrievalTask:
    """Return the retrieval task of a run: its images among themselves, or queries against them.

    Parameters
    ----------
    images, queries
        The manifests of the run's sides.
    near_duplicates
        Whether images of the query's group count as hits.
    """

    def side(manifest: Manifest) -> RetrievalImages:
        groups = None if near_duplicates else manifest.groups()
        return RetrievalImages(manifest.labels(), groups, manifest.contents())

    return RetrievalTask(side(images)) if queries is None else RetrievalTask(side(queries), side(images))


def require_labels(images: Manifest, queries: Manifest | None = None) -> None:
    """Raise InputError unless some image of each side has labels."""
    for side, manifest in (("images", images), ("queries", queries)):
        if manifest is not None and not any(manifest.labels()):
            raise InputError(
                f"{side}: none has labels, and without them hits cannot be judged: give a table with labels, or a "
                "folder with a subfolder for each class"
            )


def require_areas(images: Manifest, queries: Manifest | None, min_area: float) -> list[str]:
    """Return a warning of images whose labels count whatever their area, which is unknown; see `Manifest.labels`.

    Raises
    ------
    InputError
        If areas are unknown on a side altogether, or no label of a side is large enough.
    """
    warnings: list[str] = []
    for side, manifest in (("images", images), ("queries", queries)):
        if manifest is None or min_area <= 0:
            continue
        unknown, labelled = manifest.count_without_areas(), sum(map(bool, manifest.labels()))
        if unknown == labelled:
            raise InputError(
                f"{side}: how much of an image a label covers is not known, so min_area cannot be applied: use a "
                "source that knows it (docs/own-data.md), give a table with label_areas, or leave min_area at 0"
            )
        kept = sum(map(bool, manifest.labels(min_area)))
        if not kept:
            raise InputError(
                f"{side}: no label covers {min_area:g} of its image, so there is nothing to retrieve; lower min_area"
            )
        warnings.append(
            f"{side}: labels that cover less than {min_area:g} of an image do not count: {kept} of {labelled} labelled "
            f"images keep one{f'; of {unknown}, areas are unknown, and all labels count' if unknown else ''}"
        )
    return warnings


def warn_of_zeros(session: Session, record: RunRecord, manifests: Mapping[Side, Manifest]) -> None:
    """Warn of images that have no similarity to any other, because their representation is zero."""
    for layer in record.requested:
        store = result_store(session.directory, record, layer)
        for side, manifest in manifests.items():
            norms = store.coordinate("squared_norm_j" if side == "images" else "squared_norm_i")
            zero = np.flatnonzero(norms == 0)
            if zero.size:
                names = manifest.image_ids()
                shown = ", ".join(repr(names[index]) for index in zero[:NAMED])
                session.warn(
                    f"layer {layer}: the representation of {zero.size} of {norms.size} {side} is zero ({shown}"
                    f"{', ...' if zero.size > NAMED else ''}); their cosine similarities are undefined (NaN), and "
                    "retrieval leaves them out"
                )


class _Watched:
    """Lets the session follow, and stop, a reader of rows."""

    def __init__(self, session: Session, shown: Stage) -> None:
        self._session, self._shown = session, shown

    def advance(self, n_rows: int) -> None:
        if self._session.stop.is_set():
            raise KeyboardInterrupt
        self._shown.advance(n_rows)

    def reader(self, read_rows: RowReader) -> RowReader:
        def read(rows: slice) -> NDArray[np.float64]:
            block = read_rows(rows)
            self.advance(len(block))
            return block

        return read


def _dependence(session: Session, record: RunRecord) -> dict[str, Any]:
    """Return what may change from one session to the next: the settings, and how the layers are assembled."""
    stores = {layer: result_store(session.directory, record, layer) for layer in record.requested}
    return {
        "retrieval": session.config.retrieval.model_dump(mode="json"),
        "recipes": {layer: store.read_attributes()["recipe"] for layer, store in stores.items()},
    }


def _certificate(run: Run, layer: str, watched: _Watched) -> dict[str, Any]:
    """Return the mean and largest certified gap on the cosine scale, over the pairs that were solved."""
    matrices, layout = run.matrices(layer), run.layout(layer)
    norms_i, norms_j = map(np.sqrt, matrices.squared_norms)
    total, count, largest = 0.0, 0, -math.inf
    for row, column in layout.tiles():  # each read once
        rows, columns = layout.rows(row), layout.columns(column)
        scale = norms_i[rows, None] * norms_j[None, columns]
        defined = scale > 0
        if layout.symmetric and row == column:
            defined = np.triu(defined, k=1)
        cosine_gap = matrices.read(["gap"], (rows, columns))[0][defined] / scale[defined]
        if cosine_gap.size:
            total, count = total + float(cosine_gap.sum()), count + cosine_gap.size
            largest = max(largest, float(cosine_gap.max()))
        watched.advance(rows.stop - rows.start if column == layout.column_panels - 1 else 0)
    return _certified(total, count, largest, _count_zeros(run, matrices.squared_norms))


def _certificate_of_neighbours(run: Run, layer: str, watched: _Watched) -> dict[str, Any]:
    """Return `_certificate` over all images and their neighbours."""
    neighbours = run.layer_neighbours(layer)
    total, count, largest = 0.0, 0, -math.inf
    for rows in row_slices(neighbours.n_rows, run.layout(layer).tile_size):
        gap = neighbours.read(rows).gap
        gap = gap[~np.isnan(gap)]
        if gap.size:
            total, count, largest = total + float(gap.sum()), count + gap.size, max(largest, float(gap.max()))
        watched.advance(rows.stop - rows.start)
    return _certified(total, count, largest, _count_zeros(run, neighbours.squared_norms))


def _count_zeros(run: Run, squared_norms: tuple[NDArray[np.float64], NDArray[np.float64]]) -> int:
    sides = squared_norms[:1] if run.is_symmetric else squared_norms
    return sum(int(np.count_nonzero(norms == 0)) for norms in sides)


def _certified(total: float, count: int, largest: float, undefined: int) -> dict[str, Any]:
    return {
        "mean_gap": total / count if count else None,
        "max_gap": largest if count else None,
        "undefined_images": undefined,
    }


def _retrieval_of_neighbours(
    session: Session, manifests: Mapping[Side, Manifest], run: Run, layer: str
) -> list[dict[str, Any]]:
    """Return the scores of the method `semantic` for each k up to the number of neighbours.

    None where hits are not the neighbours: of images without labels or with exact copies, or above a threshold.
    """
    k, threshold = run.record.neighbours or NeighbourSettings(0, None)
    task, retrieval = retrieval_task(manifests["images"], manifests.get("queries")), session.config.retrieval
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


def _retrieval(
    session: Session, manifests: Mapping[Side, Manifest], run: Run, layer: str, watched: _Watched
) -> list[dict[str, Any]]:
    kernel, ks = session.config.retrieval.kernel, session.config.retrieval.k
    task = retrieval_task(manifests["images"], manifests.get("queries"))
    pooled = FeatureStore(session.directory.features, "images", layer).read_pooled()
    queries = FeatureStore(session.directory.features, run.record.row_side, layer).read_pooled()
    readers: dict[str, RowReader] = {
        SPATIAL: run.similarity_rows(layer, kernel, SPATIAL),
        POOLED: cosine_rows(queries, pooled),
        SEMANTIC: run.similarity_rows(layer, kernel, SEMANTIC),
    }
    scores = []
    for method in METHODS:
        for score in retrieval_scores(
            watched.reader(readers[method]), task, ks=ks, rows_at_once=run.chunk_size(layer)
        ):
            used = "cosine" if method == POOLED else kernel
            scores.append({"layer": layer, "method": method, "kernel": used} | asdict(score))
    return scores

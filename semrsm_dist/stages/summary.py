"""The summary of a session: times, rates, certificates, what was found and computed, and retrieval scores."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from semrsm_dist.evaluation.retrieval import RowReader, cosine_rows, retrieval_f1
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.progress import format_seconds
from semrsm_dist.results import Run
from semrsm_dist.stages.identity import Identity
from semrsm_dist.stages.session import Session
from semrsm_dist.store.features import FeatureStore

STAGES = ("scan", "model", "extraction", "import", "check", "compile", "matching", "assembly", "evaluation")
SEMANTIC, SPATIAL, POOLED = "semantic", "spatio-semantic", "global average pooling"


def summarise(
    session: Session, identity: Identity, layouts: Mapping[str, Layout], *, total_seconds: float
) -> dict[str, Any]:
    """Return the summary of a session whose layers are all assembled.

    Returns
    -------
    dict
        JSON values only; numbers that are undefined are None.
    """
    run = Run(session.directory.path)
    with session.timed("evaluation"):
        layers = {
            layer: {
                **identity.layers[layer],
                "pairs": layouts[layer].total_pairs,
                **_certificate(run, layer, layouts[layer]),
            }
            for layer in layouts
        }
        retrieval = _retrieval(session, identity, run, list(layouts))
    matching = session.counts["matching"]
    seconds = {stage: session.seconds[stage] for stage in STAGES if stage in session.seconds}
    pairs = matching["pairs"]
    rate = pairs / seconds["matching"] if pairs else None
    summary: dict[str, Any] = _plain(
        {
            "run": str(session.directory.path),
            "images": identity.counts(),
            "unreadable": {side: len(manifest.unreadable) for side, manifest in identity.manifests.items()},
            "layers": layers,
            "matcher": {key: value for key, value in identity.facts.items() if key.startswith("matching.")},
            "work": {
                stage: {key: int(counts[key]) for key in ("found", "computed")}
                for stage, counts in session.counts.items()
                if "computed" in counts or "found" in counts
            },
            "pairs_computed": int(pairs),
            "pairs_per_second": rate,
            "seconds": {
                **seconds,
                "total": total_seconds + session.seconds["evaluation"],
            },
            "retrieval": retrieval,
            "engine": session.engine.describe(),
            "warnings": session.warnings,
        }
    )
    return summary


def format_summary(summary: Mapping[str, Any]) -> str:
    """Write a summary for people."""
    work = summary["work"]
    counts = ", ".join(f"{count} {side}" for side, count in summary["images"].items())
    lines = [f"{summary['run']}: {counts}, {len(summary['layers'])} layers, complete"]
    computed = sum(stage["computed"] for stage in work.values())
    if computed == 0:
        lines.append("everything was there already; nothing was computed")
    lines += ["", _layer_table(summary), ""]
    seconds = summary["seconds"]
    stages = ", ".join(
        f"{stage} {format_seconds(value)}" for stage, value in seconds.items() if stage != "total"
    )
    lines.append(f"time: {format_seconds(seconds['total'])} ({stages})")
    if summary["pairs_per_second"]:
        lines.append(
            f"matching: {summary['pairs_computed']} pairs, {summary['pairs_per_second']:.0f} pairs/s on "
            f"{summary['engine']['cpus']} CPUs"
        )
    for stage, count in work.items():
        lines.append(f"{stage}: {count['computed']} computed, {count['found']} found done")
    if summary["retrieval"]:
        lines += ["", _retrieval_table(summary["retrieval"])]
    lines += [f"warning: {warning}" for warning in summary["warnings"]]
    return "\n".join(lines)


def _layer_table(summary: Mapping[str, Any]) -> str:
    rows: list[tuple[str, ...]] = [
        ("layer", "S", "C", "pairs", "certified cosine gap: mean", "max", "undefined")
    ]
    for layer, facts in summary["layers"].items():
        rows.append(
            (
                layer,
                str(facts["n_tokens"]),
                str(facts["n_channels"]),
                str(facts["pairs"]),
                _number(facts["mean_gap"], "{:.1e}"),
                _number(facts["max_gap"], "{:.1e}"),
                str(facts["undefined_images"]),
            )
        )
    return _table(rows)


def _retrieval_table(scores: list[Mapping[str, Any]]) -> str:
    head = scores[0]
    rows = [("layer", *(f"{method} F1@{k}" for k in _ks(scores) for method in (SPATIAL, POOLED, SEMANTIC)))]
    for layer in dict.fromkeys(score["layer"] for score in scores):
        by_key = {(s["method"], s["k"]): s["f1"] for s in scores if s["layer"] == layer}
        rows.append(
            (
                layer,
                *(
                    _number(by_key[method, k], "{:.3f}")
                    for k in _ks(scores)
                    for method in (SPATIAL, POOLED, SEMANTIC)
                ),
            )
        )
    title = (
        f"retrieval of images with the same labels ({head['n_queries']} queries, kernel {head['kernel']}):"
    )
    return f"{title}\n{_table(rows)}"


def _ks(scores: list[Mapping[str, Any]]) -> list[int]:
    return sorted({score["k"] for score in scores})


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _number(value: float | None, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)


def _certificate(run: Run, layer: str, layout: Layout) -> dict[str, Any]:
    """Return the mean and largest certified gap on the cosine scale, over the pairs that were solved."""
    data = run.dataset(layer)
    norms_i, norms_j = np.sqrt(data["squared_norm_i"].values), np.sqrt(data["squared_norm_j"].values)
    total, count, largest = 0.0, 0, -math.inf
    # Chunk by chunk, each read once: rows of a large matrix would not fit.
    chunks = Layout(layout.n_rows, layout.n_columns, data["gap"].encoding["chunks"][0], layout.symmetric)
    for row, column in chunks.tiles():
        rows, columns = chunks.rows(row), chunks.columns(column)
        scale = norms_i[rows, None] * norms_j[None, columns]
        defined = scale > 0
        if layout.symmetric and row == column:
            defined = np.triu(defined, k=1)
        cosine_gap = data["gap"][rows, columns].values[defined] / scale[defined]
        if cosine_gap.size:
            total, count = total + float(cosine_gap.sum()), count + cosine_gap.size
            largest = max(largest, float(cosine_gap.max()))
    zero = int(np.count_nonzero(norms_i == 0))
    zero += 0 if layout.symmetric else int(np.count_nonzero(norms_j == 0))
    return {
        "mean_gap": total / count if count else None,
        "max_gap": largest if count else None,
        "undefined_images": zero,
    }


def _retrieval(session: Session, identity: Identity, run: Run, layers: list[str]) -> list[dict[str, Any]]:
    rows, columns = identity.manifests[identity.row_side], identity.manifests["images"]
    if not any(rows.labels()) or not any(columns.labels()):
        return []
    symmetric = identity.row_side == "images"
    kernel = session.config.retrieval.kernel
    scores = []
    for layer in layers:
        pooled = FeatureStore(session.directory.features, "images", layer).read_pooled()
        queries = FeatureStore(session.directory.features, identity.row_side, layer).read_pooled()
        readers: dict[str, RowReader] = {
            SPATIAL: run.similarity_rows(layer, kernel, SPATIAL),
            POOLED: cosine_rows(queries, pooled),
            SEMANTIC: run.similarity_rows(layer, kernel, SEMANTIC),
        }
        for method, reader in readers.items():
            for k in session.config.retrieval.k:
                score = retrieval_f1(
                    reader,
                    rows.labels(),
                    k=k,
                    database_labels=None if symmetric else columns.labels(),
                    groups=rows.groups(),
                    database_groups=columns.groups(),
                )
                scores.append(
                    {
                        "layer": layer,
                        "method": method,
                        "kernel": "cosine" if method == POOLED else kernel,
                        "k": k,
                        "f1": score.f1,
                        "n_queries": score.n_queries,
                        "n_left_out": score.n_left_out,
                    }
                )
    return scores


def _plain(value: Any) -> Any:
    """Return JSON values: NaN and infinity have none, so they become None."""
    return json.loads(json.dumps(value, allow_nan=True), parse_constant=lambda _: None)

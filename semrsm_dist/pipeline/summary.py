"""The summary of a session: times, rates, certificates, what was found and computed, retrieval scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semrsm_dist.data.manifest import Manifest
from semrsm_dist.errors import counted
from semrsm_dist.evaluation.retrieval import POOLED, SEMANTIC, SPATIAL
from semrsm_dist.matching.matcher import MATCHERS
from semrsm_dist.pipeline.session import Session
from semrsm_dist.pipeline.stages.evaluation import evaluate, warn_of_zeros
from semrsm_dist.progress import format_seconds
from semrsm_dist.store.record import NeighbourSettings, RunRecord, Side
from semrsm_dist.store.tiles import GAP_BITS

STAGES = ("scan", "model", "extraction", "import", "check", "compile", "matching", "assembly", "evaluation")
WORKER_PARTS = {
    "product": "affinity products",
    "match": "matching",
    "solve": "other",
    "load": "loading",
    "write": "writing",
}
"""The parts of a worker's time on tiles, and their names for people."""

LEAST_OTHER = 0.1
"""Seconds outside of all stages, such as loading libraries and listing inputs, from which on they are shown."""

DECISIONS = {
    "by_bounds": "by bounds",
    "by_sketches": "by sketches",
    "by_products": "by products",
    "solved": "by matching",
}
"""How a search decides pairs, as the receipts of its workers count them, and the words for people."""


def summarise(
    session: Session, record: RunRecord, manifests: Mapping[Side, Manifest], *, total_seconds: float
) -> dict[str, Any]:
    """Return the summary of a session whose requested layers are all assembled.

    JSON values only; numbers that are undefined are None.
    """
    warn_of_zeros(session, record, manifests)
    found = evaluate(session, record, manifests)
    layers = {
        layer: {
            "n_tokens": record.layers[layer].n_tokens,
            "n_channels": record.layers[layer].n_channels,
            "pairs": record.layout(layer).total_pairs,
            **found["certificates"][layer],
        }
        for layer in record.requested
    }
    matching = session.counts["matching"]
    seconds = {stage: session.seconds[stage] for stage in STAGES if stage in session.seconds}
    pairs = matching["pairs"]
    rate = pairs / seconds["matching"] if pairs else None
    summary: dict[str, Any] = _plain(
        {
            "run": str(session.directory.path),
            "about": _describe(record, manifests["images"]),
            "images": record.counts,
            "unreadable": {side: len(manifest.unreadable) for side, manifest in manifests.items()},
            "layers": layers,
            "matcher": {
                key: value for key, value in record.fingerprint.items() if key.startswith("matching.")
            },
            "certified": MATCHERS.load(record.matching["matcher"]).certified,
            "work": {
                stage: {key: int(counts[key]) for key in ("found", "computed")}
                for stage, counts in session.counts.items()
                if "computed" in counts or "found" in counts
            },
            "pairs_computed": int(pairs),
            "pairs_per_second": rate,
            "seconds": seconds | {"total": total_seconds + session.seconds["evaluation"]},
            "worker_seconds": {
                part: matching[f"{part}_seconds"] for part in WORKER_PARTS if matching[f"{part}_seconds"]
            },
            "neighbours": None if record.neighbours is None else record.neighbours._asdict(),
            "decided": {name: int(matching[name]) for name in DECISIONS if name in matching},
            "retrieval": found["retrieval"],
            "evaluated": found["evaluated"],
            "engine": session.engine.describe(),
            "warnings": session.warnings,
        }
    )
    summary["computed_by"] = _computing_session(summary, session.directory.read_summary() or {})
    return summary


def _computing_session(summary: dict[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return times, work and machine of the last session that computed anything: of this one, or as known before."""
    is_idle = not any(stage["computed"] for stage in summary["work"].values())
    if is_idle and known.get("computed_by"):
        return dict(known["computed_by"])
    return {name: summary[name] for name in ("seconds", "work", "pairs_computed", "engine")}


def format_summary(summary: Mapping[str, Any]) -> str:
    """Format a summary for people."""
    work = summary["work"]
    counts = ", ".join(f"{count} {side}" for side, count in summary["images"].items())
    kept = summary["neighbours"]
    what = "" if kept is None else f", {NeighbourSettings(**kept).describe(summary['images'])}"
    lines = [
        f"{summary['run']}: {counts}, {counted(len(summary['layers']), 'layer')}{what}, complete",
        summary["about"],
    ]
    computed = sum(stage["computed"] for stage in work.values())
    if computed == 0:
        lines.append("everything was complete already; nothing was computed")
    lines += ["", _layer_table(summary), *_gap_note(summary), ""]
    lines.append(_format_times(summary["seconds"]))
    if summary["pairs_per_second"]:
        lines.append(
            f"matching: {counted(summary['pairs_computed'], 'pair')}, {summary['pairs_per_second']:.0f} pairs/s on "
            f"{counted(summary['engine']['cpus'], 'CPU')}"
        )
    decided = summary["decided"]
    if decided:
        shares = ", ".join(
            f"{100 * count / max(sum(decided.values()), 1):.3g} % {DECISIONS[name]}"
            for name, count in decided.items()
        )
        lines.append(f"pairs were decided {shares}")
    parts = summary["worker_seconds"]
    if parts:
        # Of a matcher that does not measure its products and matching, all is in one part.
        names = WORKER_PARTS if "match" in parts else WORKER_PARTS | {"solve": "matching"}
        shares = ", ".join(
            f"{100 * value / sum(parts.values()):.0f} % {names[part]}" for part, value in parts.items()
        )
        lines.append(f"the workers' time on tiles: {shares}")
    for stage, count in work.items():
        computed = counted(count["computed"], "tile" if stage == "matching" else "chunk")
        lines.append(f"{stage}: {computed} computed, {count['found']} already there")
    if summary["retrieval"]:
        lines += ["", _retrieval_table(summary["retrieval"])]
    if summary["warnings"]:
        warnings = counted(len(summary["warnings"]), "warning")
        lines.append(f"{warnings}: see above (standard error) or summary.json")
    return "\n".join(lines)


def _format_times(seconds: Mapping[str, float]) -> str:
    """Return the time of a session and of its stages, and what passed outside of all stages."""
    stages = {stage: value for stage, value in seconds.items() if stage != "total"}
    other = seconds["total"] - sum(stages.values())
    if other >= LEAST_OTHER:
        stages["other"] = other
    parts = ", ".join(f"{stage} {format_seconds(value)}" for stage, value in stages.items())
    return f"time: {format_seconds(seconds['total'])} ({parts})"


def _describe(record: RunRecord, images: Manifest) -> str:
    """Return in one line what similarities of what these are: model, weights, matcher, classes of images."""
    model = record.config["model"]
    parameters = [
        f"{name} {value}"
        for name, value in record.matching.items()
        if name not in ("matcher", "version")
        and (name, value) != ("device", "cpu")  # where all other work is done, too
    ]
    source = "ready-made features"
    if model is not None:
        weights = {
            "random": f"random weights (seed {model['seed']}, untrained)",
            "digits": "weights trained on scenes of digits",
            "pretrained": "pretrained weights",
            "package": "weights of an installed package",
        }.get(model["weights"], f"weights {Path(model['weights']).name}")
        source = f"{model['name']}, {weights}"
    classes = len({label for labels in images.labels() for label in labels})
    return "; ".join(
        [
            source,
            f"matcher {', '.join([record.matching['matcher'], *parameters])}",
            f"{classes} class{'' if classes == 1 else 'es'} of images" if classes else "no labels",
        ]
    )


def _layer_table(summary: Mapping[str, Any]) -> str:
    rows: list[tuple[str, ...]] = [
        ("layer", "S", "C", "pairs", f"{_gap_name(summary)}: mean", "max", "undefined images")
    ]
    for layer, facts in summary["layers"].items():
        sizes = (str(facts[key]) for key in ("n_tokens", "n_channels", "pairs"))
        gaps = (_number(facts[key], "{:.1e}") for key in ("mean_gap", "max_gap"))
        rows.append((layer, *sizes, *gaps, str(facts["undefined_images"])))
    return _table(rows)


def _gap_note(summary: Mapping[str, Any]) -> list[str]:
    """Return why a gap that is within the tolerance is shown above it, where one is."""
    tolerance = summary["matcher"].get("matching.tolerance")
    gaps = [facts["max_gap"] for facts in summary["layers"].values() if facts["max_gap"] is not None]
    if not tolerance or max(gaps, default=0.0) <= tolerance:
        return []
    return [
        f"gaps are stored rounded up, by up to {100 * 2.0**-GAP_BITS:.0f} %, so one within the tolerance of "
        f"{tolerance:g} can be shown above it"
    ]


def _gap_name(summary: Mapping[str, Any]) -> str:
    """Return what the gap of a matcher is: small by a guarantee, or what a bound leaves open."""
    return "certified cosine gap" if summary["certified"] else "cosine gap to the bound (not certified)"


def _retrieval_table(scores: list[Mapping[str, Any]]) -> str:
    head = scores[0]
    known = {score["method"] for score in scores}
    methods = [method for method in (SPATIAL, POOLED, SEMANTIC) if method in known]
    rows = [("layer", "k", *(f"{method} F1@k" for method in methods))]
    for layer, k in dict.fromkeys((score["layer"], score["k"]) for score in scores):
        f1 = {s["method"]: s["f1"] for s in scores if (s["layer"], s["k"]) == (layer, k)}
        rows.append((layer, str(k), *(_number(f1[method], "{:.3f}") for method in methods)))
    left = head["n_left_out"]
    left_out = f", {left} left out: no labels, or no defined similarity" if left else ""
    title = f"retrieval of images sharing labels ({head['n_queries']} queries{left_out}, kernel {head['kernel']}):"
    return f"{title}\n{_table(rows)}"


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


def _plain(value: Any) -> Any:
    """Return JSON values: NaN and infinity have none, so they become None."""
    return json.loads(json.dumps(value, allow_nan=True), parse_constant=lambda _: None)

"""What was run, as HTML that needs no script: model, matcher, gaps, times, scores, experiments."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.evaluation.retrieval import POOLED, SEMANTIC, SPATIAL
from semrsm_dist.progress import format_seconds
from semrsm_dist.report.evaluations import MOST_ROWS, Evaluation
from semrsm_dist.report.gathering import is_certified
from semrsm_dist.report.maps import DECADES, PER_DECADE
from semrsm_dist.results.run import Run

Summary = Mapping[str, Any]

TICK = 24
"""Width of a number below a histogram, so that none is written over the 0 of the first bar."""

STAGE_WORK = {"scan": "images", "extraction": "images", "matching": "pairs", "evaluation": "pairs"}
"""Stages whose throughput is known, and what they process."""


def headline(run: Run, summary: Summary) -> str:
    """Return the numbers that one looks for first."""
    counts = run.record.counts
    n_pairs = sum(run.layout(layer).total_pairs for layer in run.requested_layers)
    facts = [(f"{count:,}", side) for side, count in counts.items()]
    facts += [(str(len(run.requested_layers)), "layers" if len(run.requested_layers) > 1 else "layer")]
    if run.record.neighbours is None:
        facts.append((f"{n_pairs:,}", "matched pairs"))
    else:
        number, kept, of_each = run.record.neighbours.describe(counts).partition("neighbours")
        facts.append((number.strip(), f"{kept}{of_each}"))
    gaps = [layer["max_gap"] for layer in summary.get("layers", {}).values() if layer["max_gap"] is not None]
    if gaps:
        certified = is_certified(run)
        facts.append(
            (f"\u2264 {max(gaps):.1e}", "largest certified gap" if certified else "largest gap to the bound")
        )
    best = _best_gain(summary)
    if best:
        facts.append((_signed(best[1]), f"F1@{best[2]} gained by matching, {best[0]}"))
    cells = "".join(
        f"<li><strong>{escape(value)}</strong> <span>{escape(name)}</span></li>" for value, name in facts
    )
    return f'<ul class="headline">{cells}</ul>'


def _signed(value: float) -> str:
    """Return a difference to three digits, with a true minus, and without a sign if it is nothing."""
    text = f"{value:+.3f}"
    return text.replace("-", "\u2212") if float(text) else "0.000"


def _best_gain(summary: Summary) -> tuple[str, float, int] | None:
    """Return the layer with the largest gain in retrieval, the gain and its k."""
    scores = {(s["layer"], s["k"], s["method"]): s["f1"] for s in summary.get("retrieval", [])}
    gains = [
        (layer, f1 - scores[layer, k, SPATIAL], k)
        for (layer, k, method), f1 in scores.items()
        if method == SEMANTIC and f1 is not None and scores.get((layer, k, SPATIAL)) is not None
    ]
    return max(gains, key=lambda gain: gain[1], default=None)


def scores_table(summary: Summary) -> str:
    """Return the mean retrieval scores of all queries."""
    scores = summary.get("retrieval", [])
    if not scores:
        return ""
    known = {score["method"] for score in scores}
    methods = [method for method in (SPATIAL, POOLED, SEMANTIC) if method in known]
    rows = []
    for layer, k in dict.fromkeys((score["layer"], score["k"]) for score in scores):
        f1 = {s["method"]: s["f1"] for s in scores if (s["layer"], s["k"]) == (layer, k)}
        rows.append([layer, k, *(f1[method] for method in methods)])
    head = scores[0]
    n_queries, left_out = head["n_queries"], head["n_left_out"]
    caption = (
        f"Mean F1@k of {n_queries:,} of {n_queries + left_out:,} queries: {left_out:,} without labels or defined "
        "similarity left out"
        if left_out
        else f"Mean F1@k of {n_queries:,} queries"
    )
    return table(["layer", "k", *methods], rows, caption=caption)


def run_facts(run: Run, summary: Summary) -> str:
    """Return what was run, on what, how long it took, and the layers with their sizes."""
    return "\n".join(
        [
            '<div class="facts">',
            _definitions("Model", _model(run)),
            _definitions("Matching", _matching(run, summary)),
            _definitions("Images", _images(run, summary)),
            _definitions("Machine", _machine(summary)),
            _definitions("Versions", dict(run.record.versions)),
            "</div>",
            _times(run, summary),
            _layers(run, summary),
        ]
    )


def _model(run: Run) -> dict[str, Any]:
    config, record = run.record.config.get("model"), run.record
    if config is None or record.cached.model is None:
        sources = {key: source.sha256 for key, source in record.cached.sources.items()}
        return {"features": "ready-made"} | {f"SHA-256 of {key}": value for key, value in sources.items()}
    facts = record.cached.model.facts
    weights = (
        f"{config['weights']} (seed {config['seed']})" if config["weights"] == "random" else config["weights"]
    )
    height, width = facts["preprocessing"]["input_size"][1:]
    return {
        "name": facts["name"],
        "weights": weights,
        "SHA-256 of the weights": facts["weights_sha256"],
        "input": f"{height} x {width} pixels, {facts['preprocessing']['interpolation']}",
        "large JPEGs": "decoded at a part of their size" if config.get("jpeg_draft") else None,
        "precision": record.cached.model.precision,
        "prompt": (facts.get("prompt") or {}).get("text"),
        "layers": ", ".join(run.requested_layers),
    }


def _matching(run: Run, summary: Summary) -> dict[str, Any]:
    parameters = run.record.matching
    facts = {"matcher": f"{parameters.pop('matcher')}, version {parameters.pop('version')}", **parameters}
    facts["certified"] = "yes" if is_certified(run) else "no: gaps are to an upper bound that may be loose"
    if run.record.neighbours is not None:
        facts["neighbours"] = run.record.neighbours.k
    facts["kernels"] = ", ".join(run.kernels)
    return facts


def _images(run: Run, summary: Summary) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for side, count in run.record.counts.items():
        section = run.record.config.get("data" if side == "images" else "queries") or {}
        facts[side] = f"{count:,} from {section.get('source', 'an unknown source')}"
        if section.get("path"):
            facts[f"path of {side}"] = section["path"]
        unreadable = summary.get("unreadable", {}).get(side)
        if unreadable:
            facts[f"unreadable {side}"] = f"{unreadable:,}"
        facts[f"SHA-256 of {side}"] = run.record.fingerprint.get(f"{side}.sha256")
    return facts


def _machine(summary: Summary) -> dict[str, Any]:
    engine = dict(_session(summary).get("engine", {}))
    for name in ("memory", "memory_per_gpu"):
        engine[name] = f"{engine[name] / 2**30:.1f} GiB" if engine.get(name) else None
    return engine


def _times(run: Run, summary: Summary) -> str:
    session = _session(summary)
    seconds, work = session.get("seconds"), session.get("work", {})
    if not seconds:
        return ""
    rows, processed = [], _processed(run, summary)
    for stage, value in seconds.items():
        done = processed.get(stage)
        rate = Number(f"{done / value:,.0f} {STAGE_WORK[stage]}/s") if done and value else ""
        tally = work.get(stage, {})
        rows.append(
            [stage, Number(format_seconds(value)), rate, tally.get("computed", ""), tally.get("found", "")]
        )
    head = ["stage", "time", "throughput", "units computed", "already there"]
    return table(head, rows, caption="Times of the last session that computed anything")


def _session(summary: Summary) -> Summary:
    """Return the times, work and machine of the last session that computed anything."""
    found: Summary = summary.get("computed_by", summary)
    return found


def _processed(run: Run, summary: Summary) -> dict[str, int | None]:
    """Return how much of `STAGE_WORK` that session did in each stage."""
    session, n_images = _session(summary), sum(run.record.counts.values())
    chunks = session.get("work", {}).get("extraction", {}).get("computed", 0)
    pairs = session.get("pairs_computed")
    all_pairs = sum(layer["pairs"] for layer in summary.get("layers", {}).values())
    return {
        "scan": n_images,
        "extraction": min(n_images, chunks * run.record.chunk_size),
        "matching": pairs,
        "evaluation": all_pairs if pairs else None,  # else it was not done again
    }


def _layers(run: Run, summary: Summary) -> str:
    rows = []
    for layer in run.layers:
        sizes, facts = run.record.layers[layer], summary.get("layers", {}).get(layer, {})
        rows.append(
            [
                layer,
                sizes.n_tokens,
                sizes.n_channels,
                Number(f"{run.layout(layer).total_pairs:,}"),
                *(
                    Number(f"{facts[key]:.1e}") if facts.get(key) is not None else None
                    for key in ("mean_gap", "max_gap")
                ),
                facts.get("undefined_images"),
            ]
        )
    head = ["layer", "tokens S", "channels C", "pairs", "mean gap", "largest gap", "undefined images"]
    return table(
        head, rows, caption="Layers; gaps are on the cosine scale, and stored rounded up, by up to 6 %"
    )


def gap_histogram(layer: str, gaps: NDArray[np.int64], tolerance: float | None) -> str:
    """Return the distribution of a layer's gaps as a drawing with its numbers as text."""
    if not gaps.sum():
        return ""
    counted = np.flatnonzero(gaps[1:])
    first = max(0, int(counted.min()) - 1) if counted.size else 0
    last = min(len(gaps) - 2, int(counted.max()) + 1) if counted.size else 1
    bars = np.concatenate([gaps[:1], gaps[1 + first : 2 + last]])
    width, height, step = 300, 90, 300 / len(bars)
    drawn = "".join(
        f'<rect x="{at * step + 1:.1f}" y="{height - height * n / bars.max():.1f}" width="{step - 2:.1f}" '
        f'height="{height * n / bars.max():.1f}"><title>{_gap_range(at, first)}: '
        f"{n:,} pair{'' if n == 1 else 's'}</title></rect>"
        for at, n in enumerate(bars)
    )
    decades = (place for place in range(first, last + 2) if place % PER_DECADE == 0)
    at = {DECADES[0] + place // PER_DECADE: (1 + place - first) * step for place in decades}
    ticks = "".join(
        f'<text x="{x:.1f}" y="{height + 14}">1e{decade}</text>'
        for decade, x in at.items()
        if step / 2 + TICK < x < width
    )
    mark = ""
    if tolerance:
        x = (1 + (np.log10(tolerance) - DECADES[0]) * PER_DECADE - first) * step
        if 0 <= x <= width:
            mark = f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"><title>tolerance</title></line>'
    half = int(np.searchsorted(np.cumsum(gaps), gaps.sum() / 2))
    most = 10 ** (DECADES[0] + half / PER_DECADE)
    exact = f"{gaps[0]:,} without a gap, " if gaps[0] else ""
    unbroken = f"{most:.1e}".replace("-", "\u2011")
    exact += f"half at most {unbroken}" if half else "half without one"
    return (
        f"<figure class='gaps'><svg viewBox='0 -4 {width} {height + 24}' role='img' "
        f"aria-label='Distribution of the gaps of {escape(layer, quote=True)}: {exact}'>{drawn}{mark}"
        f"<text x='{step / 2:.1f}' y='{height + 14}'>0</text>{ticks}</svg>"
        f"<figcaption>{escape(layer)}: {gaps.sum():,} pair{'' if gaps.sum() == 1 else 's'}; {exact}"
        "</figcaption></figure>"
    )


def _gap_range(bar: int, first: int) -> str:
    if bar == 0:
        return "no gap"
    place = first + bar - 1
    low, high = (f"{10 ** (DECADES[0] + each / PER_DECADE):.1e}" for each in (place, place + 1))
    return f"{low} to {high}" if place else f"up to {high}"  # the first holds all that are smaller


def evaluations(found: Iterable[Evaluation]) -> str:
    """Return the experiments: figure, settings and table of each."""
    parts = []
    for one in found:
        settings = {name: value for name, value in one.settings.items() if value not in (None, "", [], {})}
        more = f"; the first {MOST_ROWS} of {one.n_rows:,} rows" if one.n_rows > MOST_ROWS else ""
        figure = (
            f'<img class="plot" alt="Figure of the experiment {escape(one.name, quote=True)}" '
            f'src="data:image/png;base64,{base64.b64encode(one.figure).decode()}">'
            if one.figure
            else ""
        )
        body = (
            f"<p class='note'>{escape(one.problem)}</p>"
            if one.problem
            else (
                f"<details><summary>Table ({one.n_rows:,} rows) and settings</summary>"
                f"{_definitions('Settings', settings)}{table(one.columns, one.rows, caption=one.name + more)}</details>"
            )
        )
        parts.append(f"<article class='experiment'><h3>{escape(one.name)}</h3>{figure}{body}</article>")
    return "\n".join(parts)


def _definitions(title: str, facts: Mapping[str, Any]) -> str:
    known = {name: value for name, value in facts.items() if value not in (None, "")}
    if not known:
        return ""
    rows = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in known.items()
    )
    return f"<section><h3>{escape(title)}</h3><dl>{rows}</dl></section>"


class Number(str):
    """A number as it is shown."""


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, caption: str) -> str:
    """Return a table; numbers are to the right, with four digits where they are not whole."""
    rows = list(rows)
    titles = "".join(
        f'<th scope="col"{_alignment(*(row[at] for row in rows))}>{escape(name)}</th>'
        for at, name in enumerate(head)
    )
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table><caption><span>{escape(caption)}</span></caption>'
        f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _alignment(*values: Any) -> str:
    """Return the class of a cell of numbers, or of the head of a column of them."""
    known = [value for value in values if value not in (None, "")]
    is_number = all(
        isinstance(value, int | float | Number) and not isinstance(value, bool) for value in known
    )
    return ' class="number"' if known and is_number else ""


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return '<td class="number">-</td>'
    text = f"{value:#.4g}" if isinstance(value, float) else escape(str(value))
    return f"<td{_alignment(value)}>{text}</td>"

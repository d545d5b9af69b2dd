"""Metrics of the work, for Ray's dashboard and for Prometheus: counted in each worker process, where it is done.

Ray adds the node and the process as tags, and offers all metrics of a node at one port (`MetricsExportPort` of
`ray.nodes()`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from ray.util.metrics import Counter, Histogram

from semrsm_dist.engine.protocol import Crash, Receipt

TAG = "work"
"""The kind of worker that the work is of, such as MatchingWorker."""

COUNTED = {
    "tiles": "tiles that were solved, searched or checked",
    "pairs": "pairs of images that were matched",
    "images": "images that were read, imported or extracted",
}
"""The counts of receipts that become metrics."""

SECONDS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Bounds of the histogram of seconds."""


@cache
def _counters() -> dict[str, Counter]:
    return {name: Counter(f"semrsm_{name}", f"Number of {text}.", (TAG,)) for name, text in COUNTED.items()}


@cache
def _failures() -> Counter:
    return Counter("semrsm_failures", "Attempts at a unit of work that failed.", (TAG,))


@cache
def _busy_seconds() -> Counter:
    return Counter("semrsm_busy_seconds", "Seconds that workers were at units that they finished.", (TAG,))


@cache
def _unit_seconds() -> Histogram:
    text = "Seconds of a unit of work: of a tile in matching, of a chunk of images in extraction."
    return Histogram("semrsm_unit_seconds", text, list(SECONDS), (TAG,))


def metered(items: Iterator[Receipt | Crash], work: str) -> Iterator[Receipt | Crash]:
    """Yield what comes of a worker of the kind `work`, and count it."""
    tags = {TAG: work}
    for item in items:
        if isinstance(item, Crash) or item.error is not None:
            _failures().inc(1, tags)
        else:
            _unit_seconds().observe(item.seconds, tags)
            _busy_seconds().inc(max(item.seconds, 1e-9), tags)
            for name, counter in _counters().items():
                if (count := item.counts.get(name, 0)) > 0:
                    counter.inc(count, tags)
        yield item

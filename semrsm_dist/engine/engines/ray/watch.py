"""Warnings when nothing comes back from Ray: no room, no process, or work that takes long."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeAlias

import ray

from semrsm_dist.engine.engines.ray.requests import format_resources
from semrsm_dist.engine.protocol import Resources

STALL_SECONDS = 60.0
"""Silence before the first warning; each further one waits twice as long."""

FIT_SECONDS = 2.0
"""Maximum age of the driver's view of the cluster's size."""

Fitting: TypeAlias = Callable[[Resources], int]
"""Returns how many workers of these resources the cluster could hold."""

log = logging.getLogger(__name__)


class Watch:
    """Warns when nothing comes back: no node has room, no worker starts, or those that work take long."""

    def __init__(self, resources: Resources, fitting: Fitting) -> None:
        self._resources = resources
        self._fitting = fitting
        self._has_begun = False
        self._quiet_since = time.monotonic()
        self._warnings = 0
        self._fit = 0
        self._fit_until = 0.0

    def fit(self) -> int:
        """Return how many workers the cluster could hold, as of a moment ago."""
        if time.monotonic() > self._fit_until:
            self._fit = self._fitting(self._resources)
            self._fit_until = time.monotonic() + FIT_SECONDS
        return self._fit

    def lose(self) -> None:
        """Note that a worker was lost: look at the cluster before it is given anything else.

        Raises what `Fitting` does: if it was Ray's own process, whatever is submitted ends the driver without a word.
        """
        self._fit_until = 0.0
        self.fit()

    def rest(self) -> None:
        """Note that nothing is to be expected, or that something has come back."""
        self._quiet_since = time.monotonic()
        self._warnings = 0

    def begin(self) -> None:
        """Note that a worker works."""
        self._has_begun = True
        self.rest()

    def check(self, *, starved: bool = False) -> None:
        """Warn if it has been quiet for long; `starved` if no worker is ready."""
        quiet = time.monotonic() - self._quiet_since
        if quiet < STALL_SECONDS * 2**self._warnings:
            return
        self._warnings += 1
        fit = self.fit()
        if fit > 0 and self._has_begun and not starved:
            log.warning(
                "no result for %.0f s, although workers have started: a unit of work takes that long, or a worker "
                "hangs; if it does, interrupt the run and start it again: what is finished is kept",
                quiet,
            )
            return
        have = format_resources(ray.cluster_resources())  # type: ignore[no-untyped-call]
        free = format_resources(ray.available_resources())  # type: ignore[no-untyped-call]
        if fit > 0:
            log.warning(
                "no worker has started for %.0f s, although the cluster has %s, of which %s are free, and a worker "
                "needs %s. Other work may hold the rest, or Ray cannot start processes: see the logs in its session "
                "folder (/tmp/ray/session_latest/logs)",
                quiet,
                have,
                free,
                self._resources,
            )
            return
        log.warning(
            "still waiting for room for a worker of %s: the cluster has %s, of which %s are free. Add nodes, ask for "
            "less, or wait if the cluster is growing",
            self._resources,
            have,
            free,
        )

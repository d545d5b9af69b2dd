"""The matchers that are compared, and their values and times on the same pairs in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.experiments.approximation import ApproximationParameters
from semrsm_dist.matching.matcher import Limits, Matcher
from semrsm_dist.matching.matchers import MATCHERS, make_matcher

CHANNEL_DIVISORS = (2, 4, 8)
"""Matchers that limit the channels keep these shares of them."""

SLOW = 2.0
"""Seconds of a round beyond which a method is timed only once."""


@dataclass(frozen=True, slots=True)
class Method:
    """A matcher and, if it has them, what makes it cheaper, its tolerance on the cosine scale and its seed."""

    matcher: str
    parameter: str = ""
    size: float = np.nan
    tolerance: float = np.nan
    seed: int | None = None

    def make(self) -> Matcher:
        """Return the matcher."""
        given: dict[str, int | float] = {self.parameter: int(self.size)} if self.parameter else {}
        if not np.isnan(self.tolerance):
            given["tolerance"] = self.tolerance
        if self.seed is not None:
            given["seed"] = self.seed
        return make_matcher(self.matcher, **given)


@dataclass(slots=True, eq=False)
class Measurement:
    """What a method gives on R x K pairs as `TileResult` has it, and its processor time.

    Times are one array (R,) a round: seconds a pair, and seconds to prepare an image, of each row of pairs.
    """

    method: Method
    matched: NDArray[np.float64]
    upper_bound: NDArray[np.float64]
    identity: NDArray[np.float64]
    pair_seconds: list[NDArray[np.float64]] = field(default_factory=list)
    image_seconds: list[NDArray[np.float64]] = field(default_factory=list)


def list_methods(
    n_tokens: int, n_channels: int, grid: ApproximationParameters, *, exact: bool
) -> list[Method]:
    """Return the methods for representations of S x C, with sizes below S; `exact` adds the Hungarian method.

    The two references come first, then all other matchers by name.
    """
    kinds = sorted(
        (kind for _, kind in MATCHERS.usable()),
        key=lambda kind: (kind.name != "hungarian", kind.name != "auction", kind.name),
    )
    return [
        method
        for kind in kinds
        if exact or kind.name != "hungarian"
        for method in _methods_of(kind, n_tokens, n_channels, grid)
    ]


def _methods_of(
    kind: type[Matcher], n_tokens: int, n_channels: int, grid: ApproximationParameters
) -> list[Method]:
    """Return what is tried of a matcher: each size of what limits it, with each tolerance."""
    seed = grid.seed if "seed" in kind.model_fields else None
    tolerances: tuple[float, ...] = (np.nan,)
    if "tolerance" in kind.model_fields:
        tolerances = grid.tolerances if kind.certified else grid.inner_tolerances
    limits = {
        mark.what: name
        for name, field in kind.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, Limits)
    }
    if "tokens" in limits:
        sizes = [size for size in grid.sizes if size < n_tokens]
    else:
        sizes = sorted({n_channels // divisor for divisor in CHANNEL_DIVISORS} - {0, n_channels})
    parameter = limits.get("tokens", limits.get("channels", ""))
    return [
        Method(kind.name, parameter, size, tolerance, seed)
        for size in (sizes if parameter else [np.nan])
        for tolerance in tolerances
    ]


def measure_methods(
    methods: Sequence[Method],
    rows: NDArray[Any],
    columns: NDArray[Any],
    *,
    rounds: int,
    advance: Callable[[], None] = lambda: None,
) -> list[Measurement]:
    """Match each of `rows` (R, S, C) with each of `columns` (K, S, C) by each method, several times.

    Method after method does one row of pairs, then the next row follows, so that whatever else the machine does hits
    all alike. Times are processor time of this thread, of matching as a run does it; panels are prepared anew for each
    row, timed apart, and only one method's are held. Compiling is not counted.
    """
    shape = (len(rows), len(columns))
    matchers = [method.make() for method in methods]
    for matcher in matchers:
        matcher.compile()
    found = [Measurement(method, np.empty(shape), np.empty(shape), np.empty(shape)) for method in methods]
    for turn in range(rounds):
        timed = [turn == 0 or one.pair_seconds[0].sum() * shape[1] < SLOW for one in found]
        for one, wanted in zip(found, timed, strict=True):
            if wanted:
                one.pair_seconds.append(np.empty(shape[0]))
                one.image_seconds.append(np.empty(shape[0]))
        for r in range(shape[0]):
            for one, matcher, wanted in zip(found, matchers, timed, strict=True):
                if wanted:
                    _measure_row(one, matcher, rows[r : r + 1], columns, r)
            advance()
    return found


def _measure_row(
    measurement: Measurement, matcher: Matcher, row: NDArray[Any], columns: NDArray[Any], r: int
) -> None:
    started = time.thread_time()
    left, right = matcher.prepare(row), matcher.prepare(columns)
    prepared = time.thread_time()
    tile = matcher.solve_tile(left, right)
    measurement.pair_seconds[-1][r] = (time.thread_time() - prepared) / len(columns)
    measurement.image_seconds[-1][r] = (prepared - started) / (1 + len(columns))
    measurement.matched[r], measurement.upper_bound[r] = tile.matched[0], tile.upper_bound[0]
    measurement.identity[r] = tile.identity[0]

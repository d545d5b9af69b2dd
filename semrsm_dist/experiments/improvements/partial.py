"""Partial matching as a candidate: only good matches count, so that what has no partner, as background, does not.

Tokens are taken less the mean token of the database: two of them with a negative product are less alike than two
tokens are on average. See `semrsm_dist.matching.assignment.partial` for the two families and their certificates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.experiments.improvements import ImprovementsParameters
from semrsm_dist.experiments.improvements.treatments import GAP, centre
from semrsm_dist.experiments.pair_scores import Both, Solve, Tokens, symmetric
from semrsm_dist.matching.assignment.partial import match_partially, pack_unit_images

SHARE, DUSTBIN = "best share", "dustbin"


def list_partial(parameters: ImprovementsParameters) -> list[tuple[str, float]]:
    """Return the families and settings that are tried, shares before thresholds."""
    return [(SHARE, share) for share in parameters.shares] + [
        (DUSTBIN, threshold) for threshold in parameters.dustbin
    ]


def name_of(family: str, setting: float) -> str:
    """Return the name of a score."""
    return f"{family} {setting:g}"


def gap_of(name: str) -> str:
    """Return the name of how far a score can be below the best."""
    return f"{name} {GAP}"


def score_partially(parameters: ImprovementsParameters, mean: NDArray[np.float64]) -> Solve:
    """Return what scores pairs by each share and threshold, with their gaps."""
    names = [name_of(*one) for one in list_partial(parameters)]
    settings = np.array(parameters.shares, np.float64), np.array(parameters.dustbin, np.float64)

    def solve(rows: Tokens, columns: Tokens) -> dict[str, Both]:
        left = pack_unit_images(centre(rows, mean), rows.counts)
        right = left if columns is rows else pack_unit_images(centre(columns, mean), columns.counts)
        found = match_partially(left, right, *settings, parameters.tolerance)
        scores = dict(zip(names, found.scores, strict=True))
        gaps = {gap_of(name): gap for name, gap in zip(names, found.gaps, strict=True)}
        return {name: symmetric(values) for name, values in (scores | gaps).items()}

    return solve

"""Partial matching: only good matches count, so that what has no partner, as background, does not.

The matches are those of the best permutation of the tokens as they are. The mean token m of the database changes no
permutation (see `semrsm_dist.evaluation.centring`), but it says which matches are good: two centred tokens with a
negative product are less alike than two tokens are on average. So with c_s the product of matched centred tokens,

- *best share*: the sum of the largest c_s, a share of them;
- *dustbin*: the sum of ``max(c_s - threshold |t_s| |t'_s|, 0)``,

both over the norms of the two centred images. The best partial matching may score higher: these are lower bounds of it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.experiments.improvements import ImprovementsParameters
from semrsm_dist.experiments.improvements.treatments import centre
from semrsm_dist.experiments.pair_scores import Both, Solve, Tokens, symmetric
from semrsm_dist.matching.matcher import UNMATCHED, Matcher

SHARE, DUSTBIN = "best share", "dustbin"


def name_of(family: str, setting: float) -> str:
    """Return the name of a score."""
    return f"{family} {setting:g}"


def match_partially(parameters: ImprovementsParameters, matcher: Matcher, mean: NDArray[np.float64]) -> Solve:
    """Return what scores pairs by each share and threshold, from one matching."""

    def solve(rows: Tokens, columns: Tokens) -> dict[str, Both]:
        panels = [matcher.prepare(*side) for side in (rows, columns)]
        centred = [centre(side, mean) for side in (rows, columns)]
        lengths = [np.linalg.norm(z.astype(np.float64), axis=2) for z in centred]
        scores = {
            name_of(family, setting): np.full((len(rows.z), len(columns.z)), np.nan)
            for family, settings in ((SHARE, parameters.shares), (DUSTBIN, parameters.dustbin))
            for setting in settings
        }
        flat = centred[1].reshape(-1, centred[1].shape[2])
        for r in range(len(rows.z)):
            affinities = (centred[0][r] @ flat.T).reshape(-1, *columns.z.shape[:2])
            for c in range(len(columns.z)):
                scale = math.sqrt(np.sum(lengths[0][r] ** 2) * np.sum(lengths[1][c] ** 2))
                if not scale > 0:
                    continue
                partners = matcher.match_prepared(panels[0], r, panels[1], c)[2]
                matched = np.flatnonzero(partners != UNMATCHED)
                others = partners[matched]
                products = affinities[matched, c, others].astype(np.float64)
                norms = lengths[0][r, matched] * lengths[1][c, others]
                for share in parameters.shares:
                    scores[name_of(SHARE, share)][r, c] = sum_best(products, share) / scale
                for threshold in parameters.dustbin:
                    kept = np.maximum(products - threshold * norms, 0.0).sum()
                    scores[name_of(DUSTBIN, threshold)][r, c] = kept / scale
        return {name: symmetric(values) for name, values in scores.items()}

    return solve


def sum_best(products: NDArray[np.float64], share: float) -> float:
    """Return the sum of the largest products, a share of them rounded up."""
    kept = math.ceil(share * products.size)
    return float(np.partition(products, products.size - kept)[products.size - kept :].sum())

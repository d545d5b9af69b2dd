"""Tokens treated before they are matched: each treatment is a similarity with a certificate of its own.

- *norm weights*: ``t |t|^(a - 1)``: with a = 0 every token counts the same, with a = 2 long ones count more.
- *mean removed*: ``t - m``, m the mean token of the database; *saliency*: the same with weights, so that tokens
  count by how far they are from the mean.
- *whitened tokens*: principal components of tokens of unit length, scaled to variance 1.
- *spatial prior*: images scaled to norm 1, each token followed by its two coordinates times ``sqrt(penalty)``, where
  the coordinates of all tokens are of norm 1, too. The matching then maximises the cosine less `penalty` times half
  the sum of the squared displacements. Without a penalty it is free; as the penalty grows, it becomes the identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.evaluation.pooling import Whitening
from semrsm_dist.evaluation.tokens import centred_tokens, unit_tokens, unit_vectors
from semrsm_dist.experiments.improvements import ImprovementsParameters
from semrsm_dist.experiments.layer_features import LayerFeatures
from semrsm_dist.experiments.pair_scores import Both, Solve, Tokens, symmetric
from semrsm_dist.matching.matcher import Matcher

NORMS, CENTRED, SALIENCY, WHITENED, PRIOR = (
    "norm weights",
    "mean removed",
    "saliency",
    "whitened tokens",
    "spatial prior",
)
COSINE, GAP = "cosine", "gap"

SAMPLE = 10_000
"""Tokens of the database that whitening is fitted to."""

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Treatment:
    """One setting of a family, and what it makes of tokens (T, S, C): zeros beyond an image's own stay zeros.

    `mean` is taken from the tokens before.
    """

    family: str
    setting: str
    transform: Callable[[Array], Array]
    mean: NDArray[np.float64] | None = None

    def __call__(self, tokens: Tokens) -> Array:
        """Return the treated tokens."""
        return self.transform(tokens.z if self.mean is None else centre(tokens, self.mean))


def list_treatments(features: LayerFeatures, parameters: ImprovementsParameters) -> Iterator[Treatment]:
    """Yield the treatments of a layer's tokens. What they need is fitted to the database, without labels."""
    mean = features.mean_token()
    for power in parameters.norms:
        yield Treatment(NORMS, f"{power:g}", partial(weigh, power=power))
    yield Treatment(CENTRED, "mean", lambda z: z, mean)
    for power in parameters.saliency:
        yield Treatment(SALIENCY, f"{power:g}", partial(weigh, power=power), mean)
    if parameters.whitening:
        sample = features.sample_tokens(SAMPLE, parameters.seed)
        for variance in parameters.whitening:
            whiten = Whitening(sample, variance=variance)
            yield Treatment(WHITENED, f"{variance:g}", partial(whiten_tokens, whiten=whiten))
    if math.isqrt(features.n_tokens) ** 2 == features.n_tokens and not features.has_unequal_tokens():
        for penalty in parameters.prior:
            yield Treatment(PRIOR, f"{penalty:g}", partial(add_places, penalty=penalty))


def weigh(z: Array, power: float) -> Array:
    """Return (T, S, C) tokens whose norms are raised to a power; zeros stay zeros."""
    norms = np.linalg.norm(z.astype(np.float64), axis=2, keepdims=True)
    weighed: Array = (unit_tokens(z) * norms**power).astype(np.float32)
    return weighed


def centre(tokens: Tokens, mean: NDArray[np.float64]) -> Array:
    """Return tokens less a mean; what is beyond an image's own stays zero."""
    is_token = np.arange(tokens.z.shape[1]) < tokens.counts[:, None]
    return np.where(is_token[..., None], centred_tokens(tokens.z, mean), np.float32(0))


def whiten_tokens(z: Array, whiten: Whitening) -> Array:
    """Return whitened tokens; zeros, which have no direction, stay zeros."""
    flat = np.nan_to_num(whiten(z.reshape(-1, z.shape[2])))
    return flat.reshape(*z.shape[:2], -1).astype(np.float32)


def add_places(z: Array, penalty: float) -> Array:
    """Return images (T, S, C) of norm 1 on a square grid with coordinates as two more channels; see the module."""
    n_images, n_tokens, _ = z.shape
    width = math.isqrt(n_tokens)
    places = np.stack(np.divmod(np.arange(n_tokens), width), axis=1) - (width - 1) / 2
    length = np.linalg.norm(places)
    places = math.sqrt(penalty) * places / length if length else places
    images = unit_vectors(z.reshape(n_images, -1), zero=0.0).reshape(z.shape)
    has_norm = np.linalg.norm(images, axis=(1, 2)) > 0
    where = has_norm[:, None, None] * places
    result: Array = np.concatenate([images, where], axis=2).astype(np.float32)
    return result


def match_treated(treatment: Treatment, matcher: Matcher) -> Solve:
    """Return what matches treated tokens: their `COSINE`, and by how much it can be below the best, `GAP`."""

    def solve(rows: Tokens, columns: Tokens) -> dict[str, Both]:
        left = matcher.prepare(treatment(rows), rows.counts)
        same = columns is rows
        right = left if same else matcher.prepare(treatment(columns), columns.counts)
        tile = matcher.solve_tile(left, right, triangular=same)
        scale = np.sqrt(left.squared_norms)[:, None] * np.sqrt(right.squared_norms)
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine, gap = (
                np.where(scale > 0, values / scale, np.nan)
                for values in (tile.matched, tile.upper_bound - tile.matched)
            )
        return {COSINE: symmetric(cosine), GAP: symmetric(gap)}

    return solve

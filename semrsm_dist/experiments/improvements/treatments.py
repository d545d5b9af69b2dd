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

from semrsm_dist.errors import InputError
from semrsm_dist.evaluation.pooling import Whitening
from semrsm_dist.evaluation.tokens import centred_tokens, unit_tokens, unit_vectors
from semrsm_dist.experiments.improvements import ImprovementsParameters
from semrsm_dist.experiments.layer_features import LayerFeatures
from semrsm_dist.experiments.pair_scores import Both, Solve, Tokens, symmetric
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.results.pair import find_grid

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
Grid = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Treatment:
    """One setting of a family, and what it makes of tokens (T, S, C): zeros beyond an image's own stay zeros.

    `mean` is taken from the tokens before.
    """

    family: str
    setting: str
    transform: Callable[[Array], Array]
    mean: NDArray[np.float64] | None = None
    grid: str = ""
    """What else its similarities depend on: the grid of the tokens where it is not square."""

    @property
    def folder(self) -> str:
        """Name of the folder that keeps its similarities."""
        return " ".join(filter(None, (self.family, self.setting, self.grid)))

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
            whiten = fit_whitening(sample, variance, features.layer)
            yield Treatment(WHITENED, f"{variance:g}", partial(whiten_tokens, whiten=whiten))
    grid = grid_of(features)
    if grid is not None:
        shape = "" if grid[0] == grid[1] else f"{grid[0]} x {grid[1]}"
        for penalty in parameters.prior:
            transform = partial(add_places, penalty=penalty, grid=grid)
            yield Treatment(PRIOR, f"{penalty:g}", transform, grid=shape)


def grid_of(features: LayerFeatures) -> Grid | None:
    """Return rows and columns of the tokens of each image of a layer; None where they are not known."""
    rows, columns = find_grid(features.run, features.n_tokens)
    return None if features.has_unequal_tokens() or (rows == 1 < columns) else (rows, columns)


def note_grid(features: LayerFeatures) -> str:
    """Return what to know about the grid of a layer's tokens; empty where that of the model's input is known."""
    grid = grid_of(features)
    if grid is None:
        return f"{features.layer}: no spatial prior, as the grid of its tokens (S = {features.n_tokens}) is not known"
    if features.run.record.cached.model is None:
        rows, columns = grid
        return f"{features.layer}: spatial prior with the tokens row by row on a grid of {rows} x {columns}"
    return ""


def fit_whitening(vectors: Array, variance: float, layer: str) -> Whitening:
    """Return a whitening of what a layer has; raise InputError, which says how to do without, where it has none."""
    try:
        return Whitening(vectors, variance=variance)
    except InputError as error:
        raise InputError(f"layer {layer!r}: {error}, or leave whitening out with whitening=[]") from error


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


def add_places(z: Array, penalty: float, grid: Grid) -> Array:
    """Return images (T, S, C) of norm 1, tokens row by row on a grid, with coordinates as two more channels."""
    n_images, n_tokens, _ = z.shape
    places = np.stack(np.divmod(np.arange(n_tokens), grid[1]), axis=1) - (np.array(grid) - 1) / 2
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

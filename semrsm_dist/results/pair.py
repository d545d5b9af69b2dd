"""Pairs of images matched again, token by token: a run keeps the value of a permutation, not the permutation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from semrsm_dist.errors import StorageError
from semrsm_dist.matching.kernels import derive_pairs
from semrsm_dist.matching.matchers import make_matcher
from semrsm_dist.matching.result import UNMATCHED
from semrsm_dist.results.images import ImageReader
from semrsm_dist.results.matrices import DerivedMatrix
from semrsm_dist.results.nearest import find_image
from semrsm_dist.results.neighbours import LayerNeighbours, Similarities
from semrsm_dist.results.reader import RunReader
from semrsm_dist.store.features import FeatureReader, FeatureStore
from semrsm_dist.store.tiles import KINDS

LARGEST = 512
"""Pixels along an edge of an image, at most."""

_ALIKE = 1e-6
"""By how much a cosine similarity that is computed again may differ from the stored one, in float32."""


@dataclass(frozen=True, eq=False)
class TokenMatch:
    """The match of an image of S_i tokens with one of S_j."""

    value: float
    """Matched inner product."""
    upper_bound: float
    """What that of no permutation exceeds."""
    norms: float
    """The product of both images' norms, by which the others are divided for a cosine similarity."""
    permutation: NDArray[np.intp]
    """(S_i,) token s of the first image goes with token ``permutation[s]`` of the second; -1 where it goes with
    none."""
    matched: NDArray[np.float64]
    """(S_i,) what each token adds to the inner product with its partner, 0 without one: they sum to the value."""
    identity: NDArray[np.float64]
    """(S_i,) the same position by position: they sum to the value of the identity. NaN where S_i and S_j differ."""
    n_tokens: tuple[int, int]
    """S_i and S_j."""
    accuracy: float = 0.0
    """By how much the run's cosine similarity may differ: its tolerance if it matched on a GPU, which is not needed
    here."""

    def mirrored(self) -> TokenMatch:
        """Return the same match, seen from the other image."""
        s_i, s_j = self.n_tokens
        tokens = np.flatnonzero(self.permutation != UNMATCHED)
        permutation, matched = np.full(s_j, UNMATCHED, np.intp), np.zeros(s_j)
        permutation[self.permutation[tokens]] = tokens
        matched[self.permutation[tokens]] = self.matched[tokens]
        identity = self.identity if s_i == s_j else np.full(s_j, math.nan)
        return replace(self, permutation=permutation, matched=matched, identity=identity, n_tokens=(s_j, s_i))

    def agrees_with(self, cosine: float) -> bool:
        """Return whether this is the match of a stored cosine similarity, up to accuracy and rounding of float32."""
        return self.norms > 0 and abs(self.value / self.norms - cosine) <= _ALIKE + self.accuracy


class PairMatcher:
    """Matches pairs of a layer's images as the run did: by its matcher, on its features, but always on the CPU.

    Raises ConfigError if there is no such layer, or its matcher is of a distribution that is no longer installed.
    """

    def __init__(self, run: RunReader, layer: str) -> None:
        parameters = run.record.matching
        name, _ = parameters.pop("matcher"), parameters.pop("version")
        is_elsewhere = parameters.get("device", "cpu") != "cpu"
        if is_elsewhere:
            parameters["device"] = "cpu"
        self._accuracy = float(parameters["tolerance"]) if is_elsewhere else 0.0
        self._matcher = make_matcher(name, **parameters)
        self._is_symmetric = run.is_symmetric
        readers = {
            side: FeatureReader(FeatureStore(run.directory.features, side, layer))
            for side in run.record.sides
        }
        self._read_i, self._read_j = readers[run.record.row_side], readers["images"]

    def match(self, row: int, column: int) -> TokenMatch:
        """Match an image of the rows with one of the columns, in a symmetric run the earlier with the later image.

        That of an image with itself is the identity, of which the run knows the value exactly. Pairs of the same
        feature chunks should follow each other: they are read once then. Raises StorageError if their features are
        missing or damaged.
        """
        if self._is_symmetric and row > column:
            return self.match(column, row).mirrored()
        z_i, z_j = (z.astype(np.float32, copy=False) for z in (self._read_i(row), self._read_j(column)))
        wide_i, wide_j = z_i.astype(np.float64), z_j.astype(np.float64)
        if self._is_symmetric and row == column:
            partners, value = np.arange(len(z_i)), float(np.vdot(wide_i, wide_i))
            upper_bound = value
        else:
            found = self._matcher.match(z_i, z_j)
            partners, value, upper_bound = found.permutation, found.value, found.upper_bound
        has_partner = partners != UNMATCHED
        matched, identity = np.zeros(len(z_i)), np.full(len(z_i), math.nan)
        matched[has_partner] = np.einsum("sc,sc->s", wide_i[has_partner], wide_j[partners[has_partner]])
        if len(z_i) == len(z_j):
            identity = np.einsum("sc,sc->s", wide_i, wide_j)
        norms = float(np.linalg.norm(wide_i) * np.linalg.norm(wide_j))
        sizes = len(z_i), len(z_j)
        return TokenMatch(value, upper_bound, norms, partners, matched, identity, sizes, self._accuracy)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images of a run, i and j, and how they are matched in a layer.

    Attributes
    ----------
    layer, kernel : str
        What the similarities are of.
    indices, ids, labels : tuple
        Of both images: their places in the run, ids and labels.
    similarity, upper_bound, identity : float
        The kernel's similarity after matching; a bound that it exceeds with no permutation; and the similarity
        position by position, NaN where the numbers of tokens differ. As the run has them.
    permutation : ndarray of intp, (S_i,)
        Token s of image i goes with token ``permutation[s]`` of image j; -1 where it goes with none.
    contributions, identity_contributions : ndarray of float64, (S_i,)
        What each token of image i adds to the cosine similarity (whatever the kernel), with its partner and position by
        position: they sum to the two cosine similarities, up to the rounding of the run's tiles. 0 for a token without
        a partner; the latter is NaN where the numbers of tokens differ, and both where an image's norm is zero.
    grids : tuple of (int, int)
        Rows and columns of the tokens of both images; one row where they lie on no grid that is known.
    images : tuple of PIL.Image.Image or None
        What the model sees of both images; None where there is no picture.
    problems : tuple of str
        Why there is no picture, or what is doubtful about it; empty if nothing is.
    """

    layer: str
    kernel: str
    indices: tuple[int, int]
    ids: tuple[str, str]
    labels: tuple[tuple[str, ...], tuple[str, ...]]
    similarity: float
    upper_bound: float
    identity: float
    permutation: NDArray[np.intp]
    contributions: NDArray[np.float64]
    identity_contributions: NDArray[np.float64]
    grids: tuple[tuple[int, int], tuple[int, int]]
    images: tuple[Image | None, Image | None] = field(repr=False)
    problems: tuple[str, str]


def find_pair(
    run: RunReader, row: int | str, column: int | str, layer: str, *, kernel: str, sigma: float | None
) -> Pair:
    """Return two images and how they are matched; see `Run.pair`."""
    read_values = _open_values(run, layer, kernel, sigma)
    sides = (run.record.row_side, "images")
    manifests = {side: run.manifest(side) for side in sides}
    ids = {side: np.array(manifest.image_ids(), np.str_) for side, manifest in manifests.items()}
    i, j = (find_image(image, ids[side], side) for side, image in zip(sides, (row, column), strict=True))
    found = PairMatcher(run, layer).match(i, j)
    values = read_values(i, j, found)
    readers = {side: ImageReader(run, side) for side in sides}
    loaded = [readers[side].load(index) for side, index in zip(sides, (i, j), strict=True)]
    seen = [
        image and readers[side].see(image, LARGEST) for side, (image, _) in zip(sides, loaded, strict=True)
    ]
    scale = 1 / found.norms if found.norms > 0 else math.nan
    return Pair(
        layer=layer,
        kernel=kernel,
        indices=(i, j),
        ids=(str(ids[sides[0]][i]), str(ids["images"][j])),
        labels=(manifests[sides[0]].labels()[i], manifests["images"].labels()[j]),
        similarity=values.semantic,
        upper_bound=values.semantic + values.gap,
        identity=values.spatial,
        permutation=found.permutation,
        contributions=found.matched * scale,
        identity_contributions=found.identity * scale,
        grids=(find_grid(run, found.n_tokens[0]), find_grid(run, found.n_tokens[1])),
        images=(seen[0], seen[1]),
        problems=(loaded[0][1], loaded[1][1]),
    )


def _open_values(
    run: RunReader, layer: str, kernel: str, sigma: float | None
) -> Callable[[int, int, TokenMatch], Similarities]:
    """Return a function that reads what a run has of a pair, which has been matched again."""
    if run.record.neighbours is not None:
        neighbours = run.layer_neighbours(layer, kernel, sigma=sigma)
        return partial(_values_of_neighbours, neighbours, run.is_symmetric)
    return partial(
        _values_of_matrices, [run.kernel_matrix(layer, kernel, kind, sigma=sigma) for kind in KINDS]
    )


def _values_of_matrices(matrices: list[DerivedMatrix], i: int, j: int, found: TokenMatch) -> Similarities:
    semantic, spatial = matrices
    key = np.array([i]), np.array([j])
    _require_same(semantic.layer.read(("matched",), key).item(), found, i, j)
    values = semantic.read(key), spatial.read(key), semantic.read_gap(key)
    return Similarities(*(value.item() for value in values))


def _values_of_neighbours(
    neighbours: LayerNeighbours, symmetric: bool, i: int, j: int, found: TokenMatch
) -> Similarities:
    """Return what is kept of a pair if one is a neighbour of the other, else what matching it again gave."""
    kept = neighbours.find(i, j, symmetric=symmetric)
    if kept is not None:
        similarities, matched = kept
        _require_same(matched, found, i, j)
        return similarities
    inner = np.array([found.value, found.upper_bound, found.identity.sum()])
    norms_i, norms_j = (
        np.full(3, norms[place]) for norms, place in zip(neighbours.squared_norms, (i, j), strict=True)
    )
    values = derive_pairs(neighbours.kernel, inner, norms_i, norms_j, neighbours.sigma)
    value, bound, identity = values.tolist()
    return Similarities(value, identity, bound - value)


def _require_same(stored: float, found: TokenMatch, i: int, j: int) -> None:
    """Raise StorageError unless matching a pair again gave what the run has, up to the rounding of float32."""
    if not abs(found.value - stored) <= (_ALIKE + found.accuracy) * found.norms:
        raise StorageError(
            f"matching images {i} and {j} again gave an inner product of {found.value:.9g}, but the run has "
            f"{stored:.9g}, so that which tokens it matched is not known: its features or the matcher have changed; "
            "semrsm verify says which"
        )


def find_grid(run: RunReader, n_tokens: int) -> tuple[int, int]:
    """Return rows and columns of an image's tokens: those of the model's input's shape, or one row."""
    model = run.record.cached.model
    height, width = model.facts["preprocessing"]["input_size"][1:] if model else (1, 1)
    rows = round(math.sqrt(n_tokens * height / width))
    if rows and n_tokens % rows == 0 and rows * width == n_tokens // rows * height:
        return rows, n_tokens // rows
    return 1, n_tokens

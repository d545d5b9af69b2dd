"""Matching and similarity matrices of arrays in memory."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from semrsm_dist.errors import ConfigError, counted, require_known
from semrsm_dist.fields import Count
from semrsm_dist.machine import available_cpus, available_gpus, set_own_gpu
from semrsm_dist.matching.arguments import argument
from semrsm_dist.matching.kernels import KERNELS, derive
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.matching.matchers import make_matcher
from semrsm_dist.matching.panel import Panel
from semrsm_dist.matching.representations import (
    as_array,
    as_representations,
    fill_tokens,
    naming,
    require_floating,
    stack_tokens,
)
from semrsm_dist.matching.result import Match, TileResult

KINDS = ("semantic", "spatio-semantic")

Stack = tuple[NDArray[Any], NDArray[np.int64]]
"""Representations (N, S, C), those of fewer tokens filled up with zeros, and the number of tokens of each."""

_TILE, _GPU_TILE = 64, 1024
"""Largest tiles: those of a GPU hold enough pairs to keep it busy."""


def match(z_i: ArrayLike, z_j: ArrayLike, matcher: str = "auction", **parameters: Any) -> Match:
    """Match the tokens of two representations so that their inner product is large.

    Parameters
    ----------
    z_i, z_j : array_like, (S_i, C) and (S_j, C)
        Representations: arrays or lists of numbers, or tensors on any device. If they differ in their number of
        tokens, all tokens of the smaller one are matched, by matchers that can (`Matcher.takes_unequal`).
    matcher : str
        One of ``semrsm_dist.matching.matchers.MATCHERS.names()``.
    **parameters
        Parameters of the matcher, such as ``tolerance`` and ``device``: the fields of its class.

    Returns
    -------
    Match
        Value, upper bound and permutation: row s of z_i goes with row ``permutation[s]`` of z_j, or with
        none where that is -1.

    Raises
    ------
    ConfigError
        Unknown matcher or parameter, more GPUs than this machine has, or one that cannot be used.
    InputError
        Shapes that are not (S, C) or differ in C, NaN or infinite values.
    WorkError
        A result that is no match: the matcher must be corrected.

    Examples
    --------
    >>> import numpy as np
    >>> z = np.array([[1.0, 0.0], [0.0, 2.0]])
    >>> found = match(z, z[::-1])
    >>> found.permutation.tolist(), found.value
    ([1, 0], 5.0)
    """
    chosen = make_matcher(matcher, **parameters)
    most_threads(chosen)  # whether there is a GPU for it
    return chosen.match(z_i, z_j)


def similarity_matrix(
    z: ArrayLike | Sequence[ArrayLike],
    y: ArrayLike | Sequence[ArrayLike] | None = None,
    *,
    kernel: str = "cosine",
    matcher: str = "auction",
    sigma: float | None = None,
    kind: Literal["semantic", "spatio-semantic"] = "semantic",
    workers: int | None = None,
    **parameters: Any,
) -> NDArray[np.float64]:
    """Return the similarities of all images, or of all images of `z` with all of `y`.

    Parameters
    ----------
    z : array_like, (N, S, C), or sequence of N array_like, (S_i, C)
        Representations of N images. Where images differ in their number of tokens, all tokens of the smaller
        one of a pair are matched, by matchers that can (`Matcher.takes_unequal`).
    y : array_like, (M, S, C), or sequence of M array_like, (S_j, C), optional
        Without it, the symmetric matrix of z with itself.
    kernel : str
        ``linear``, ``cosine`` or ``rbf``, see `semrsm_dist.matching.kernels`.
    matcher : str
        One of ``semrsm_dist.matching.matchers.MATCHERS.names()``.
    sigma : float, optional
        Width of the RBF kernel; by default the median rule of `semrsm_dist.matching.kernels.median_width`.
    kind : str
        ``semantic`` matches tokens, ``spatio-semantic`` compares position by position.
    workers : int, optional
        Threads; by default as many as this machine has the CPUs and GPUs for that the matcher declares. No influence
        on the numbers.
    **parameters
        Parameters of the matcher, such as ``tolerance`` and ``device``: the fields of its class.

    Returns
    -------
    ndarray of float64, (N, N) or (N, M)
        With ``cosine``, NaN where a representation is zero. With ``spatio-semantic``, NaN where two images
        differ in their number of tokens. Each entry is within its own certificate of the best match: (i, j) of
        ``z`` with ``y`` and (j, i) of ``y`` with ``z`` may differ within theirs.

    Raises
    ------
    ConfigError
        Unknown kernel, kind, matcher or parameter, more GPUs than this machine has, or one that cannot be used.
    InputError
        Shapes that are not (N, S, C) or differ in C, NaN or infinite values, numbers of tokens that differ
        for a matcher that needs equal ones.
    WorkError
        Results that contradict each other: the matcher must be corrected.

    References
    ----------
    Wald et al., Decoupling Semantic Similarity from Spatial Alignment for Neural Networks,
    NeurIPS 2024, arXiv:2410.23107.
    """
    require_known("kernel", kernel, KERNELS)
    require_known("kind", kind, KINDS)
    if sigma is not None and kernel != "rbf":
        raise ConfigError(
            f"sigma is the width of the kernel 'rbf' and has no meaning for {kernel!r}: leave it out"
        )
    if workers is not None:
        workers = argument("workers", workers, Count, "leave it out for one per core")
    chosen = make_matcher(matcher, **parameters)
    most = most_threads(chosen)
    stacks = _stack_all({"z": z} if y is None else {"z": z, "y": y})
    undefined = None
    if kind == "spatio-semantic":
        chosen = make_matcher("identity")
        stacks, undefined = _without_counts(stacks)
    rows, columns = _prepare(chosen, stacks)
    matched = _match_all(chosen, rows, columns, y is None, workers or most)
    if undefined is not None:
        matched[undefined] = np.nan
    return derive(kernel, matched, rows.squared_norms, columns.squared_norms, sigma)


def most_threads(matcher: Matcher) -> int:
    """Return how many threads of a matcher this machine has the CPUs and GPUs for, at least 1."""
    most = available_cpus() / max(matcher.cpus, 1)
    if matcher.gpus > 0:
        gpus = available_gpus()
        if gpus < matcher.gpus:
            raise ConfigError(
                f"matcher {matcher.name!r} needs {counted(math.ceil(matcher.gpus), 'GPU')}, but this machine has "
                f"{gpus}: use another matcher, or device: cpu where it has a device, or a machine with GPUs"
            )
        most = min(most, gpus / matcher.gpus)
    return max(1, int(most))


def prepare_all(
    matcher: Matcher,
    z: ArrayLike | Sequence[ArrayLike],
    y: ArrayLike | Sequence[ArrayLike] | None,
    names: tuple[str, str] = ("z", "y"),
) -> tuple[Panel, Panel]:
    """Return the panels of rows and columns, padded to one number of tokens; errors refer to them by `names`."""
    return _prepare(matcher, _stack_all({names[0]: z} if y is None else {names[0]: z, names[1]: y}))


def _stack_all(given: Mapping[str, ArrayLike | Sequence[ArrayLike]]) -> dict[str, Stack]:
    """Return the representations under each name as one array, all padded to one number of tokens."""
    stacks = {}
    for name, images in given.items():
        with naming(name):
            stacks[name] = _stack(images)
    most = max(stack.shape[1] for stack, _ in stacks.values())
    return {name: (fill_tokens(stack, most), counts) for name, (stack, counts) in stacks.items()}


def _prepare(matcher: Matcher, stacks: Mapping[str, Stack]) -> tuple[Panel, Panel]:
    """Return the panels of rows and columns; one array is both."""
    panels = []
    for name, (stack, counts) in stacks.items():
        with naming(name):
            panels.append(matcher.prepare(stack, counts))
    matcher.check_pair(panels[0], panels[-1])
    return panels[0], panels[-1]


def _without_counts(stacks: Mapping[str, Stack]) -> tuple[dict[str, Stack], NDArray[np.bool_]]:
    """Return stacks whose filling counts as tokens, which adds nothing to a product, and where counts differ."""
    counts = [numbers for _, numbers in stacks.values()]
    filled = {name: (stack, np.full(len(stack), stack.shape[1])) for name, (stack, _) in stacks.items()}
    return filled, counts[0][:, None] != counts[-1]


def _stack(images: ArrayLike | Sequence[ArrayLike]) -> Stack:
    """Return representations as one array (N, S, C), and the number of tokens of each."""
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        images = [as_array(image) for image in images]
        for index, image in enumerate(images):
            with naming(f"image {index}"):
                require_floating(image)
        if len({image.shape for image in images}) > 1:
            return stack_tokens(images)
    array = as_representations(cast("ArrayLike", images))
    return array, np.full(len(array), array.shape[1])


def _match_all(
    matcher: Matcher, rows: Panel, columns: Panel, symmetric: bool, workers: int
) -> NDArray[np.float64]:
    """Return the matched inner products (N, M)."""
    matched = np.empty((rows.n_images, columns.n_images))

    def keep(r: slice, c: slice, tile: TileResult) -> None:
        matched[r, c] = tile.matched
        if symmetric and r != c:
            matched[c, r] = tile.matched.T

    solve_tiles(matcher, (rows, columns), symmetric, workers, keep)
    return matched


def solve_tiles(
    matcher: Matcher,
    sides: tuple[Panel, Panel],
    symmetric: bool,
    workers: int,
    keep: Callable[[slice, slice, TileResult], None],
) -> None:
    """Match all pairs of two panels, or those of one with itself, tile by tile in threads, which then call `keep`."""
    rows, columns = sides
    stop = threading.Event()

    def solve(r: slice, c: slice) -> None:
        left, right = rows.part(r), columns.part(c)
        tile = matcher.solve_tile(left, right, triangular=symmetric and r == c, cancelled=stop.is_set)
        matcher.check_tile(tile, left, right)
        keep(r, c, tile)

    numbers = itertools.count()

    def take_gpu() -> None:
        set_own_gpu(next(numbers) % max(1, available_gpus()))

    # The threads share the cores: BLAS threads would compete with them.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers, initializer=take_gpu) as pool:
        largest = _GPU_TILE if matcher.gpus else _TILE
        shape = rows.n_images, columns.n_images
        tiles = [pool.submit(solve, r, c) for r, c in _tiles(shape, symmetric, workers, largest)]
        try:
            for tile in tiles:
                tile.result()
        except BaseException:  # also an interrupt: the threads must not continue alone
            stop.set()
            for tile in tiles:
                tile.cancel()
            raise


def _tiles(
    shape: tuple[int, int], symmetric: bool, workers: int, largest: int
) -> Iterator[tuple[slice, slice]]:
    """Yield the tiles that cover a matrix, or the upper triangle of a symmetric one."""
    # At least four tiles per worker and side, so that all workers finish at about the same time.
    side = max(1, min(largest, -(-max(shape) // (4 * workers))))
    for r in range(0, shape[0], side):
        for c in range(r if symmetric else 0, shape[1], side):
            yield slice(r, min(r + side, shape[0])), slice(c, min(c + side, shape[1]))

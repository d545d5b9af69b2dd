"""The exact k most similar images, matching completely only the pairs that bounds cannot decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.fields import Count, Tolerance
from semrsm_dist.machine import available_cpus, available_memory
from semrsm_dist.matching.arguments import argument
from semrsm_dist.matching.matchers import make_matcher
from semrsm_dist.matching.matchers.auction import Auction
from semrsm_dist.matching.panel import PackedPanel
from semrsm_dist.matching.search.device_bounds import divide_work
from semrsm_dist.matching.search.on_device import DeviceSearch
from semrsm_dist.matching.search.progressive import NOBODY
from semrsm_dist.matching.search.search import Groups, Search
from semrsm_dist.matching.similarity import most_threads, prepare_all


@dataclass(frozen=True, slots=True, eq=False)
class TopK:
    """The most similar images of each query, and how pairs were decided.

    Attributes
    ----------
    indices : ndarray of int64, (N, k)
        Indices in the database, the most similar first, ties by index; -1 where a query has fewer than k hits.
    similarities : ndarray of float64, (N, k)
        Cosine similarities after matching, as in the full matrix; NaN where there is no hit.
    without_product : int
        Pairs decided by bounds that need no product of their tokens.
    sketched : int
        Pairs decided with the product of a few channels, by the usual prices of their tokens or an auction.
    with_product : int
        Pairs decided with the product or a part of its rows, by the usual prices or before an auction was finished.
    solved : int
        Pairs matched completely.
    """

    indices: NDArray[np.int64]
    similarities: NDArray[np.float64]
    without_product: int
    sketched: int
    with_product: int
    solved: int

    @property
    def pairs(self) -> int:
        """Pairs that could have been hits; without a database, (i, j) and (j, i) are one."""
        return self.without_product + self.sketched + self.with_product + self.solved


def top_k(
    queries: ArrayLike | Sequence[ArrayLike],
    database: ArrayLike | Sequence[ArrayLike] | None = None,
    k: int = 10,
    *,
    tolerance: float = 1e-3,
    device: str = "cpu",
    groups: Sequence[str | None] | None = None,
    database_groups: Sequence[str | None] | None = None,
    workers: int | None = None,
) -> TopK:
    """Return the k most similar images of each query, by the cosine similarity after matching.

    The hits and their similarities are those of the full matrix, ``similarity_matrix(queries, database,
    tolerance=tolerance)``, to the last bit. A pair is dropped as soon as an upper bound proves that it is no hit:
    first one from sorted channels for all pairs at once, then one from a sketch of a few channels where there are
    many, then one from the product: from the prices that the tokens of both images had in earlier auctions, and
    where these do not suffice, from the phases of an auction. What is left is solved.

    Parameters
    ----------
    queries : array_like, (N, S, C), or sequence of N array_like, (S_i, C)
        Representations of N images.
    database : array_like, (M, S, C), or sequence of M array_like, (S_j, C), optional
        Without it, the queries themselves; an image is then not its own hit.
    k : int
        Hits of each query.
    tolerance : float
        Of the matcher `auction`, on the cosine scale.
    device : str
        Of the matcher `auction`. With ``cuda``, GPUs match all pairs and leave to the CPU those that may be hits
        (`semrsm_dist.matching.search.device_bounds`); the hits and their similarities are the same.
    groups, database_groups : sequences of N and M names, optional
        Images of the query's group are not its hits. Names are text or whole numbers; None means ungrouped. Without a
        database, only `groups`.
    workers : int, optional
        Threads on the CPU; by default one for each core this process may use. No influence on hits and similarities;
        the counts may differ by a few pairs.

    Returns
    -------
    TopK
        Images of norm zero have no similarity: they have no hits and are never hits.

    Raises
    ------
    ConfigError
        k, tolerance or workers out of range, or a device that cannot be used.
    InputError
        Shapes that differ or are not (N, S, C), NaN or infinite values, groups that are not one per image or not valid
        names, such as NaN for a missing one.

    Notes
    -----
    By weak duality any prices prove a bound, in one pass over the affinities. Those of earlier auctions decide three
    quarters or more of the pairs whose product is computed; maxima of rows and columns, which are prices of zero, a
    fifth to a half. Rows that are not multiplied yet are bounded by their lengths
    (`semrsm_dist.matching.search.longest_first`).

    Memory: the representations in float32 three times (as given, packed, with sorted channels) and, for sketches, an
    eighth of that size; O(N k); and for each thread the bounds of a few queries and one image with its affinities.

    Examples
    --------
    >>> import numpy as np
    >>> z = np.random.default_rng(0).normal(size=(20, 9, 4))
    >>> found = top_k(z, k=3)
    >>> found.indices.shape, found.pairs
    ((20, 3), 190)
    """
    if isinstance(database, Integral):
        raise ConfigError(
            f"database: expected representations, found {database}: give the number of hits as k={database}"
        )
    k = argument("k", k, Count, "it is the number of hits per query")
    tolerance = argument("tolerance", tolerance, Tolerance)
    if workers is not None:
        workers = argument("workers", workers, Count, "leave it out for one per core")
    if database is None and database_groups is not None:
        raise ConfigError("database_groups needs a database: without one, give only groups")
    chosen = cast(Auction, make_matcher("auction", tolerance=tolerance, device=device))
    most_threads(chosen)  # whether there is a GPU for it
    matcher, on_device = divide_work(chosen)
    rows, columns = prepare_all(matcher, queries, database, ("queries", "database"))
    if 16 * rows.n_images * k > available_memory():
        raise ConfigError(
            f"k: {k}: {rows.n_images} x {k} hits do not fit into memory, and the database has {columns.n_images} "
            "images; nothing was computed: give at most as many hits"
        )
    codes = _group_codes(
        groups, groups if database is None else database_groups, rows.n_images, columns.n_images
    )
    with threadpool_limits(1, user_api="blas"):  # the threads share the cores
        sides = cast(PackedPanel, rows), cast(PackedPanel, columns)
        wanted = *sides, min(k, columns.n_images), codes
        search = DeviceSearch(on_device, matcher, *wanted) if on_device else Search(matcher, *wanted)
        search.run(workers or available_cpus())
    missing = ((0, 0), (0, k - search.best.shape[1]))
    indices = np.pad(search.indices, missing, constant_values=NOBODY)
    similarities = np.pad(search.best, missing)
    nobody = indices == NOBODY
    indices[nobody], similarities[nobody] = -1, np.nan
    return TopK(indices, similarities, *(int(count) for count in search.counts))


def _group_codes(
    rows: Sequence[str | None] | None, columns: Sequence[str | None] | None, n_rows: int, n_columns: int
) -> Groups | None:
    """Return numbers of the groups of rows and columns, equal where the groups are; None if there are none."""
    if rows is None and columns is None:
        return None
    if rows is None or columns is None:
        raise ConfigError("groups and database_groups are compared with each other: give both, or none")
    of_rows, of_columns = _named("groups", rows, n_rows), _named("database_groups", columns, n_columns)
    known = {group: code for code, group in enumerate({*of_rows, *of_columns} - {None})}
    return (
        np.array([-1 if group is None else known[group] for group in of_rows]),
        np.array([-2 if group is None else known[group] for group in of_columns]),
    )


def _named(name: str, groups: Sequence[str | None], n_images: int) -> list[str | None]:
    """Return the groups, refusing values that may mean a missing one: equal, they would form a group."""
    has_no_length = not hasattr(groups, "__len__") or getattr(groups, "shape", None) == ()
    if isinstance(groups, str | bytes) or has_no_length or len(groups) != n_images:
        found = len(groups) if isinstance(groups, list | tuple) else repr(groups)
        raise InputError(f"{name}: expected a group or None for each of {n_images} images, found {found}")
    for index, group in enumerate(groups):
        if group is not None and not isinstance(group, (str, Integral)):
            raise InputError(
                f"{name}: the group of an image is text, a whole number or None, found {group!r} for image {index}; "
                "give None for an image without a group"
            )
    return list(groups)

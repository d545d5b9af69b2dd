"""A sample of a search for neighbours: how many of a run's pairs bounds do not decide, and how many must be matched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.matchers.auction import Auction
from semrsm_dist.matching.panel import PackedPanel
from semrsm_dist.matching.search.block import SearchPanel, similarity_bounds
from semrsm_dist.matching.search.device_bounds import divide_work
from semrsm_dist.matching.search.tile import BLOCK_ROWS
from semrsm_dist.matching.search.top_k import TopK, top_k
from semrsm_dist.matching.similarity import prepare_all
from semrsm_dist.pipeline.forecast.samples import Pool
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.plan.undecided import BoundShares, Floors, MatchedShares, count_undecided
from semrsm_dist.store.record import NeighbourSettings, Side

MOST_SAMPLED = 1024
"""Images of a side: a share of one in a thousand pairs is that of a thousand."""

_STEP = 3  # from one number of images seen to the next


@dataclass(frozen=True)
class SearchSample:
    """The shares of a layer's pairs that `bounds` do not decide, and that must be `matched`, by a sample.

    `bounds` is None where GPUs bound all pairs: what these leave open grows like what must be matched.
    """

    bounds: BoundShares | None
    matched: MatchedShares

    def count(self, layout: Layout) -> tuple[float, float]:
        """Return how many pairs of a layout are multiplied or sketched, and how many are matched."""
        matched = count_undecided(layout, self.matched, BLOCK_ROWS)
        if self.bounds is None:
            return matched, matched
        return max(0.0, count_undecided(layout, self.bounds, BLOCK_ROWS) - matched), matched


def sample_search(
    matcher: Auction, pool: Pool, layer: str, wanted: NeighbourSettings, workers: int
) -> SearchSample:
    """Search some images of a pool for their neighbours, and for those among fewer of them, on the CPU."""
    matcher, on_device = divide_work(matcher)
    images = {side: _some_images(pool, layer, side) for side in pool.entries}
    columns = images["images"]
    rows = images.get("queries", columns)
    is_symmetric = rows is columns
    found: dict[int, TopK] = {}
    n_seen = len(columns) - is_symmetric
    while n_seen > _STEP * wanted.k or not found:
        found[n_seen] = _search(matcher, rows, columns, n_seen, wanted.k, workers)
        n_seen //= _STEP
    most = max(found)
    ranks = sorted({max(1, min(rank, most)) for rank in (wanted.k, round(wanted.k**0.5), 1)}, reverse=True)
    threshold = -np.inf if wanted.threshold is None else wanted.threshold

    def floors(seen: int, rank: int, similarities: NDArray[np.float64]) -> Floors:
        of_rows = np.maximum(np.nan_to_num(similarities, nan=-np.inf), threshold)
        return Floors(seen, rank, of_rows, of_rows if is_symmetric else np.full(len(columns), np.inf))

    ladder = [floors(wanted.k, wanted.k, np.full(len(rows), -np.inf))]
    for seen in sorted(found)[:-1]:
        ladder.append(floors(seen, wanted.k, found[seen].similarities[:, -1]))
    ladder += [floors(most, rank, found[most].similarities[:, rank - 1]) for rank in ranks]
    mutual = _mutual(found[most], threshold) if is_symmetric else None
    matched = MatchedShares(wanted.k, _reaching(found[most], threshold, most), mutual)
    if on_device is not None:
        return SearchSample(None, matched)
    panels = prepare_all(matcher, rows, None if is_symmetric else columns)
    bounds = _bounds(*cast("tuple[PackedPanel, PackedPanel]", panels))
    return SearchSample(BoundShares.measure(bounds, ladder, wanted.k), matched)


def _some_images(pool: Pool, layer: str, side: Side) -> list[NDArray[Any]]:
    """Return images of a side, each (S_i, C), at random and without those that a run leaves out."""
    z, counts = pool.features[layer][side], pool.token_counts.get(layer, {}).get(side)
    chosen = np.random.default_rng(3).permutation(len(z))[:MOST_SAMPLED].tolist()
    images = [z[index, : z.shape[1] if counts is None else counts[index]] for index in chosen]
    return [image for image in images if np.isfinite(image).all()]


def _search(
    matcher: Auction,
    rows: list[NDArray[Any]],
    columns: list[NDArray[Any]],
    n_seen: int,
    k: int,
    workers: int,
) -> TopK:
    """Return the k best of rows among this many columns; of the same images, without the image itself."""
    if rows is not columns:
        return top_k(rows, columns[:n_seen], k, tolerance=matcher.tolerance, workers=workers)
    if n_seen == len(rows) - 1:
        return top_k(rows, k=k, tolerance=matcher.tolerance, workers=workers)
    names = [str(number) for number in range(len(rows))]
    return top_k(
        rows,
        columns[:n_seen],
        k,
        tolerance=matcher.tolerance,
        groups=names,
        database_groups=names[:n_seen],
        workers=workers,
    )


def _bounds(rows: PackedPanel, columns: PackedPanel) -> NDArray[np.float64]:
    """Return upper bounds on the similarities of all pairs (R, K), -inf on the diagonal of the same images."""
    no_sketches = np.zeros((columns.n_channels, 0))
    right = SearchPanel.of(columns, no_sketches, double=False)
    left = right if rows is columns else SearchPanel.of(rows, no_sketches, double=False)
    bounds = similarity_bounds(left, slice(0, left.n_images), right, slice(0, right.n_images))
    if rows is columns:
        np.fill_diagonal(bounds, -np.inf)
    return bounds


def _reaching(found: TopK, threshold: float, n_seen: int) -> NDArray[np.float64]:
    """Return the share of others that reach a threshold for each image; inf if all of its k hits do."""
    counts = (found.similarities >= threshold).sum(axis=1)
    return np.where(counts == found.similarities.shape[1], np.inf, counts / max(1, n_seen))


def _mutual(found: TopK, threshold: float) -> float:
    """Return the share of hits that reach a threshold of which the image is a hit itself."""
    rows, ranks = np.nonzero(found.similarities >= threshold)
    columns = found.indices[rows, ranks]
    pairs, reverse = (one * len(found.indices) + other for one, other in ((rows, columns), (columns, rows)))
    return float(np.isin(pairs, reverse).mean()) if pairs.size else 0.0

"""How many pairs of a search bounds decide, foretold from a few images, against searches of many."""

import numpy as np
import pytest

from semrsm_dist.matching.kernels import cosine
from semrsm_dist.matching.matchers.auction import Auction
from semrsm_dist.matching.search.block import SearchPanel
from semrsm_dist.matching.search.progressive import NOBODY, merge
from semrsm_dist.matching.search.tile import Criterion, TileSearch
from semrsm_dist.pipeline.forecast.samples import Pool
from semrsm_dist.pipeline.forecast.search_sample import sample_search
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.store.record import NeighbourSettings


def make_images(kind, n, seed=0):
    """Return images (n, 6, 12): smooth and non-negative, at random, in classes, or with near-duplicates."""
    rng = np.random.default_rng(seed)
    shape = (n, 6, 12)
    walks = rng.normal(size=shape).cumsum(axis=1)
    if kind == "noise":
        return rng.normal(size=shape)
    if kind == "classes":
        classes = 2.0 * rng.normal(size=(12, *shape[1:]))
        return np.maximum(classes[rng.integers(12, size=n)] + walks, 0.0)
    if kind == "near-duplicates":
        walks = walks[rng.integers(n // 3, size=n)] + 0.05 * rng.normal(size=shape)
    return np.maximum(walks, 0.0)


def search(z, size, k, threshold):
    """Return how many pairs of a symmetric search were multiplied and matched, and the k best similarities."""
    layout = Layout(len(z), len(z), size, True)
    matcher = Auction()
    panels = [
        SearchPanel.of(matcher.prepare(z[layout.rows(row)]), np.zeros((z.shape[2], 0)), double=False)
        for row in range(layout.row_panels)
    ]
    tile_search = TileSearch(matcher, Criterion(k, threshold, single=True), both=True)
    best, indices = np.full((len(z), k), -np.inf), np.full((len(z), k), NOBODY)
    counts = np.zeros(4, np.int64)
    for row, column in sorted(layout.tiles(), key=lambda tile: tile[0] != tile[1]):
        rows, columns = layout.rows(row), layout.columns(column)
        found = tile_search.search(
            panels[row],
            panels[column],
            (best[rows, -1], best[columns, -1]),
            (np.full(rows.stop - rows.start, -1), np.full(columns.stop - columns.start, -1)),
            triangular=row == column,
        )
        places = found.pairs.rows + rows.start, found.pairs.columns + columns.start
        merge(best, indices, *places, found.pairs.similarity, True)
        counts += found.counts
    return np.array([counts[1] + counts[2], counts[3]]), best


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "k", "threshold"),
    [
        ("walks", 8, None),
        ("walks", 1, None),
        ("noise", 8, None),
        ("classes", 8, None),
        ("near-duplicates", 8, None),
        ("walks", 8, 0.75),
    ],
)
def test_a_sample_foretells_the_pairs_that_a_search_of_many_images_multiplies_and_matches(kind, k, threshold):
    z = make_images(kind, 1500)
    pool = Pool({"z": {"images": z[:300]}}, {}, {"images": [None] * 300})
    sample = sample_search(Auction(), pool, "z", NeighbourSettings(k, threshold), workers=1)
    (small, _), (large, _) = (
        search(z[:n], size, k, threshold or -np.inf) for n, size in ((300, 64), (1500, 128))
    )
    foretold = (
        small
        * np.array(sample.count(Layout(1500, 1500, 128, True)))
        / np.maximum(1.0, sample.count(Layout(300, 300, 64, True)))
    )
    # Weighed by about what they take.
    assert foretold @ [1.0, 3.0] == pytest.approx(large @ [1.0, 3.0], rel=0.15)


def test_floors_of_a_sample_are_those_of_its_matrix():
    z, queries = make_images("walks", 60), make_images("walks", 40, seed=1)
    z[7] = np.nan  # is left out, as by a run
    pool = Pool({"z": {"images": z, "queries": queries}}, {}, {"images": [None] * 60, "queries": [None] * 40})
    sample = sample_search(Auction(), pool, "z", NeighbourSettings(2, None), workers=1)
    matcher = Auction()
    rows, columns = matcher.prepare(queries), matcher.prepare(np.delete(z, 7, axis=0))
    tile = matcher.solve_tile(rows, columns)
    similarity = cosine(tile.matched, rows.squared_norms, columns.squared_norms)
    second = np.sort(similarity, axis=1)[:, -2]
    assert sample.bounds is not None
    # Bounds are never below similarities, so at least those reach the second best.
    assert sample.bounds(np.array([59.0]), np.array([1.0]))[0] >= np.mean(similarity >= second[:, None])
    assert sample.matched(np.array([59.0]), np.array([1.0]))[0] == pytest.approx(2 / 59)
    assert sample.bounds.seen[-1] == pytest.approx(2 * 59, rel=1.0)


@pytest.mark.parametrize("n_images", [1, 2, 5])
def test_of_few_images_all_pairs_stay_undecided(n_images):
    pool = Pool({"z": {"images": make_images("noise", n_images)}}, {}, {"images": [None] * n_images})
    layout = Layout(n_images, n_images, 2, True)
    counts = sample_search(Auction(), pool, "z", NeighbourSettings(10, None), workers=1).count(layout)
    assert sum(counts) == pytest.approx(layout.total_pairs)

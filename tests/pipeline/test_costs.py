"""What trials say about a larger run."""

import numpy as np
import pytest

from semrsm_dist.pipeline.forecast.calibration import Calibration
from semrsm_dist.pipeline.forecast.costs import Costs
from semrsm_dist.pipeline.forecast.trials import TileTime, Trial
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.store.record import LayerSizes

TILE, PAIR, MULTIPLIED, MATCHED = 2e-3, 1e-7, 2e-6, 1e-5
POWER = 0.7
"""Of the number of pairs, in proportion to which pairs are undecided."""


def trial(n_images, rng, *, searched):
    """A trial whose tiles take exactly what their pairs do."""
    layout = Layout(n_images, n_images, n_images // 4, True)
    tiles = list(layout.tiles())
    shares = rng.dirichlet(np.ones(len(tiles)), size=2)
    found = np.round(layout.total_pairs**POWER * np.array([8.0, 3.0])[:, None] * shares).astype(int)
    times = []
    for place, tile in enumerate(tiles):
        pairs = layout.n_pairs(*tile)
        undecided = tuple(found[:, place].tolist()) if searched else ()
        extra = MULTIPLIED * undecided[0] + MATCHED * undecided[1] if searched else 0.0
        times.append(TileTime("z", pairs, 1e-3, TILE + PAIR * pairs + extra, 0.0, undecided))
    busy = sum(time.seconds + time.load_seconds for time in times)
    seconds = {"total": busy + 1.0, "matching": busy + 0.5, "load": 0.0}
    return Trial({"images": n_images}, {"z": layout}, 32, 1, seconds, times, {})


def costs(searched, planned):
    rng = np.random.default_rng(0)
    trials = [trial(n, rng, searched=searched) for _ in range(3) for n in (400, 800)]
    sizes = {"z": LayerSizes(n_tokens=9, n_channels=32)}
    return Costs(Calibration({"images": planned}, sizes, [], trials, None))


def test_tiles_of_a_matrix_take_what_those_of_trials_take():
    found = costs(searched=False, planned=100_000).tiles["z"]
    assert (found.tile, found.pair) == (pytest.approx(TILE), pytest.approx(PAIR))


def test_more_images_leave_fewer_of_their_pairs_to_products_and_matching():
    planned = 100_000
    found = costs(searched=True, planned=planned).tiles["z"]
    pairs = planned * (planned - 1) / 2
    expected = PAIR + pairs ** (POWER - 1) * (8 * MULTIPLIED + 3 * MATCHED)
    assert found.tile == pytest.approx(TILE, rel=1e-3)
    assert found.pair == pytest.approx(expected, rel=0.01)


def test_what_trials_took_is_predicted_by_what_they_did():
    assert (
        costs(searched=True, planned=100_000).factor < 1.2
    )  # the least that is assumed, of trials that agree

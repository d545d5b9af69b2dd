"""What trials say about a larger run."""

import re
from dataclasses import astuple
from types import SimpleNamespace

import numpy as np
import pytest

from semrsm_dist.pipeline.forecast.calibration import Calibration
from semrsm_dist.pipeline.forecast.costs import Costs
from semrsm_dist.pipeline.forecast.plan import explain_fewer_workers
from semrsm_dist.pipeline.forecast.trials import SearchTime, TileTime, Trial
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.store.record import LayerSizes

TILE, BOUNDS, IMAGE, PAIR, MULTIPLIED, MATCHED = 2e-3, 1e-3, 1e-5, 1e-7, 2e-6, 1e-5


def count(layout):
    """How many pairs of a layout are multiplied and matched, as a sample says."""
    return 4.0 * layout.total_pairs**0.7, 1.5 * layout.total_pairs**0.7


def trial(n_images, panels, rng, *, searched, overlap=None):
    """A trial whose tiles take exactly what their pairs do, and twice as many are undecided as a sample says.

    `overlap` is the matching's time as a part of what tiles take; without it, workers also start and end.
    """
    layout = Layout(n_images, n_images, n_images // panels, True)
    tiles = list(layout.tiles())
    shares = rng.dirichlet(np.ones(len(tiles)), size=2)
    found = np.round(2 * np.array(count(layout))[:, None] * shares).astype(int)
    times = []
    for (row, column), undecided in zip(tiles, found.T.tolist(), strict=True):
        pairs, images = layout.n_pairs(row, column), layout.n_images(row, column)
        seconds, search = TILE + PAIR * pairs, None
        if searched:
            search = SearchTime(
                BOUNDS + PAIR * pairs, MULTIPLIED * undecided[0] + MATCHED * undecided[1], *undecided
            )
            seconds += BOUNDS + IMAGE * images + search.decide_seconds
        times.append(TileTime("z", pairs, images, 1e-3, seconds, 0.0, search))
    busy = sum(time.seconds + time.load_seconds for time in times)
    seconds = {"total": busy + 1.0, "matching": busy * overlap if overlap else busy + 0.5, "load": 0.0}
    return Trial({"images": n_images}, {"z": layout}, 32, 1, seconds, times, {})


def costs(searched, planned, overlap=None):
    rng = np.random.default_rng(0)
    trials = [
        trial(n, panels, rng, searched=searched, overlap=overlap)
        for _ in range(3)
        for n, panels in ((400, 3), (800, 12))
    ]
    sizes = {"z": LayerSizes(n_tokens=9, n_channels=32)}
    samples = {"z": SimpleNamespace(count=count)} if searched else {}
    calibration = Calibration({"images": planned}, sizes, [], trials, None, samples)
    return Costs(calibration, {"z": Layout(planned, planned, 512, True)})


def test_tiles_of_a_matrix_take_what_those_of_trials_take():
    found = costs(searched=False, planned=100_000).tiles["z"]
    assert (found.tile, found.pair) == (pytest.approx(TILE), pytest.approx(PAIR))


def test_what_is_written_while_the_next_tile_is_matched_is_not_waited_for():
    found = costs(searched=False, planned=100_000, overlap=0.8)
    assert found.overlap == pytest.approx(0.8)
    assert found.matching_start == pytest.approx(0.0)
    cost, whole = found.tiles["z"], costs(searched=False, planned=100_000).tiles["z"]
    assert astuple(cost) == pytest.approx([0.8 * part for part in astuple(whole)])


def test_more_images_leave_to_products_and_matching_what_a_sample_says():
    found, layout = costs(searched=True, planned=100_000).tiles["z"], Layout(100_000, 100_000, 512, True)
    multiplied, matched = count(layout)
    expected = PAIR + 2 * (multiplied * MULTIPLIED + matched * MATCHED) / layout.total_pairs
    assert found.tile == pytest.approx(TILE + BOUNDS + IMAGE * layout.total_images / layout.n_tiles, rel=1e-3)
    assert found.pair == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("searched", [False, True])
def test_what_trials_took_is_predicted_by_what_they_did(searched):
    # The least that is assumed, of trials that agree.
    assert costs(searched, planned=100_000).factor < 1.2


@pytest.mark.parametrize(
    ("cpus", "needs", "workers", "reason"),
    [
        (8, {}, 8, None),
        (
            1000,
            {},
            23,
            "the memory of 23.5 GiB has room for no more of 1 GiB each; lower matching.worker_memory",
        ),
        (8, {"cpus": 2}, 4, "a worker takes 2 of them$"),
        (8, {"gpus": 1}, 1, "a worker takes 1 of 1 GPU$"),
        (1000, {"cpus": 2}, 23, "a worker takes 2 of them and the memory of"),
    ],
)
def test_a_plan_with_fewer_workers_than_slots_says_why(cpus, needs, workers, reason):
    matcher = SimpleNamespace(**({"cpus": 1, "gpus": 0} | needs))
    machine = {"cpus": cpus, "gpus": 1, "memory": int(23.5 * 2**30)}
    said = explain_fewer_workers(workers, matcher, machine, 2**30)
    if reason is None:
        assert said == ""
    else:
        assert re.search(rf"^workers: {workers} at once, fewer .* \({cpus}\): {reason}", said)

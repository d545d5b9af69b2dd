"""The matching in simulated time: bounds that hold for any schedule, and what is read."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semrsm_dist.pipeline.forecast.simulation import LayerModel, Simulation
from semrsm_dist.plan.blocks import LayerWork
from semrsm_dist.plan.estimate import TileCost
from semrsm_dist.plan.tiling import Layout


def model(n_images, tile, *, symmetric=True, n_rows=None, pair=1e-4, image=0.0, panel_bytes=1):
    layout = Layout(n_rows or n_images, n_images, tile, symmetric)
    work = LayerWork("a", layout, layout.wanted(), 1e-4, panel_bytes)
    return LayerModel(work, TileCost(1e-3, pair, image), image_bytes=10.0)


def run(models, workers, *, budget=10**6, message_seconds=0.0):
    cluster = Simulation(
        models, workers=workers, task_seconds=1.0, budget=budget, message_seconds=message_seconds
    )
    return cluster.run()


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 300), st.sampled_from([5, 16]), st.integers(1, 50), st.booleans())
def test_time_lies_between_the_work_shared_evenly_and_the_work_of_one(n_images, tile, workers, symmetric):
    layer = model(n_images, tile, symmetric=symmetric, n_rows=None if symmetric else n_images // 2)
    layout = layer.work.layout
    work = layer.cost.seconds(layout.n_tiles, layout.total_pairs, 0)
    found = run([layer], workers)
    assert work / workers <= found.seconds * (1 + 1e-9)
    assert found.seconds <= work * (1 + 1e-9)
    assert found.busy * found.seconds * workers == pytest.approx(work)


def test_one_worker_with_room_reads_each_image_once():
    found = run([model(300, 10)], 1)
    assert found.reads_per_image == 1
    assert found.read_bytes == 3000


def test_without_room_images_are_read_again_and_that_takes_time():
    roomy, narrow = run([model(300, 10, image=0.01)], 1), run([model(300, 10, image=0.01)], 1, budget=3)
    assert narrow.reads_per_image > 3
    assert narrow.seconds - roomy.seconds == pytest.approx(0.01 * (narrow.read_bytes - roomy.read_bytes) / 10)


def test_a_slow_driver_limits_many_workers():
    tasks = run([model(400, 10)], 100).tasks
    slow = run([model(400, 10)], 100, message_seconds=0.5)
    assert slow.seconds > 0.5 * min(tasks, slow.tasks)
    assert slow.driver_seconds > 0.5 * slow.tasks


@pytest.mark.parametrize(
    ("n_images", "tile", "pair"), [(300, 5, 1e-4), (3000, 64, 2e-6), (3000, 64, 2e-4), (20_000, 256, 2e-6)]
)
def test_more_workers_are_never_slower(n_images, tile, pair):
    """Neither where little is left nor where one driver can no longer feed them all."""
    layer = model(n_images, tile, pair=pair)
    layer = replace(layer, work=replace(layer.work, pair_seconds=pair))
    counts = (1, 2, 5, 10, 50, 200, 1000, 5000)
    seconds = [
        Simulation([layer], workers=count, task_seconds=15, budget=100, message_seconds=0.005).run().seconds
        for count in counts
    ]
    assert all(more <= 1.01 * fewer for fewer, more in pairwise(seconds))
    assert seconds[3] < seconds[0] / 5

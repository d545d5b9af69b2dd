"""Measure how many tiles one driver can hand out and take receipts of, and what planning a large matrix costs it.

    python jobs/bench_driver.py [--images 1000000] [--seconds 5]

Workers do nothing but report, so that the driver is the limit: on the local engine, which shares one Python interpreter
with it, and on a Ray started here. `driver` is the processor time of the driver's thread. Ray must not be running here
already.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Hashable, Iterator
from itertools import count, islice
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pandas as pd
import psutil

from semrsm_dist.engine import Engine, Receipt, Resources, Task, make_engine, run_tasks
from semrsm_dist.pipeline.stages.matching_worker import MatchingWorker
from semrsm_dist.plan.blocks import BlockPlanner, LayerWork
from semrsm_dist.plan.tiling import Layout, Tile, choose_tile_size, smallest_tile

COUNTS = {"pairs": 2**20, "tiles": 1, **dict.fromkeys(MatchingWorker.SECONDS, 0.1)}
"""What a receipt of a tile counts."""


def report_at_once(units: tuple[Hashable, ...]) -> Iterator[Receipt]:
    """Yield the receipts of a worker to which tiles cost nothing."""
    for unit in units:
        yield Receipt(unit, counts=COUNTS)


def measure_engine(engine: Engine, tiles_per_task: int, seconds: float) -> dict[str, Any]:
    """Run tasks of so many tiles for some seconds, from the first receipt on."""
    tiles = (Tile("layer", k // 1000, k % 1000) for k in count())
    tasks = (Task(tuple(islice(tiles, tiles_per_task))) for _ in count())
    stop = threading.Event()
    done, begun, used = 0, 0.0, 0.0

    def receive(receipt: Receipt) -> None:
        nonlocal done, begun, used
        if not begun:
            begun, used = time.perf_counter(), time.thread_time()
        done += len(receipt.units)
        if time.perf_counter() - begun > seconds:
            stop.set()

    run_tasks(engine.start_tasks(report_at_once, Resources()), tasks, on_receipt=receive, stop=stop)
    passed, used = time.perf_counter() - begun, time.thread_time() - used
    return {
        "engine": engine.name,
        "tiles a task": tiles_per_task,
        "tiles/s": round(done / passed),
        "tasks/s": round(done / passed / tiles_per_task),
        "driver, ms a task": round(1e3 * used * tiles_per_task / done, 2),
    }


def measure_plan(n_images: int, pair_seconds: float, workers: int) -> str:
    """Cut a whole matrix into blocks, and say what that took."""
    smallest = smallest_tile(n_images, n_images, symmetric=True)
    size = choose_tile_size(n_images, smallest, n_images, pair_seconds=pair_seconds, tile_seconds=15)
    layout = Layout(n_images, n_images, size, symmetric=True)
    memory, started = psutil.Process().memory_info().rss, time.perf_counter()
    work = LayerWork("layer", layout, layout.wanted(), pair_seconds, 2**20)
    blocks = iter(BlockPlanner([work], workers=workers, task_seconds=15, budget=2**30))
    next(blocks)
    first = time.perf_counter() - started
    n_blocks = 1 + sum(1 for _ in blocks)
    passed = time.perf_counter() - started
    grown = psutil.Process().memory_info().rss - memory
    return (
        f"{n_images} images: {layout.n_tiles} tiles of {size} x {size} in {n_blocks} blocks; the first block after "
        f"{first:.2f} s, all in {passed:.1f} s ({1e6 * passed / layout.n_tiles:.1f} us a tile); {grown / 2**20:.0f} MiB"
    )


def main() -> None:
    """Print what planning costs, and a table of both engines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10**6)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    print(measure_plan(arguments.images, 2e-6, 1000), flush=True)
    rows = []
    for name in ("local", "ray"):
        engine = make_engine(name, workers=2)
        try:
            rows += [measure_engine(engine, tiles, arguments.seconds) for tiles in (1, 8, 64, 256)]
        finally:
            engine.close()
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()

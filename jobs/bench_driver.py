"""Measure how many tiles one driver can hand out and take receipts of, and what planning a large matrix costs it.

    python jobs/bench_driver.py [--images 1000000] [--seconds 5]
    python jobs/bench_driver.py --device 49x128x4096 [--threads 1 2]    # instead: what a GPU's tiles cost the CPUs

Workers do nothing but report, so that the driver is the limit: on the local engine, which shares one Python interpreter
with it, and on a Ray started here. `driver` is the processor time of the driver's thread. Ray must not be running here
already.

With --device, whole runs of S tokens, C channels and N images use a GPU that does nothing and is done at once, and so
need none: what they take is what is left to the CPUs of a machine with a GPU. `loading` is reading and preparing the
images, `solving` what comes before and after the kernels, `writing` the tiles' files; `CPU` is the processor time of
all of matching.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import pandas as pd
import psutil

import semrsm_dist as srs
from semrsm_dist.engine import Engine, Receipt, Resources, Task, make_engine, run_tasks
from semrsm_dist.engine.engines.local import LocalEngine, LocalPool
from semrsm_dist.engine.protocol import Worker
from semrsm_dist.matching.device import cuda
from semrsm_dist.matching.device.source import OUTCOME
from semrsm_dist.pipeline.stages.matching_worker import MatchingWorker
from semrsm_dist.plan.blocks import BlockPlanner, LayerWork
from semrsm_dist.plan.tiling import Layout, Tile, choose_tile_size, smallest_tile
from semrsm_dist.progress import SilentReporter, Stage

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


class InstantDevice:
    """A GPU that does nothing: as all images are the same, it knows the value of all pairs, and needs no bound."""

    def __init__(self, value: float) -> None:
        self.panels: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self._value = value
        self.fetch = functools.cache(self._answer)

    def free_bytes(self) -> int:
        """Return the memory of a large GPU."""
        return 2**36

    def auctions(self, *_: Any) -> int:
        """Return how many auctions run at once."""
        return 1

    def do_nothing(self, *_: Any) -> None:
        """Take what would be sent, started or reserved."""

    send = reserve = part = launch = release_unused = do_nothing

    def _answer(self, _: None, shape: tuple[int, ...], dtype: Any) -> Any:
        if dtype == OUTCOME:
            return np.full(shape, np.array((np.inf, 1, 0), OUTCOME))
        return np.full(shape, self._value, dtype)


class Devices(threading.local):
    """A device of each thread."""

    def __init__(self, value: float) -> None:
        self.device = InstantDevice(value)


class OneGpu(LocalEngine):
    """The engine of this machine as if that had one GPU, with so many threads."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self._threads, self._gpus = threads, 1

    def start_actors(self, factory: Callable[[], Worker], count: int, resources: Resources) -> LocalPool:
        """Return a pool of the threads."""
        return super().start_actors(factory, self._threads, resources)


class Clock(SilentReporter):
    """Notes what processor time matching takes."""

    def __init__(self) -> None:
        self.used = 0.0

    @contextlib.contextmanager
    def stage(
        self, name: str, total: int, unit: str, done: int = 0, *, effort: float | None = None
    ) -> Iterator[Stage]:
        """Open a stage."""
        before = time.process_time()
        with super().stage(name, total, unit, done, effort=effort) as stage:
            yield stage
        if name == "matching":
            self.used = time.process_time() - before


def measure_device(sizes: tuple[int, ...], tile: int, threads: int) -> dict[str, Any]:
    """Run on copies of one image, and return what a pair takes, in nanoseconds."""
    n_tokens, n_channels, n_images = sizes
    image = np.random.default_rng(0).standard_normal((1, n_tokens, n_channels), np.float32)
    held = Devices(float(np.sum(image.astype(np.float64) ** 2)))
    here = patch.multiple(cuda, why_no_package=lambda: "", own_device=lambda: held.device)
    clock, engine = Clock(), OneGpu(threads)
    with tempfile.TemporaryDirectory() as folder, here, contextlib.closing(engine):
        np.save(Path(folder) / "z.npy", np.broadcast_to(image, (n_images, n_tokens, n_channels)))
        document = {
            "run": f"{folder}/run",
            "data": {"source": "features", "layers": {"z": f"{folder}/z.npy"}},
            "matching": {"device": "cuda", "tile": tile},
        }
        summary = srs.run(document, engine=engine, reporter=clock).summary()
    seconds = summary["worker_seconds"]
    taken = {
        "elapsed": summary["seconds"]["matching"],
        "CPU": clock.used,
        "loading": seconds["load"],
        "solving": seconds["match"] + seconds["solve"],
        "writing": seconds["write"],
    }
    pairs = n_images * (n_images - 1) / 2
    nanoseconds = {f"{name}, ns a pair": round(1e9 * value / pairs, 1) for name, value in taken.items()}
    return {"threads": threads, "tile": tile, **nanoseconds}


def main() -> None:
    """Print what planning costs, and a table of both engines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10**6)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument(
        "--device", metavar="SxCxN", help="measure what tiles of a GPU take without it, instead"
    )
    parser.add_argument(
        "--tile", type=int, default=1024, help="images along an edge of a tile, with --device"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4], help="of the GPU, with --device")
    arguments = parser.parse_args()
    if arguments.device:
        measure_device((9, 4, 32), 16, 1)  # compiles
        sizes = tuple(map(int, arguments.device.split("x")))
        rows = [measure_device(sizes, arguments.tile, threads) for threads in arguments.threads]
        print(pd.DataFrame(rows).to_string(index=False))
        return
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

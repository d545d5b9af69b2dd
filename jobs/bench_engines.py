"""Measure a whole matching job: what the workers' time goes into, how busy the cores are, and both engines.

    python jobs/bench_engines.py [--images 3000] [--tokens 49] [--channels 128] [--repeats 2] [--folder FOLDER]

One symmetric job on smooth random features, run on the local engine and on a Ray started here in turns, each
time from nothing; the table has the fastest of the repeats. `cores busy` is the processor time of this process (local
engine alone: its workers are threads of it) while the matching stage lasted, as a share of the cores. Ray must
not be running here already.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import pandas as pd

import semrsm_dist as srs
from semrsm_dist.config.schema import parse_config
from semrsm_dist.machine import available_cpus
from semrsm_dist.progress import SilentReporter, Stage

IN_KERNELS = ("product", "match")


class MatchingClock(SilentReporter):
    """Measures wall and processor time of the matching stage."""

    def __init__(self) -> None:
        self.wall = self.processor = 0.0

    @contextmanager
    def stage(self, name: str, *args: Any, **options: Any) -> Iterator[Stage]:
        """Pass a stage through, and note what the matching stage took."""
        wall, processor = time.perf_counter(), time.process_time()
        with super().stage(name, *args, **options) as shown:
            yield shown
        if name == "matching":
            self.wall += time.perf_counter() - wall
            self.processor += time.process_time() - processor


def make_features(folder: Path, n_images: int, n_tokens: int, n_channels: int) -> Path:
    """Write rectified random walks over the tokens: smooth and non-negative, as features after a ReLU are."""
    rng = np.random.default_rng(0)
    z = np.lib.format.open_memmap(
        folder / "z.npy", mode="w+", dtype=np.float32, shape=(n_images, n_tokens, n_channels)
    )
    for image in z:
        image[:] = np.maximum(rng.normal(size=image.shape).cumsum(axis=0), 0.0) / 10
    z.flush()
    return folder / "z.npy"


def measure(engine: str, features: Path, run: Path, tolerance: float) -> dict[str, float]:
    """Return what one run from nothing took."""
    config = parse_config(
        {
            "run": str(run),
            "data": {"source": "features", "layers": {"features": str(features)}},
            "matching": {"tolerance": tolerance},
            "engine": engine,
        }
    )
    clock = MatchingClock()
    summary = srs.run(config, reporter=clock).summary()
    shutil.rmtree(run)
    parts = summary["worker_seconds"]
    return {
        "matching, s": clock.wall,
        "pairs/s": summary["pairs_computed"] / clock.wall,
        "product + matching, share of worker time": sum(parts[name] for name in IN_KERNELS)
        / sum(parts.values()),
        "cores busy": clock.processor / clock.wall / available_cpus() if engine == "local" else float("nan"),
    }


def main() -> None:
    """Measure both engines in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--tokens", type=int, default=49)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="for features and runs; a temporary one if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        features = make_features(folder, options.images, options.tokens, options.channels)
        found: dict[str, list[dict[str, float]]] = {"local": [], "ray": []}
        for _ in range(options.repeats):
            for engine, results in found.items():
                results.append(measure(engine, features, folder / "run", options.tolerance))
    best = pd.DataFrame({engine: min(r, key=lambda row: row["matching, s"]) for engine, r in found.items()})
    print(f"{options.images} images, S = {options.tokens}, C = {options.channels}, {available_cpus()} cores")
    print(best.to_string(float_format=lambda value: f"{value:.4g}"))
    print(f"ray / local: {best.loc['matching, s', 'ray'] / best.loc['matching, s', 'local']:.3f}")


if __name__ == "__main__":
    main()

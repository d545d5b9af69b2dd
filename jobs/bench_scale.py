"""Measure whole runs: throughput against the matcher's own, the driver's share, memory, bytes, files, later starts.

    python jobs/bench_scale.py [--images 20000] [--tokens 9] [--channels 32] [--matcher auction] [--neighbours 10]

Runs on smooth random features with labels, each in a process of its own and from nothing: on the local engine, on a Ray
started for it and, with --neighbours, on the local engine again, keeping only that many neighbours of each image.

`kernel` is what as many threads as there are workers match when they do nothing else, on tiles of 256 x 256; it is
measured before and after each run, as the machine may be shared. Processor times do not depend on who shares it.
The last thing printed is the table of docs/performance.md. Ray must not be running here already. 20 000 images of 9
tokens take about 10 minutes on two cores; `--engines --neighbours 10` is only the last run, and takes 1 minute.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import pandas as pd
import psutil

import semrsm_dist as srs
from semrsm_dist.config.schema import load_config
from semrsm_dist.errors import SemrsmError
from semrsm_dist.machine import available_cpus
from semrsm_dist.matching.matchers import make_matcher
from semrsm_dist.plot.overview import draw_overview
from semrsm_dist.progress import SilentReporter, Stage

TITLES = {"matrices, local": "matrix, local", "matrices, ray": "matrix, Ray"}

DOCUMENTED = {
    "whole run, s": ("whole run, s", ".1f"),
    "matching, s": ("matching, s", ".1f"),
    "pairs/s of the matching": ("pairs/s", "four digits"),
    "of the kernel's": ("run / kernel", ".2f"),
    "kernel, share of the matching's processor time": (
        "kernel, share of the matching's processor time",
        ".0%",
    ),
    "writing, share of the workers' time": ("write, share of workers' time", ".1%"),
    "driver, share of all processor time": ("driver, share of all processor time", ".1%"),
    "driver's memory by quarter of the run, MiB": ("driver, peak MiB by quarter", ""),
    "largest worker's, MiB": ("largest worker, peak MiB by quarter", ""),
    "files": ("files", "_d"),
    "bytes on disk a pair": ("bytes on disk a pair", ".1f"),
    "the same command again, s": ("semrsm run of the finished run, s", ".1f"),
    "`semrsm status`, s": ("semrsm status of the finished run, s", ".1f"),
    "`open_run(...).nearest(...)`, s": ("the images most similar to one, s", ".2f"),
}
"""The rows of the table in docs/performance.md: what is measured, and its format."""

KERNEL_SECONDS, KERNEL_TILE = 5.0, 256
"""How long the matcher alone is measured, each time, and on tiles of which size."""

SAMPLE_SECONDS = 0.5
"""Time between two looks at the memory of all processes."""


class MatchingClock(SilentReporter):
    """Measures the matching stage: its wall time, and the processor time of the driver's thread and of its process."""

    def __init__(self) -> None:
        self.seconds = {"wall": 0.0, "thread": 0.0, "process": 0.0}

    @contextmanager
    def stage(self, name: str, *args: Any, **options: Any) -> Iterator[Stage]:
        """Pass a stage through, and note what the matching stage took."""
        clocks = {"wall": time.perf_counter, "thread": time.thread_time, "process": time.process_time}
        begun = {clock: read() for clock, read in clocks.items()}
        with super().stage(name, *args, **options) as shown:
            yield shown
        if name == "matching":
            for clock, read in clocks.items():
                self.seconds[clock] += read() - begun[clock]


class Watch:
    """Looks at a process and its descendants, such as Ray's workers, from a thread: memory, and processor time."""

    def __init__(self) -> None:
        self.memory: list[tuple[int, int]] = []  # of the process, and of the largest of its workers
        self.processor: dict[int, float] = {}
        self._ended = threading.Event()

    @contextmanager
    def over(self, pid: int) -> Iterator[None]:
        """Watch a process during a block."""
        thread = threading.Thread(target=self._look, args=(psutil.Process(pid),))
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _look(self, driver: psutil.Process) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            sizes = {}
            for process in [driver, *driver.children(recursive=True)]:
                try:
                    times, memory = process.cpu_times(), process.memory_full_info().uss
                    self.processor[process.pid] = times.user + times.system
                    if process.pid == driver.pid or process.name().startswith("ray::"):
                        sizes[process.pid] = memory
                except psutil.NoSuchProcess:
                    continue
            own = sizes.pop(driver.pid, 0)
            self.memory.append((own, max(sizes.values(), default=0)))

    def peaks(self, place: int) -> str:
        """Return the peak memory of the driver (0) or of a worker (1) in each quarter of the run, in MiB."""
        quarters = np.array_split(np.array(self.memory or [(0, 0)])[:, place], 4)
        return " ".join(f"{quarter.max(initial=0) / 2**20:.0f}" for quarter in quarters)


def write_inputs(folder: Path, options: argparse.Namespace) -> None:
    """Write rectified random walks over the tokens, smooth and non-negative, a table of labels, and configurations."""
    rng = np.random.default_rng(0)
    shape = (options.images, options.tokens, options.channels)
    z = np.lib.format.open_memmap(folder / "z.npy", mode="w+", dtype=np.float16, shape=shape)
    for start in range(0, options.images, 512):
        part = z[start : start + 512]
        part[:] = np.maximum(rng.normal(size=part.shape).cumsum(axis=1), 0.0) / 10
    z.flush()
    rows = (f"image{index},class{index % 50}\n" for index in range(options.images))
    (folder / "images.csv").write_text("image_id,labels\n" + "".join(rows))
    for name, more in (("matrices", {}), ("neighbours", {"output": {"neighbours": options.neighbours}})):
        config = {
            "run": str(folder / name),
            "data": {
                "source": "features",
                "layers": {"z": str(folder / "z.npy")},
                "table": str(folder / "images.csv"),
            },
            "features": {"dtype": "float16"},
            "matching": {"matcher": options.matcher},
            "workers": options.workers,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(config | more))


def measure_kernel(folder: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Return the pairs/s of the matcher alone on as many threads as workers, and the processor seconds of a pair."""
    matcher = make_matcher(options.matcher)
    z = np.load(folder / "z.npy", mmap_mode="r")
    size = min(KERNEL_TILE, len(z) // 2)
    panels = [matcher.prepare(z[start : start + size]) for start in (0, len(z) - size)]
    matcher.solve_tile(*panels)  # compiled, and in the caches

    def solve(_: int) -> int:
        solved = 0
        while time.perf_counter() - started < KERNEL_SECONDS:
            matcher.solve_tile(*panels)
            solved += size * size
        return solved

    with ThreadPoolExecutor(options.workers) as threads:
        started, used = time.perf_counter(), time.process_time()
        pairs = sum(threads.map(solve, range(options.workers)))
        return pairs / (time.perf_counter() - started), (time.process_time() - used) / pairs


def compute(config: Path, engine: str) -> tuple[dict[str, Any], dict[str, float]]:
    """Compute a run and draw its picture, as `semrsm run` does; return its summary, and what the matching took."""
    clock = MatchingClock()
    run = srs.run(load_config(config, [f"--engine={engine}"]), reporter=clock)
    if run.record.neighbours is None:
        draw_overview(run)
    return run.summary(), clock.seconds


def measure_run(folder: Path, options: argparse.Namespace, name: str, engine: str) -> dict[str, Any]:
    """Return a column of the table: a run from nothing, with the matcher alone before and after it."""
    config = folder / f"{name}.yaml"
    watch, rates = Watch(), [measure_kernel(folder, options)]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pid = pool.submit(os.getpid).result()
        with watch.over(pid):
            summary, clock = pool.submit(compute, config, engine).result()
    rates.append(measure_kernel(folder, options))
    seconds, parts = summary["seconds"], summary["worker_seconds"]
    pairs, rate = summary["pairs_computed"], summary["pairs_per_second"]
    kernel_rate, kernel_seconds = (float(np.mean(values)) for values in zip(*rates, strict=True))
    processor = sum(watch.processor.values())
    driver = clock["thread"] / clock["process"] if engine == "local" else clock["process"] / processor
    files = [path.stat().st_size for path in (folder / name).rglob("*") if path.is_file()]
    column = {
        "pairs": pairs,
        "whole run, s": seconds["total"],
        "matching, s": seconds["matching"],
        "pairs/s": rate,
        "kernel, pairs/s": kernel_rate,
        "run / kernel": rate / kernel_rate,
        "kernel, share of the matching's processor time": (  # of a search, which leaves most pairs to bounds, none
            kernel_seconds * pairs / clock["process"]
            if (name, engine) == ("matrices", "local")
            else float("nan")
        ),
        "processor time of all, s": processor,
        "of the kernel for as many pairs, s": kernel_seconds * pairs,
        **{f"{part}, share of workers' time": value / sum(parts.values()) for part, value in parts.items()},
        "driver, share of all processor time": driver,
        "before and after matching, s": seconds["total"] - seconds["matching"],
        "driver, peak MiB by quarter": watch.peaks(0),
        "largest worker, peak MiB by quarter": watch.peaks(1) if engine == "ray" else "(threads)",
        "files": len(files),
        "bytes on disk a pair": sum(files) / pairs,
    }
    decided = summary["decided"]
    if decided:
        shares = [f"{100 * count / sum(decided.values()):.1f}" for count in decided.values()]
        column["decided by bounds / sketches / products / matching, %"] = " / ".join(shares)
    return column | measure_later(folder, config, name)


def measure_later(folder: Path, config: Path, name: str) -> dict[str, float]:
    """Return the seconds of what is done with a finished run: the same command, `status`, and a look at one image."""
    found = {}
    for title, arguments in (
        ("run", ["run", str(config), "--engine", "local"]),
        ("status", ["status", str(folder / name)]),
    ):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "semrsm_dist", *arguments], check=True, capture_output=True)
        found[f"semrsm {title} of the finished run, s"] = time.perf_counter() - started
    started = time.perf_counter()
    srs.open_run(folder / name).nearest(7, 10, layer="z")
    return found | {"the images most similar to one, s": time.perf_counter() - started}


def main() -> None:
    """Print a table with a column for each run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--tokens", type=int, default=9)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--matcher", default="auction")
    parser.add_argument("--workers", type=int, default=available_cpus())
    parser.add_argument("--engines", nargs="*", default=["local", "ray"], help="for the matrix; may be none")
    parser.add_argument(
        "--neighbours", type=int, help="also a run that keeps so many neighbours of each image"
    )
    parser.add_argument("--folder", type=Path, help="for features and runs; a temporary one if not given")
    options = parser.parse_args()
    runs = [("matrices", engine) for engine in options.engines]
    runs += [("neighbours", "local")] if options.neighbours else []
    columns: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_inputs(folder, options)
        print(
            f"{options.images} images, S = {options.tokens}, C = {options.channels}, matcher {options.matcher}, "
            f"{options.workers} workers; load of the machine at first {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        for kind, engine in runs:
            try:
                column = measure_run(folder, options, kind, engine)
            except SemrsmError as error:
                print(f"{kind}, {engine}: {error}\n", flush=True)
                shutil.rmtree(folder / kind, ignore_errors=True)
                continue
            title = f"{kind}, {engine}"
            print(pd.Series(column, name=title).map(format_number).to_string(), end="\n\n", flush=True)
            columns[TITLES.get(title, f"{options.neighbours} neighbours, {engine}")] = column
            shutil.rmtree(folder / kind)
    if set(TITLES.values()) <= set(columns):
        local, ray = (columns[title]["matching, s"] for title in TITLES.values())
        print(f"ray / local, matching: {ray / local:.3f}")
    print(f"load of the machine at last {os.getloadavg()[0]:.1f}\n")
    print(format_table(columns))


def format_table(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of docs/performance.md, in Markdown."""
    lines = [" | ".join(["|", *columns, ""]).strip(), "|---" + "|---:" * len(columns) + "|"]
    for title, (key, form) in DOCUMENTED.items():
        cells = [format_cell(column[key], form) for column in columns.values()]
        lines.append(f"| {' | '.join([title, *cells])} |")
    return "\n".join(lines)


def format_cell(value: Any, form: str) -> str:
    """Format a number with thin groups of digits, and what is missing as nothing."""
    if isinstance(value, str) or not form:
        return str(value)
    if np.isnan(value):
        return ""
    if form == "four digits":
        value, form = round(float(f"{value:.4g}")), "_d"
    return format(value, form).replace("_", " ").replace("%", " %")


def format_number(value: Any) -> str:
    """Format a value of the table with four digits, whole numbers in full, and what is missing as nothing."""
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.4g}"
    return str(value)


if __name__ == "__main__":
    main()

"""Check matching on the GPU of this machine, and measure it. One table; exit status 1 if anything is off.

    python jobs/gpu_check.py

Needs a checkout with the extra `cuda`, and pytest with hypothesis for the tests marked `gpu`, but no Ray, no network.
Times are of whole tiles: features to the GPU, product, auctions, values and results back. The features are random walks
over the tokens with noise, no images.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # a checkout need not be installed

from semrsm_dist.machine import limit_threads  # noqa: E402
from semrsm_dist.matching.device import cuda  # noqa: E402
from semrsm_dist.matching.device.compiling import compile_kernels  # noqa: E402
from semrsm_dist.matching.device.solver import solve  # noqa: E402
from semrsm_dist.matching.device.source import CAPACITIES  # noqa: E402
from semrsm_dist.matching.matchers import make_matcher  # noqa: E402
from semrsm_dist.matching.matchers.auction import Auction  # noqa: E402

ROUNDING = 1e-12  # of float64 sums, relative to the norms
TOLERANCES = (1e-2, 1e-3, 1e-4)


class Row(NamedTuple):
    """A line of the table."""

    what: str
    is_right: bool
    detail: str


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = ["49x512", "196x256", "196x768", "784x128"]
    parser.add_argument(
        "--sizes", nargs="+", default=sizes, metavar="SxC", help="tokens and channels to measure"
    )
    parser.add_argument("--images", type=int, default=128, help="along an edge of a tile")
    parser.add_argument("--skip-tests", action="store_true", help="only compile and measure")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and measure; print the table."""
    given = parse(arguments)
    reason = cuda.why_no_gpu()
    if reason:
        print(f"nothing was checked: {reason}")
        return 1
    rows = [describe(), compile_all()]
    if not given.skip_tests:
        rows.append(run_tests())
    for size in given.sizes:
        n_tokens, n_channels = map(int, size.split("x"))
        rows += measure(n_tokens, n_channels, given.images)
    width = max(len(row.what) for row in rows)
    for row in rows:
        print(f"{row.what:{width}}  {'ok ' if row.is_right else 'OFF'}  {row.detail}")
    return 0 if all(row.is_right for row in rows) else 1


def describe() -> Row:
    """Name the GPU and the libraries."""
    from cuda.bindings import driver, nvrtc  # noqa: PLC0415
    from cuda.core import __version__  # noqa: PLC0415

    (_, version), (_, *compiler) = driver.cuDriverGetVersion(), nvrtc.nvrtcVersion()
    detail = f"driver for CUDA {version // 1000}.{version % 1000 // 10}, NVRTC {'.'.join(map(str, compiler))}"
    return Row(cuda.own_device().name, True, f"{detail}, cuda.core {__version__}")


def compile_all() -> Row:
    """Compile every form for this GPU, not from the cache."""
    started = time.perf_counter()
    for capacity in CAPACITIES:
        compile_kernels(capacity, cuda.own_device().arch)
    return Row("kernels", True, f"{len(CAPACITIES)} forms in {time.perf_counter() - started:.1f} s")


def run_tests() -> Row:
    """Run the tests marked `gpu` in a process of their own."""
    tests = ("tests/matching/device", "tests/pipeline/test_runs_on_a_device.py")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", *tests]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout[-4000:], done.stderr[-4000:], sep="\n")
    last = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()[-1]
    return Row("tests", done.returncode == 0, f"{last} ({time.perf_counter() - started:.0f} s)")


def make_features(n_images: int, n_tokens: int, n_channels: int) -> NDArray[np.float32]:
    """Return features (N, S, C) of neighbouring tokens that resemble each other."""
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(n_images, n_tokens, n_channels))
    return (np.cumsum(steps, axis=1) + 2.0 * rng.normal(size=steps.shape)).astype(np.float32)


def measure(n_tokens: int, n_channels: int, n_images: int) -> list[Row]:
    """Match a tile at several tolerances; compare it with itself, with scipy and with one core of this machine."""
    panel = Auction().prepare(make_features(2 * n_images, n_tokens, n_channels))
    tile = panel.part(slice(n_images)), panel.part(slice(n_images, None))
    rows = []
    for tolerance in TOLERANCES:
        device = make_matcher("auction", tolerance=tolerance, device="cuda")
        found, is_open = solve(cuda.own_device(), *tile, tolerance)  # type: ignore[arg-type]
        whole = device.solve_tile(*tile)
        seconds = median_seconds(lambda device=device: device.solve_tile(*tile))
        again, _ = solve(cuda.own_device(), *tile, tolerance)  # type: ignore[arg-type]
        wrong = [
            name
            for name, is_wrong in (
                ("results differ from run to run", not same_bytes(found, again)),
                ("results contradict scipy", not agrees_with_scipy(whole, *tile, tolerance)),
            )
            if is_wrong
        ]
        core = one_core(tolerance, *tile)
        rate = n_images**2 / seconds
        detail = (
            f"{rate:.3g} pairs/s, {rate * core:.3g} times one core; "
            f"{100 * (1 - is_open.mean()):.2f} % certified on the GPU"
        )
        name = f"S = {n_tokens}, C = {n_channels}, tolerance {tolerance:g}"
        rows.append(Row(name, not wrong, "; ".join([detail, *wrong])))
    return rows


def median_seconds(do: Any, repeats: int = 5) -> float:
    """Return the median time of a call."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        do()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def one_core(tolerance: float, rows: Any, columns: Any) -> float:
    """Return the seconds of a pair on one core of this machine."""
    part = slice(min(8, rows.n_images))
    pair = rows.part(part), columns.part(part)
    matcher = Auction(tolerance=tolerance)
    with limit_threads(1):
        matcher.solve_tile(*pair)  # compiles
        return median_seconds(lambda: matcher.solve_tile(*pair), 3) / (pair[0].n_images * pair[1].n_images)


def same_bytes(found: Any, again: Any) -> bool:
    """Return whether two results are the same to the last bit."""
    return all(one.tobytes() == other.tobytes() for one, other in zip(found[:3], again[:3], strict=True))


def agrees_with_scipy(tile: Any, rows: Any, columns: Any, tolerance: float, n_pairs: int = 12) -> bool:
    """Return whether values and bounds enclose the optimum, of a few pairs."""
    rng = np.random.default_rng(1)
    for r, c in rng.integers(0, (rows.n_images, columns.n_images), (n_pairs, 2)):
        affinity = rows.raw[r].astype(np.float64) @ columns.raw[c].astype(np.float64).T
        best = affinity[linear_sum_assignment(affinity, maximize=True)].sum()
        norms = np.sqrt(rows.squared_norms[r] * columns.squared_norms[c])
        value, bound = tile.matched[r, c], tile.upper_bound[r, c]
        if (
            not best - (tolerance + ROUNDING) * norms
            <= value
            <= best + ROUNDING * norms
            <= bound + 2 * ROUNDING * norms
        ):
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())

"""Check matching on the GPU of this machine, and measure it: one table, in less than five minutes.

    python jobs/gpu_check.py
    python jobs/gpu_check.py --renew-forms    # instead: measure the forms of auctions, and note the fastest

Needs a checkout and the package's requirements with the extra `cuda`, but no Ray, no network and no installation; what
is missing is named, and what needs it is skipped, as is what a slow GPU has no time for. Exit status 0 if all is right,
1 if anything is off, 2 if nothing could be checked, 3 if nothing is off but something could not be checked.

Rates are of pairs of features that are random walks over the tokens with noise. `kernels` is product, auctions and
values of one tile whose features are on the GPU; `tiles` is all that workers do with tiles, but for reading and
writing; `run` is a whole `semrsm run` on ready-made features, with both. Compared are one core of this machine with the
same certificate, and SciPy's exact solver on one core.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import math
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # a checkout need not be installed

ROUNDING = 1e-12  # of float64 sums, relative to the norms
TOLERANCES = (1e-2, 1e-3, 1e-4)
TEST_SECONDS = 150
MOST_SECONDS = 270  # after which nothing more is begun
MEDIAN_SECONDS = 2  # after which a call is not repeated
FORM_TOLERANCE = 1e-3  # at which forms are measured,
FORM_BYTES = 2**33  # with at most so many bytes of affinities
NEEDED = {
    "numpy": "numpy",
    "scipy": "scipy",
    "numba": "numba",
    "psutil": "psutil",
    "pydantic": "pydantic",
    "threadpoolctl": "threadpoolctl",
    "typing_extensions": "typing-extensions",
    "yaml": "pyyaml",
    "cuda.bindings": "cuda-bindings[all]",
}
NEEDED_BY_RUNS = {
    "PIL": "pillow",
    "safetensors": "safetensors",
    "tqdm": "tqdm",
    "zarr": "zarr",
    "pyarrow": "pyarrow",
    "pandas": "pandas",
    "xarray": "xarray",
    "google_crc32c": "google-crc32c",
}
NEEDED_BY_TESTS = {
    "pytest": "pytest",
    "pytest_timeout": "pytest-timeout",
    "hypothesis": "hypothesis",
    "matplotlib": "matplotlib",
}


class Row(NamedTuple):
    """A line of the table."""

    what: str
    state: str  # "ok", "OFF" or "skipped"
    detail: str


Check = Callable[[], tuple[str, str]]
"""Returns state and detail of a row."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = ["49x512", "196x256", "196x768", "784x128"]
    parser.add_argument(
        "--sizes", nargs="+", default=sizes, metavar="SxC", help="tokens and channels to measure"
    )
    parser.add_argument(
        "--images", type=int, default=256, help="along an edge of a tile; fewer of large ones"
    )
    parser.add_argument("--runs", nargs="*", default=["49x128x6000", "196x256x2000"], metavar="SxCxN")
    parser.add_argument("--skip-tests", action="store_true", help="only compile and measure")
    parser.add_argument(
        "--renew-forms",
        nargs="?",
        type=Path,
        const=ROOT / "semrsm_dist/matching/device/forms.json",
        metavar="TABLE",
        help="measure the forms in which auctions run, and write the fastest to this checkout's table, or to TABLE",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and measure; print the table."""
    given = parse(arguments)
    reason = why_nothing()
    if reason:
        print(f"nothing was checked: {reason}")
        return 2
    rows = []
    for row in renew_forms(given) if given.renew_forms else check_all(given):
        print(f"{row.what:36} {row.state:7} {row.detail}", flush=True)
        rows.append(row)
    states = {row.state for row in rows}
    if "OFF" in states:
        verdict, status = "something is off", 1
    elif "skipped" in states:
        verdict, status = "nothing is off, but not all was checked", 3
    else:
        verdict, status = "all is right", 0
    print(verdict)
    return status


def why_nothing() -> str:
    """Return why nothing can be checked here, or an empty text."""
    missing = find_missing(NEEDED)
    if missing:
        return f"packages are missing: pip install {shlex.join(missing)}"
    from semrsm_dist.matching.device import cuda  # noqa: PLC0415 - once it is known that it can be imported

    return cuda.why_no_gpu()


def find_missing(needed: dict[str, str]) -> list[str]:
    """Return the distributions of modules that cannot be found."""
    missing = []
    for module, distribution in needed.items():
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            missing.append(distribution)
    return missing


def check_all(given: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows as they come; what breaks is a row, too."""
    deadline = time.monotonic() + MOST_SECONDS
    for what, check in list_checks(given):
        in_time = time.monotonic() < deadline
        yield attempt(what, check) if in_time else Row(what, "skipped", f"{MOST_SECONDS} s were over")


def list_checks(given: argparse.Namespace) -> Iterator[tuple[str, Check]]:
    """Yield what is checked, row by row."""
    yield "GPU", describe
    yield "kernels", compile_all
    for product in ("float32", "halves"):
        yield f"product in {product}", lambda product=product: check_product(product)
    if not given.skip_tests:
        yield "tests", run_tests
    for size in given.sizes:
        n_tokens, n_channels = map(int, size.split("x"))
        n_images = max(2, min(given.images, int(given.images * 196 / n_tokens)))
        for tolerance in TOLERANCES:
            name = f"S = {n_tokens}, C = {n_channels}, tolerance {tolerance:g}"
            yield name, lambda size=(n_tokens, n_channels, n_images), tol=tolerance: measure(*size, tol)
    for size in given.runs:
        n_tokens, n_channels, n_images = map(int, size.split("x"))
        name = f"run, S = {n_tokens}, C = {n_channels}, N = {n_images}"
        yield name, lambda size=(n_tokens, n_channels, n_images): measure_run(*size)


def attempt(what: str, do: Check) -> Row:
    """Return the row of a check."""
    try:
        return Row(what, *do())
    except Exception as error:  # noqa: BLE001 - the other rows are still worth having
        return Row(what, "OFF", f"{type(error).__name__}: {error}")


def describe() -> tuple[str, str]:
    """Name the GPU and the libraries."""
    from cuda.bindings import driver  # noqa: PLC0415

    from semrsm_dist.matching.device import compiling, cuda  # noqa: PLC0415

    _, version = driver.cuDriverGetVersion()
    compiler = ".".join(map(str, compiling.compiler_version()))
    device = cuda.own_device()
    return "ok", (
        f"{device.name}, {device.arch}, {device.free_bytes() / 2**30:.0f} GiB free, driver for CUDA {version // 1000}."
        f"{version % 1000 // 10}, NVRTC {compiler}, cuda-bindings {importlib.metadata.version('cuda-bindings')}"
    )


def compile_all() -> tuple[str, str]:
    """Compile products and all forms of the table for this GPU, not from the cache, and load them."""
    from semrsm_dist.matching.device import cuda, forms  # noqa: PLC0415
    from semrsm_dist.matching.device.compiling import compile_kernels  # noqa: PLC0415

    device, started, known = cuda.own_device(), time.perf_counter(), forms.known_forms()
    for form in (None, *known):
        compile_kernels(form, device.arch)
    seconds = time.perf_counter() - started
    blocks = [device.auctions(form, form.capacity) for form in known]
    return (
        "ok",
        f"products and {len(known)} forms in {seconds:.1f} s; auctions at once: {', '.join(map(str, blocks))}",
    )


def check_product(product: Any) -> tuple[str, str]:
    """Compare the product with float64, on numbers of very different sizes: no error may exceed its allowance."""
    from semrsm_dist.matching.device import cuda  # noqa: PLC0415
    from semrsm_dist.matching.device.selfcheck import worst_product  # noqa: PLC0415

    worst = worst_product(cuda.own_device(), product)
    return (
        "ok" if worst <= 1.0 else "OFF"
    ), f"largest error {worst:.2g} of what the certificate allows for it"


def renew_forms(given: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each capacity; write the table of the fastest forms if nothing is off."""
    from semrsm_dist.matching.device import cuda, forms  # noqa: PLC0415

    fastest: list[Any] = []
    rows = [attempt("GPU", describe)]
    yield rows[0]
    for capacity in forms.CAPACITIES:
        rows.append(
            attempt(
                f"forms for S <= {capacity}",
                lambda capacity=capacity: measure_forms(capacity, given.images, fastest),
            )
        )
        yield rows[-1]
    if any(row.state == "OFF" for row in rows):
        yield Row("table", "OFF", "not written, as something is off")
        return
    forms.write_forms(fastest, cuda.own_device().name, given.renew_forms)
    yield Row("table", "ok", f"written: {given.renew_forms}")


def measure_forms(capacity: int, n_images: int, fastest: list[Any]) -> tuple[str, str]:
    """Match a tile in each form that a capacity may have; append the fastest. All must find the same bytes."""
    from semrsm_dist.matching.device import cuda, forms, solver  # noqa: PLC0415
    from semrsm_dist.matching.device.certificate import frame_pairs  # noqa: PLC0415
    from semrsm_dist.matching.matchers.auction import Auction  # noqa: PLC0415

    device, n_tokens = cuda.own_device(), capacity * 49 // 64
    n_bytes = min(FORM_BYTES, device.free_bytes() // 4)
    n_images = max(1, min(n_images, math.isqrt(n_bytes // (4 * capacity**2))))
    panel: Any = Auction().prepare(make_features(2 * n_images, n_tokens, 64))
    halves = panel.part(slice(n_images)), panel.part(slice(n_images, None))
    layout = solver.choose_layout(*halves, FORM_TOLERANCE)
    sent = [solver.send_panel(device, half, layout) for half in halves]
    panels = solver.Panels(*sent, n_tokens, panel.n_channels)
    tasks = frame_pairs(*halves, FORM_TOLERANCE).tasks
    seconds, found = {}, set()
    for form in forms.candidates(capacity):

        def match(form: Any = form) -> Any:
            return solver.match_pairs(device, panels, tasks, form=form, with_permutations=True)

        found.add(b"".join(array.tobytes() for array in match()))  # compiles
        seconds[form] = median_seconds(match, 3)
    best = min(seconds, key=seconds.__getitem__)
    fastest.append(best)
    detail = (
        f"{best.warps} warps, {best.shared_rows} rows in shared memory: {1e6 * seconds[best] / tasks.size:.3g} us a "
        f"pair; slowest of {len(seconds)} forms {1e6 * max(seconds.values()) / tasks.size:.3g}"
    )
    return ("ok", detail) if len(found) == 1 else ("OFF", f"{detail}; results differ between forms")


def run_tests() -> tuple[str, str]:
    """Run the tests marked `gpu` in a process of their own."""
    missing = find_missing(NEEDED_BY_TESTS | NEEDED_BY_RUNS)
    if missing:
        return "skipped", f"pip install {' '.join(missing)}"
    tests = ("tests/matching/device", "tests/pipeline/test_runs_on_a_device.py")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *tests]
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TEST_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        so_far = (error.stdout or b"").decode(errors="replace").strip().splitlines()
        return "OFF", f"not done after {TEST_SECONDS} s: {so_far[-1] if so_far else 'no output'}"
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], sep="\n")
    last = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()[-1]
    return ("OFF" if done.returncode else "ok"), f"{last} ({time.perf_counter() - started:.0f} s)"


def make_features(n_images: int, n_tokens: int, n_channels: int) -> Any:
    """Return features (N, S, C) of neighbouring tokens that resemble each other."""
    import numpy as np  # noqa: PLC0415

    rng = np.random.default_rng(0)
    steps = rng.standard_normal((n_images, n_tokens, n_channels), np.float32)
    features = np.cumsum(steps, axis=1)
    features += 2 * rng.standard_normal(steps.shape, np.float32)
    return features


def measure(n_tokens: int, n_channels: int, n_images: int, tolerance: float) -> tuple[str, str]:
    """Match a tile; compare it with itself, with SciPy and with one core of this machine."""
    from semrsm_dist.matching.device import cuda, solver  # noqa: PLC0415
    from semrsm_dist.matching.matchers import make_matcher  # noqa: PLC0415
    from semrsm_dist.matching.matchers.auction import Auction  # noqa: PLC0415

    panel: Any = Auction().prepare(make_features(2 * n_images, n_tokens, n_channels))
    tile = panel.part(slice(n_images)), panel.part(slice(n_images, None))
    matcher, device = make_matcher("auction", tolerance=tolerance, device="cuda"), cuda.own_device()
    whole = matcher.solve_tile(*tile)
    found, is_open = solver.solve(device, *tile, tolerance)
    again, _ = solver.solve(device, *tile, tolerance)
    wrong = [
        name
        for name, is_wrong in (
            ("results differ from run to run", not same_bytes(found, again)),
            ("results contradict scipy", not agrees_with_scipy(whole, *tile, tolerance)),
            ("less than 99 % are certified on the GPU", tolerance >= 1e-3 and is_open.mean() > 0.01),
        )
        if is_wrong
    ]
    kernels = kernel_rate(device, *tile, tolerance)
    tiles = tile_rate(matcher, *tile)
    core = one_core(tolerance, *tile)
    exact = scipy_seconds(*tile)
    detail = (
        f"kernels {kernels:.3g} pairs/s, tiles {tiles:.3g} pairs/s, {tiles * core:.0f} times one core, "
        f"{tiles * exact:.0f} times SciPy; {100 * (1 - is_open.mean()):.2f} % certified on the GPU"
    )
    return ("OFF" if wrong else "ok"), "; ".join([detail, *wrong])


def kernel_rate(device: Any, rows: Any, columns: Any, tolerance: float) -> float:
    """Return pairs a second of the kernels, with features that are on the GPU: as many as are matched at once."""
    from semrsm_dist.matching.device import solver  # noqa: PLC0415
    from semrsm_dist.matching.device.certificate import frame_pairs  # noqa: PLC0415

    layout = solver.choose_layout(rows, columns, tolerance)
    block = next(solver.blocks_of(device.free_bytes(), rows, columns, layout))
    rows, columns = rows.part(block.rows), columns.part(block.columns)
    sent = [solver.send_panel(device, panel, layout) for panel in (rows, columns)]
    panels = solver.Panels(*sent, rows.n_tokens, rows.n_channels)
    tasks = frame_pairs(rows, columns, tolerance).tasks
    return tasks.size / median_seconds(lambda: solver.match_pairs(device, panels, tasks))


def tile_rate(matcher: Any, rows: Any, columns: Any) -> float:
    """Return pairs a second of as many workers as a run has on one GPU, each with tiles of its own."""
    workers = round(1 / matcher.gpus)
    with ThreadPoolExecutor(workers) as pool:

        def solve_all(rows: Any = rows, each: int = 2) -> None:
            list(pool.map(lambda _: matcher.solve_tile(rows, columns), range(each * workers)))

        solve_all(rows.part(slice(1)), 8)  # each thread opens the GPU
        seconds = median_seconds(solve_all, 3)
    return float(2 * workers * rows.n_images * columns.n_images / seconds)


def measure_run(n_tokens: int, n_channels: int, n_images: int) -> tuple[str, str]:
    """Run on ready-made features on a local disk; compare its matching with that of tiles in memory."""
    missing = find_missing(NEEDED_BY_RUNS)
    if missing:
        return "skipped", f"pip install {' '.join(missing)}"
    import numpy as np  # noqa: PLC0415

    import semrsm_dist as srs  # noqa: PLC0415
    from semrsm_dist.matching.matchers import make_matcher  # noqa: PLC0415
    from semrsm_dist.matching.matchers.auction import Auction  # noqa: PLC0415

    z = make_features(n_images, n_tokens, n_channels)
    panel: Any = Auction().prepare(z[: 2 * 256])
    half = panel.n_images // 2
    rate = tile_rate(
        make_matcher("auction", device="cuda"), panel.part(slice(half)), panel.part(slice(half, None))
    )
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "z.npy", z)
        document = {
            "run": f"{folder}/run",
            "data": {"source": "features", "layers": {"z": f"{folder}/z.npy"}},
            "matching": {"device": "cuda"},
        }
        started = time.perf_counter()
        summary = srs.run(document).summary()
        whole = time.perf_counter() - started
    pairs, matching = n_images * (n_images - 1) / 2, summary["seconds"]["matching"]
    return "ok", (
        f"{whole:.1f} s, matching {matching:.1f} s, {pairs / matching:.3g} pairs/s: {matching * rate / pairs:.2f} "
        "times as long as its tiles in memory"
    )


def median_seconds(do: Callable[[], Any], repeats: int = 5) -> float:
    """Return the median time of a call, of fewer repeats if they take long."""
    seconds = list[float]()
    while len(seconds) < repeats and sum(seconds) < MEDIAN_SECONDS:
        started = time.perf_counter()
        do()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def one_core(tolerance: float, rows: Any, columns: Any) -> float:
    """Return the seconds of a pair on one core of this machine."""
    from semrsm_dist.machine import limit_threads  # noqa: PLC0415
    from semrsm_dist.matching.matchers.auction import Auction  # noqa: PLC0415

    part = slice(min(8, rows.n_images))
    pair = rows.part(part), columns.part(part)
    matcher = Auction(tolerance=tolerance)
    with limit_threads(1):
        matcher.solve_tile(*pair)  # compiles
        return median_seconds(lambda: matcher.solve_tile(*pair), 3) / (pair[0].n_images * pair[1].n_images)


def scipy_seconds(rows: Any, columns: Any, n_pairs: int = 3) -> float:
    """Return the seconds of a pair by product and exact solver on one core."""
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415

    from semrsm_dist.machine import limit_threads  # noqa: PLC0415

    def solve() -> None:
        for k in range(min(n_pairs, rows.n_images)):
            linear_sum_assignment(rows.raw[k] @ columns.raw[k].T, maximize=True)

    with limit_threads(1):
        return median_seconds(solve, 3) / min(n_pairs, rows.n_images)


def same_bytes(found: Any, again: Any) -> bool:
    """Return whether two results are the same to the last bit."""
    return all(one.tobytes() == other.tobytes() for one, other in zip(found[:3], again[:3], strict=True))


def agrees_with_scipy(tile: Any, rows: Any, columns: Any, tolerance: float, n_pairs: int = 12) -> bool:
    """Return whether values and bounds enclose the optimum, of a few pairs."""
    import numpy as np  # noqa: PLC0415
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415

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

"""Measure how soon the page of a run is there, and how smoothly its maps move, in headless Chromium.

    python jobs/bench_view.py RUN

It starts `semrsm view RUN`, opens the page twice, and zooms and moves the maps while it measures the time between two
frames, of which there are 60 a second at most. What the first visit has made is kept in the folder `view` of the run:
remove it to measure a first visit again.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
from playwright.sync_api import Page, sync_playwright

OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
STEPS, PAUSE = 60, 16
"""Of a movement, and milliseconds between them."""

COUNT_FRAMES = """() => {
  window.frames_ = []; window.counting = true;
  let last = performance.now();
  const next = () => {
    const now = performance.now();
    window.frames_.push(now - last); last = now;
    if (window.counting) requestAnimationFrame(next);
  };
  requestAnimationFrame(next);
}"""


@contextmanager
def serving(run: str) -> Any:
    """Start the command, and yield its process, the address, and the seconds until it was printed."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "semrsm_dist", "view", run, "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            found = re.search(r"http://\S+", server.stdout.readline() if server.stdout else "")
            if found is None:
                raise SystemExit(f"semrsm view {run} has printed no address")
            yield psutil.Process(server.pid), found[0], time.perf_counter() - started
        finally:
            server.terminate()


def processor_seconds(process: psutil.Process) -> float:
    """Return the processor time of a process."""
    times = process.cpu_times()
    return float(times.user + times.system)


def count_frames(page: Page, name: str, move: Callable[[], None]) -> None:
    """Print the time between frames during a movement."""
    page.evaluate(COUNT_FRAMES)
    move()
    frames = np.array(page.evaluate("() => { window.counting = false; return window.frames_; }"))
    half, most, last = np.quantile(frames, [0.5, 0.95, 1.0])
    print(
        f"  {name:10} {frames.size:4} frames, ms: {half:4.0f} median, {most:4.0f} of 95 %, {last:4.0f} longest"
    )


def move_maps(page: Page) -> None:
    """Zoom, move, point and zoom back on one of the maps."""
    box = page.locator("#map-semantic").bounding_box()
    if box is None:
        raise SystemExit("the run has no maps")
    x, y = box["x"] + 0.4 * box["width"], box["y"] + 0.45 * box["height"]
    page.mouse.click(x, y)

    def repeat(step: Callable[[int], None]) -> None:
        for at in range(STEPS):
            step(at)
            page.wait_for_timeout(PAUSE)

    def drag() -> None:
        page.mouse.move(x, y)
        page.mouse.down()
        repeat(lambda at: page.mouse.move(x - 2 * at, y - 1.5 * at))
        page.mouse.up()

    count_frames(page, "zooming in", lambda: repeat(lambda _: page.mouse.wheel(0, -60)))
    count_frames(page, "moving", drag)
    count_frames(page, "pointing", lambda: repeat(lambda at: page.mouse.move(x - 100 + 2 * at, y - 50 + at)))
    page.mouse.move(x, y)
    count_frames(page, "zooming out", lambda: repeat(lambda _: page.mouse.wheel(0, 60)))


def main() -> None:
    """Measure two visits."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("run", metavar="RUN")
    options.add_argument("--browser", default=shutil.which("chromium") or "chromium")
    chosen = options.parse_args()
    with sync_playwright() as driver, serving(chosen.run) as (process, address, seconds):
        print(f"address after {seconds:.2f} s, {processor_seconds(process):.2f} s of processor time")
        browser = driver.chromium.launch(executable_path=chosen.browser, headless=True, args=list(OPTIONS))
        for visit in ("first", "second"):
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            started = time.perf_counter()
            page.goto(address)
            page.wait_for_selector("html[data-ready]", state="attached")
            shown = time.perf_counter() - started
            print(
                f"{visit} visit: maps after {shown:.2f} s; server {processor_seconds(process):.2f} s in all"
            )
            move_maps(page)
            started = time.perf_counter()
            page.wait_for_function("() => document.querySelector('#maps-news').hidden", timeout=600_000)
            print(f"  complete {time.perf_counter() - started:.1f} s later")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()

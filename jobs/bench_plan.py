"""Measure how well `semrsm plan` predicts: plan and run one configuration after the other, and compare.

    python jobs/bench_plan.py [--only S=9 digits] [--scale 1.0]

Each plan is followed at once by its run, in processes of their own, as a machine that is shared changes from minute to
minute; its load is printed with both. The runs, some of 10 to 60 s on two cores: ready-made features of 9 and 49
tokens, neighbours, queries, and scenes of digits through a network; S = 9 and the digits also on a Ray started for it.
The last thing printed is the table of docs/performance.md. Ray must not be running here already.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import pandas as pd

FEATURES = {"z9": (6000, 9, 32), "z49": (1500, 49, 128), "queries": (800, 9, 32)}
"""Images, tokens and channels of the features that are made."""


TITLES = {
    "S=9": "6 000 images, S = 9",
    "S=9, ray": "the same on Ray",
    "S=49": "1 500 images, S = 49",
    "S=9, neighbours": "6 000 images, S = 9, neighbours",
    "S=9, queries": "800 queries, 6 000 images, S = 9",
    "digits": "1 200 scenes of digits, two layers",
    "digits, ray": "the same on Ray",
}
"""The configurations in docs/performance.md, at scale 1."""


def make_features(folder: Path, scale: float) -> None:
    """Write rectified random walks over the tokens: smooth and non-negative, as features after a ReLU are."""
    rng = np.random.default_rng(0)
    for name, (n_images, *sizes) in FEATURES.items():
        shape = (max(50, int(scale * n_images)), *sizes)
        np.save(folder / name, np.maximum(rng.normal(size=shape).cumsum(axis=1), 0.0).astype(np.float16) / 10)


def make_configurations(folder: Path, scale: float) -> dict[str, dict[str, Any]]:
    """Return the configurations by name."""

    def features(name: str) -> dict[str, Any]:
        return {"source": "features", "layers": {"z": str(folder / f"{name}.npy")}}

    digits = {
        "data": {"source": "digits", "n_images": max(50, int(scale * 1200))},
        "model": {"name": "test_resnet", "weights": "digits", "layers": ["layer3", "layer4"]},
    }
    return {
        "S=9": {"data": features("z9")},
        "S=9, ray": {"data": features("z9"), "engine": "ray"},
        "S=49": {"data": features("z49")},
        "S=9, neighbours": {"data": features("z9"), "output": "neighbours"},
        "S=9, queries": {"data": features("z9"), "queries": features("queries")},
        "digits": digits,
        "digits, ray": {**digits, "engine": "ray"},
    }


def call(*arguments: str) -> tuple[str, float]:
    """Run `semrsm` and return what it prints, and its seconds."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "semrsm_dist", *arguments], check=False, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"semrsm {' '.join(arguments)} ended with status {done.returncode}")
    return done.stdout, time.perf_counter() - started


def compare(folder: Path, configuration: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the table: what was planned, and what the run took."""
    run = folder / "run"
    file = folder / "run.yaml"
    file.write_text(json.dumps({"run": str(run), "engine": "local", **configuration}))
    loads = [os.getloadavg()[0]]
    plan = json.loads(call("plan", str(file), "--json")[0])
    _, seconds = call("run", str(file))
    loads.append(os.getloadavg()[0])
    sizes = [path.stat().st_size for path in run.rglob("*") if path.is_file()]
    shutil.rmtree(run)
    low, high = plan["seconds_interval"]
    return {
        "planned, s": plan["seconds"],
        "90 % interval": f"{low:.0f}-{high:.0f}",
        "run, s": seconds,
        "planned / run": plan["seconds"] / seconds,
        "planned, MB": plan["disk_bytes"] / 1e6,
        "run, MB": sum(sizes) / 1e6,
        "planned / run, disk": plan["disk_bytes"] / sum(sizes),
        "planned, files": sum(plan["files"].values()),
        "run, files": len(sizes),
        "limit": plan["limit"],
        "load": " ".join(f"{load:.1f}" for load in loads),
    }


def main() -> None:
    """Print a row for each configuration as it is done, then the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", help="names of configurations; all if not given")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of images")
    parser.add_argument("--folder", type=Path, help="for features and runs; a temporary one if not given")
    options = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_features(folder, options.scale)
        for title, configuration in make_configurations(folder, options.scale).items():
            if options.only is None or title in options.only:
                rows[title] = compare(folder, configuration)
                print(title, rows[title], flush=True)
    print(pd.DataFrame(rows).T.to_string(float_format=lambda value: f"{value:.3g}"), end="\n\n")
    print(format_table(rows))


def format_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of docs/performance.md, in Markdown."""
    lines = [
        "| run | planned, s | 90 % interval | took, s | planned / took | planned / written bytes |",
        "|---|---:|---|---:|---:|---:|",
    ]
    lines += [
        f"| {TITLES[name]} | {row['planned, s']:.1f} | {row['90 % interval'].replace('-', ' to ')} | "
        f"{row['run, s']:.1f} | {row['planned / run']:.2f} | {row['planned / run, disk']:.2f} |"
        for name, row in rows.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Extraction in a run: its memory, its devices, and images or models that are not what the run began with."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# In a process of its own: the peak of its memory before the run (libraries, network) and after it.
MEASURE = """
import json, sys
import semrsm_dist as srs
from semrsm_dist.config import parse_config

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

warm, wanted = json.load(sys.stdin)
srs.run(parse_config(warm))
before = peak()
srs.run(parse_config(wanted))
json.dump([before, peak()], sys.stdout)
"""


@pytest.mark.timeout(120)
def test_a_worker_holds_few_images_of_full_size(shop):
    size = (3000, 2000)
    first = shop.image("large/0.jpg", size=size).read_bytes()
    for k in range(1, 48):
        (shop.path / "large" / f"{k}.jpg").write_bytes(first)
    for k in range(2):
        shop.image(f"small/{k}.png", seed=k)
    options = {"matching": {"matcher": "greedy"}, "workers": 1}
    documents = [shop.of_images(name, shop.path / name, **options) for name in ("small", "large")]
    for document in documents:
        document["run"] += "-run"
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        input=json.dumps(documents),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)
    decoded = size[0] * size[1] * 3
    assert after - before < 16 * decoded  # four readers, and what decoding and resizing take; never 48

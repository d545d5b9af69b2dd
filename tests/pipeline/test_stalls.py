"""Tiles at which a matcher of another distribution fails or hangs: set aside and listed, and all others are done."""

from __future__ import annotations

import subprocess
import time

import numpy as np
import psutil
import pytest
import yaml

from tests.distributions import finding, install
from tests.pipeline.conftest import COMMAND

MATCHER = '''
import time
from semrsm_dist.matching.matchers.identity import Identity


class Moody(Identity):
    """Fails at pairs of image 7 and 13, and hangs at pairs of image 3 and 4."""

    name = "moody"

    def match_prepared(self, rows, r, columns, c):
        pair = {round(float(panel.raw[k][0, 0])) for panel, k in ((rows, r), (columns, c))}
        if pair == {7, 13}:
            raise ValueError("out of the question")
        while pair == {3, 4}:
            time.sleep(0.1)
        return super().match_prepared(rows, r, columns, c)
'''


@pytest.fixture
def environment(tmp_path):
    site = tmp_path / "site"
    install(site, "moody", "[semrsm_dist.matchers]\nmoody = moody:Moody\n", MATCHER)
    return finding(site) | {"SEMRSM_TEST": str(tmp_path)}


def living(mark):
    """Return the processes that were started with this variable, the test's own aside."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SEMRSM_TEST") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def test_tiles_that_fail_or_hang_are_set_aside_and_listed(tmp_path, environment):
    z = np.random.default_rng(0).normal(size=(20, 4, 3))
    z[:, 0, 0] = np.arange(20)  # an image knows which it is
    np.save(tmp_path / "z.npy", z.astype(np.float32))
    document = {
        "run": str(tmp_path / "run"),
        "data": {"source": "features", "layers": {"last": str(tmp_path / "z.npy")}},
        "matching": {"matcher": "moody", "tile": 5, "stall_seconds": 2, "attempts": 3},
        "workers": 2,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [*COMMAND, "run", str(tmp_path / "config.yaml")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    said = done.stderr[done.stderr.index("semrsm: ") :]
    assert said.startswith("semrsm: Tiles that failed and were set aside: 2; all others are kept")
    assert "last/1.2: ValueError: out of the question" in said
    assert "last/0.0: it hangs: last/0.0" in said
    assert "no result for" in said
    tiles = {
        path.parent.name + "." + path.name
        for path in (tmp_path / "run/tiles.zarr/last/tiles/c/0").glob("*/*")
    }
    assert tiles == {f"{row}.{column}" for row in range(4) for column in range(row, 4)} - {"0.0", "1.2"}
    assert "it is in match_prepared (moody.py:" in said  # which sleeps
    deadline = time.monotonic() + 60
    while (left := living(str(tmp_path))) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []

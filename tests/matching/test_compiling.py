"""Compiling works wherever the package is installed, and never runs old code."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
from numba.core import caching

from semrsm_dist.matching import bidding, jit
from semrsm_dist.matching.registry import make_matcher


def add_one(x):
    return x + 1


def test_functions_compile_where_nothing_can_be_written(monkeypatch):
    def refuse(self):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(caching._CacheLocator, "ensure_cache_path", refuse)
    assert jit.compiled(add_one)(1) == 2


def test_a_change_in_any_file_of_a_room_invalidates_cached_code(tmp_path):
    room = Path(bidding.__file__).parent
    assert bidding.run_auction._cache._cache_file._source_stamp == jit._sources_digest(room)
    (tmp_path / "bidding.py").write_text("changed")
    assert jit._sources_digest(tmp_path) != jit._sources_digest(room)


def test_matching_lets_other_threads_run():
    matcher = make_matcher("auction", tolerance=0.0)
    matcher.compile()
    z = np.cumsum(np.random.default_rng(0).normal(size=(2, 2600, 4)), axis=1).astype(np.float32)
    rows, columns = matcher.prepare(z[:1]), matcher.prepare(z[1:])
    done = threading.Event()
    spent = []

    def solve():
        start = time.perf_counter()
        matcher.solve_tile(rows, columns)
        spent.append(time.perf_counter() - start)
        done.set()

    thread = threading.Thread(target=solve)
    longest, last = 0.0, time.perf_counter()
    thread.start()
    while not done.is_set():
        time.sleep(0.0005)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    thread.join()
    # Holding the interpreter lock, the exact finish would stop this thread for most of the time.
    assert longest < 0.4 * spent[0]

"""Compiling works wherever the package is installed, and never runs old code."""

from __future__ import annotations

import fcntl
import importlib
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core import caching

import semrsm_dist
from semrsm_dist.matching.compiled import cache, jit
from semrsm_dist.matching.matchers import MATCHERS, make_matcher


def add_one(x):
    return x + 1


def test_functions_compile_where_nothing_can_be_written(monkeypatch, caplog):
    def refuse(self):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(caching._CacheLocator, "ensure_cache_path", refuse)
    jit._warn_once.cache_clear()
    assert jit.compiled(add_one)(1) == 2
    assert jit.compiled(add_one)(2) == 3
    [record] = caplog.records
    assert "NUMBA_CACHE_DIR" in record.getMessage()


def python(code, folder, **environment):
    """Return what a process prints on both streams."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(semrsm_dist.__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
        check=True,
    )


MATCH = (
    "import numpy as np, semrsm_dist as srs; print(srs.match(np.eye(3), np.eye(3), matcher='identity').value)"
)


def test_compiling_is_announced_once_and_damaged_code_is_compiled_again(tmp_path):
    first = python(MATCH, tmp_path, NUMBA_CACHE_DIR=str(tmp_path))
    assert first.stdout == "3.0\n"
    assert first.stderr.count("compiling") == 1
    assert python(MATCH, tmp_path, NUMBA_CACHE_DIR=str(tmp_path)).stderr == ""
    files = sorted(tmp_path.rglob("*.nbc"))
    assert len(files) > 1
    for count, file in enumerate(files):
        file.write_bytes(file.read_bytes()[: count * 40])
    again = python(MATCH, tmp_path, NUMBA_CACHE_DIR=str(tmp_path))
    assert again.stdout == "3.0\n"
    assert python(MATCH, tmp_path, NUMBA_CACHE_DIR=str(tmp_path)).stderr == ""


def test_a_numba_without_what_the_cache_needs_still_matches(tmp_path):
    change = (
        "import sys, types, numba; numba.njit(lambda: 1)();"  # for itself it has what it needs
        "sys.modules['numba.core.compiler_lock'] = types.ModuleType('empty')"
    )
    done = python(f"{change}; {MATCH}", tmp_path, NUMBA_CACHE_DIR=str(tmp_path))
    assert done.stdout == "3.0\n"
    assert done.stderr.count("caches in a way that this package does not know") == 1


def test_a_change_in_any_file_of_the_room_invalidates_cached_code(tmp_path):
    package = Path(semrsm_dist.__file__).parent
    copy = tmp_path / "semrsm_dist"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    # `inner_product` calls what lies in another folder.
    code = (
        "import numpy as np; from semrsm_dist.matching.bounds import inner_product;"
        "inner_product(np.ones(3), np.ones(3)); print(sum(inner_product.stats.cache_misses.values()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": ""}

    def compilations():
        run = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return int(run.stdout)

    assert compilations() == 1
    assert compilations() == 0
    sums = copy / "matching" / "compiled" / "lane_sums.py"
    sums.write_text(sums.read_text() + "\n# changed\n")
    assert compilations() == 1


SOURCE = """
from typing import NamedTuple
from semrsm_dist.matching.compiled.jit import compiled

class {name}(NamedTuple):
    value: float

@compiled
def double(pair):
    return 2.0 * pair.value

answer = double({name}(21.0))
"""


@pytest.mark.parametrize("torn", [False, True])
def test_cached_code_of_types_that_are_gone_is_compiled_anew(tmp_path, monkeypatch, torn):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")  # beside the source, whatever the environment says
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("Before", "After"):
        (tmp_path / "compiled_room.py").write_text(SOURCE.format(name=name))
        cache._sources_digest.cache_clear()
        sys.modules.pop("compiled_room", None)
        importlib.invalidate_caches()
        module = importlib.import_module("compiled_room")
        assert module.answer == 42.0
        [index] = (tmp_path / "__pycache__").glob("*.nbi")
        if torn:
            index.write_bytes(index.read_bytes()[:-20])
    del sys.modules["compiled_room"]
    cache._sources_digest.cache_clear()


@pytest.mark.parametrize("is_writable", [True, False])
def test_pip_can_remove_all_of_an_installed_package(tmp_path, monkeypatch, is_writable):
    site, home = tmp_path / "site-packages", tmp_path / "home"
    site.mkdir()
    (site / "installed_room.py").write_text(SOURCE.format(name="Pair"))
    if not is_writable:
        home.touch()  # root may write wherever there is a folder
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.syspath_prepend(site)
    assert importlib.import_module("installed_room").answer == 42.0
    del sys.modules["installed_room"]
    kept, beside = ({path.suffix for path in folder.rglob("*.nb?")} for folder in (home, site))
    assert (kept, beside) == (({".nbi", ".nbc"}, set()) if is_writable else (set(), {".nbi", ".nbc"}))


TOGETHER = """
import sys
sys.path.insert(0, {folder!r})
from together import inner, outer
print("ready", flush=True)
sys.stdin.readline()
assert outer(6.0) == 13.0
print([sum(function.stats.cache_misses.values()) for function in (inner, outer)])
"""


def test_of_processes_that_start_together_one_compiles(tmp_path):
    (tmp_path / "together.py").write_text(
        "from semrsm_dist.matching.compiled.jit import compiled\n"
        "@compiled\ndef inner(x):\n    return x + x\n"
        "@compiled\ndef outer(x):\n    return inner(x) + 1.0\n"
    )
    script = TOGETHER.format(folder=str(tmp_path))
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True) for _ in range(3)
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        compiled = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    # Who compiles the outer one compiles the inner one with it; the others find both.
    assert sorted(compiled) == ["[0, 0]\n", "[0, 0]\n", "[1, 1]\n"]


def test_a_process_that_never_finishes_compiling_does_not_stop_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "PATIENCE", 0.2)
    lock = tmp_path / "stopped.lock"
    with lock.open("w") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        started = time.perf_counter()
        assert cache._compile_in_turn(str.upper, lock, "compiled") == "COMPILED"
        assert time.perf_counter() - started >= 0.2


def test_a_function_that_needs_itself_for_other_types_does_not_wait_for_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "PATIENCE", 20.0)
    waits = []
    wait_for = cache._wait_for
    monkeypatch.setattr(cache, "_wait_for", lambda *arguments: (waits.append(1), wait_for(*arguments)))
    lock = tmp_path / "recursive.lock"
    assert (
        cache._compile_in_turn(lambda word: cache._compile_in_turn(str.upper, lock, word), lock, "x") == "X"
    )
    assert len(waits) == 1


def test_a_function_that_cannot_be_compiled_gives_its_turn_back(tmp_path):
    lock = tmp_path / "failing.lock"
    with pytest.raises(ZeroDivisionError):
        cache._compile_in_turn(lambda _: 1 / 0, lock, "")
    with lock.open("a") as free:
        fcntl.flock(free, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_matching_lets_other_threads_run():
    matcher = make_matcher("auction", tolerance=0.0)
    matcher.compile()
    z = np.cumsum(np.random.default_rng(0).normal(size=(2, 2600, 4)), axis=1).astype(np.float32)
    rows, columns = matcher.prepare(z[:1]), matcher.prepare(z[1:])

    def longest_stop():
        """Return the longest time that this thread was kept waiting, as a share of the time that matching took."""
        spent = []

        def solve():
            start = time.perf_counter()
            matcher.solve_tile(rows, columns)
            spent.append(time.perf_counter() - start)

        thread = threading.Thread(target=solve)
        longest, last = 0.0, time.perf_counter()
        thread.start()
        while not spent:
            time.sleep(0.0005)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        thread.join()
        return longest / spent[0]

    # Holding the interpreter lock, the exact finish would stop this thread for most of the time, and every time; what
    # else runs on the machine may stop it once.
    assert any(longest_stop() < 0.4 for _ in range(3))


# In a process of its own: here other tests have called everything in every way.
CALL_EVERY_MATCHER = """
import gc, numba, numpy as np
from semrsm_dist.matching.matchers import MATCHERS, make_matcher

def count():
    functions = [item for item in gc.get_objects() if isinstance(item, numba.core.dispatcher.Dispatcher)]
    return {f"{each.py_func.__module__}.{each.py_func.__name__}": len(each.signatures) for each in functions}

for name in MATCHERS.names():
    matcher = make_matcher(name)
    matcher.compile()
    before = count()
    for n_tokens in (1, 9, 16, 48):
        panel = matcher.prepare(np.random.default_rng(0).normal(size=(2, n_tokens, 8)).astype(np.float32))
        matcher.solve_tile(panel, panel)
    after = count()
    print(name, sorted(function for function in after if after[function] > before.get(function, 0)))
"""


def test_after_compiling_no_number_of_tokens_compiles_anything_more():
    done = subprocess.run(
        [sys.executable, "-c", CALL_EVERY_MATCHER], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"{name} []" for name in MATCHERS.names()]

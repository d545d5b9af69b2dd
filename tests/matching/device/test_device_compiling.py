"""Compiling kernels where there is no GPU, and keeping what is compiled."""

import concurrent.futures
import hashlib
import itertools
import logging
import threading

import pytest

from semrsm_dist.matching.device import source
from semrsm_dist.matching.device.compiling import cache_folder, cached_kernels, compile_kernels, fetch_or_make

pytest.importorskip("cuda.bindings", reason="needs the extra cuda")

# Every form, and every architecture: what depends on one does not depend on the other.
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
FORMS = list(zip(source.CAPACITIES, itertools.cycle(ARCHITECTURES), strict=False))


@pytest.mark.slow
@pytest.mark.parametrize(("capacity", "arch"), FORMS)
def test_every_form_compiles_without_a_gpu(capacity, arch):
    code = compile_kernels(capacity, arch)
    assert code.startswith(b"\x7fELF")
    for kernel in (b"multiply_panels", b"match_pairs", b"sum_values_of_float32", b"sum_values_of_float64"):
        assert kernel in code
    assert source.auction_bytes(capacity) <= source.MOST_SHARED_BYTES


@pytest.mark.slow
def test_kernels_are_compiled_once_for_a_machine(tmp_path, caplog):
    caplog.set_level(logging.INFO, "semrsm_dist")
    first = cached_kernels(256, "sm_90", tmp_path)
    assert first.startswith(b"\x7fELF")
    assert cached_kernels(256, "sm_90", tmp_path) == first
    assert caplog.text.count("compiling the kernels") == 1
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"short", b"\0" * 100, None])
def test_damaged_files_are_made_again(tmp_path, damage):
    make = b"machine code".upper
    assert fetch_or_make("key", make, tmp_path) == b"MACHINE CODE"
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"?" if damage is None else damage)
    assert fetch_or_make("key", make, tmp_path) == b"MACHINE CODE"
    assert fetch_or_make("key", lambda: pytest.fail("it is there"), tmp_path) == b"MACHINE CODE"


def test_another_key_is_another_file(tmp_path):
    assert [fetch_or_make(key, key.encode, tmp_path) for key in ("a", "b", "a")] == [b"a", b"b", b"a"]
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{hashlib.sha256(key).hexdigest()}.cubin" for key in (b"a", b"b")
    }


def test_those_who_compile_at_the_same_time_do_no_harm(tmp_path):
    together = threading.Barrier(8)

    def make():
        together.wait(10)
        return b"x" * 100_000

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: fetch_or_make("key", make, tmp_path), range(8)))
    assert set(found) == {b"x" * 100_000}
    assert len(list(tmp_path.iterdir())) == 1


def test_where_nothing_can_be_kept_it_is_made_each_time(tmp_path, caplog):
    folder = tmp_path / "file" / "kernels"
    folder.parent.write_text("no folder")
    assert fetch_or_make("key", lambda: b"code", folder) == b"code"
    assert "compiled kernels cannot be kept" in caplog.text


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "os.fdopen", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    assert fetch_or_make("key", lambda: b"code", tmp_path) == b"code"
    assert list(tmp_path.iterdir()) == []


def test_the_cache_is_where_the_user_wants_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "semrsm-dist" / "kernels"

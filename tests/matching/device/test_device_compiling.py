"""Compiling kernels where there is no GPU, and keeping what is compiled."""

import concurrent.futures
import hashlib
import itertools
import logging
import threading

import pytest

from semrsm_dist.matching.device import source
from semrsm_dist.matching.device.compiling import cache_folder, cached_kernels, compile_kernels, fetch_or_make
from semrsm_dist.matching.device.forms import (
    CAPACITIES,
    WARPS,
    Form,
    candidates,
    form_of,
    known_forms,
    read_forms,
    write_forms,
)

pytest.importorskip("cuda.bindings", reason="needs the extra cuda")

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
# The table, and of the forms that it may come to have, every number of warps and every place of residuals. Each for one
# architecture: what depends on the form does not depend on that.
FORMS = [
    *known_forms(),
    Form(128, 2, 128),
    Form(256, 1, 128),
    Form(256, 2, 0),
    Form(256, 4, 64),
    Form(512, 8, 32),
]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_products_compile_without_a_gpu(arch):
    code = compile_kernels(None, arch)
    assert code.startswith(b"\x7fELF")
    for kernel in (
        b"multiply_panels",
        b"split_panel",
        b"multiply_halves",
        b"sum_values_of_float32",
        b"sum_values_of_float64",
    ):
        assert kernel in code


@pytest.mark.slow
@pytest.mark.parametrize(("form", "arch"), list(zip(FORMS, itertools.cycle(ARCHITECTURES), strict=False)))
def test_auctions_compile_in_every_form_without_a_gpu(form, arch):
    code = compile_kernels(form, arch)
    assert code.startswith(b"\x7fELF")
    assert b"match_pairs" in code


def test_the_table_has_a_form_for_each_capacity_that_could_have_been_measured():
    assert tuple(form.capacity for form in known_forms()) == CAPACITIES
    assert all(form in candidates(form.capacity) for form in known_forms())
    assert [form_of(n_tokens).capacity for n_tokens in (1, 64, 65, 4096)] == [64, 64, 128, 4096]


def test_every_form_fits_into_the_shared_memory_that_every_gpu_has():
    forms = [form for capacity in CAPACITIES for form in candidates(capacity)]
    assert {form.warps for form in forms} == set(WARPS)
    assert all(source.auction_bytes(form, form.capacity) <= source.MOST_SHARED_BYTES for form in forms)


def test_a_table_that_is_written_is_read_back(tmp_path):
    forms = tuple(next(candidates(capacity)) for capacity in CAPACITIES)
    write_forms(forms, 'a "GPU"', tmp_path / "forms.json")
    assert read_forms(tmp_path / "forms.json") == forms


@pytest.mark.slow
def test_kernels_are_compiled_once_for_a_machine(tmp_path, caplog):
    caplog.set_level(logging.INFO, "semrsm_dist")
    first = cached_kernels(None, "sm_90", tmp_path)
    assert first.startswith(b"\x7fELF")
    assert cached_kernels(None, "sm_90", tmp_path) == first
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


def test_a_user_without_a_home_compiles_each_time(monkeypatch, caplog):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    monkeypatch.setattr("semrsm_dist.matching.device.compiling.compile_kernels", lambda form, arch: b"code")
    assert cached_kernels(None, "sm_90") == b"code"
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

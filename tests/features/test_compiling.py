"""Networks compiled by `torch.compile`: the features of the network, and what is said where that cannot be."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from semrsm_dist.errors import ConfigError, WorkerLostError
from semrsm_dist.features import extractor as extractor_module
from semrsm_dist.features.extractor import Extractor
from semrsm_dist.features.models import ModelSpec, adopt_module

SPEC = ModelSpec("test_vit", "random", 32, seed=2)


def pictures(n):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(n)]


def extractor(*layers, compiled=True):
    return Extractor(SPEC, layers or ("blocks.0",), device="cpu", batch_size=4, compiled=compiled)


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A C++ compiler, and an empty cache."""
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs g++ here")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    pytest.importorskip("torch._inductor.config")
    if not hasattr(torch._inductor.config, "deterministic"):
        pytest.skip("this torch compiles other code each time")


def vit(**options):
    return extractor(**options)


def convolution(**options):
    """Return an extractor whose layer is read by a hook."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, kernel_size=16, stride=16), torch.nn.ReLU())

    def transform(image):
        return torch.from_numpy(np.array(image.resize((32, 32)), np.float32)).permute(2, 0, 1) / 255

    model = adopt_module(module.eval(), transform=transform)
    return Extractor(model, ["1"], device="cpu", batch_size=4, **options)


@pytest.mark.slow
@pytest.mark.parametrize("make", [vit, convolution])
def test_a_compiled_network_has_its_own_features_whatever_the_batch(compiler, make):
    expected = make(compiled=False)(pictures(5))
    extract = make(compiled=True)
    extract.warm_up()
    found, few = extract(pictures(5)), extract(pictures(2))
    for name, z in expected.items():
        np.testing.assert_allclose(found[name], z, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(few[name], found[name][:2])  # filled up, and so compiled once


@pytest.mark.slow
def test_without_a_compiler_the_remedy_is_named(compiler, monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/no/such/compiler",))
    with pytest.raises(ConfigError, match=r"'test_vit' could not be compiled \(.*model\.compile: false"):
        extractor().warm_up()


@pytest.fixture
def compile_as(monkeypatch):
    """Let a function take the place of the compiler."""

    def compile_as(change):
        monkeypatch.setattr(extractor_module, "compile_network", lambda read, _device: change(read))

    return compile_as


def test_other_features_than_those_of_the_network_are_refused(compile_as):
    compile_as(lambda read: lambda batch: {name: 1.01 * z for name, z in read(batch).items()})
    with pytest.raises(ConfigError, match=r"other features of layer 'blocks\.0' .*0\.01 of their norm"):
        extractor().warm_up()


def test_a_gpu_without_room_for_one_image_is_of_no_use(compile_as):
    def full(_read):
        def read(_batch):
            raise torch.OutOfMemoryError("CUDA out of memory")

        return read

    compile_as(full)
    with pytest.raises(WorkerLostError, match="not enough free memory for one image"):
        extractor().warm_up()


def test_a_torch_that_compiles_other_code_each_time_is_refused(monkeypatch):
    config = pytest.importorskip("torch._inductor.config")
    if hasattr(config, "deterministic"):
        monkeypatch.setattr(torch._inductor, "config", object())
    with pytest.raises(ConfigError, match=r"differ from session to session.*use a later torch"):
        extractor()

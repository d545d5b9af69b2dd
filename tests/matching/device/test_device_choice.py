"""`device: cpu | cuda | auto`: what is chosen, what is recorded, and what is said where CUDA cannot be used."""

import importlib.util
import logging

import numpy as np
import pytest

import semrsm_dist as srs
from semrsm_dist.errors import ConfigError
from semrsm_dist.matching.device import cuda
from semrsm_dist.matching.matchers import make_matcher
from semrsm_dist.matching.matchers.auction import Auction

Z = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def no_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_the_cpu_is_the_default_and_recorded():
    matcher = make_matcher("auction")
    assert type(matcher) is Auction
    assert matcher.parameters == {"tolerance": 1e-3, "device": "cpu"}
    assert matcher.gpus == 0


def test_cuda_is_recorded_and_takes_a_gpu():
    pytest.importorskip("cuda.bindings", reason="needs the extra cuda")
    matcher = make_matcher("auction", device="cuda", tolerance=1e-2)
    assert matcher.parameters == {"tolerance": 1e-2, "device": "cuda"}
    assert (matcher.name, matcher.gpus) == ("auction", 0.25)


def test_auto_is_the_cpu_without_a_gpu_and_says_so(no_gpu, caplog):
    pytest.importorskip("cuda.bindings", reason="needs the extra cuda")
    caplog.set_level(logging.INFO, "semrsm_dist")
    matcher = make_matcher("auction", device="auto")
    assert type(matcher) is Auction
    assert matcher.parameters["device"] == "cpu"
    assert "device: auto: the CPU matches, as this machine has no NVIDIA GPU" in caplog.text


def test_auto_is_the_cpu_without_the_package_and_says_so(no_package, caplog):
    caplog.set_level(logging.INFO, "semrsm_dist")
    assert make_matcher("auction", device="auto").parameters["device"] == "cpu"
    assert "the package cuda-bindings is not installed" in caplog.text


def test_auto_is_the_cpu_where_there_is_no_driver_and_says_so(monkeypatch, tmp_path, caplog):
    pytest.importorskip("cuda.bindings", reason="needs the extra cuda")
    if not cuda.why_no_gpu():
        pytest.skip("this machine has a driver")
    (tmp_path / "nvidia0").touch()  # a GPU, but nothing to use it by
    monkeypatch.setattr("semrsm_dist.machine.DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    caplog.set_level(logging.INFO, "semrsm_dist")
    assert make_matcher("auction", device="auto").parameters["device"] == "cpu"
    assert "GPU 0 cannot be used" in caplog.text
    with pytest.raises(ConfigError, match=r"GPU 0 cannot be used .*: check nvidia-smi .* or use device: cpu"):
        srs.match(*Z[:2], device="cuda")


def test_cuda_without_the_package_is_refused(no_package):
    with pytest.raises(
        ConfigError, match=r"cuda-bindings is not installed \(pip install 'semrsm-dist\[cuda\]'"
    ):
        srs.match(*Z[:2], device="cuda")


@pytest.mark.parametrize(
    "call", [lambda: srs.match(*Z[:2], device="cuda"), lambda: srs.similarity_matrix(Z, device="cuda")]
)
def test_cuda_without_a_gpu_is_refused(no_gpu, call):
    pytest.importorskip("cuda.bindings", reason="needs the extra cuda")
    with pytest.raises(ConfigError, match="needs 1 GPU, but this machine has 0"):
        call()


def test_other_devices_are_refused():
    with pytest.raises(ConfigError, match=r"device.*'cpu', 'cuda' or 'auto'"):
        srs.match(*Z[:2], device="gpu")


def test_a_matcher_whose_device_was_never_resolved_is_refused():
    with pytest.raises(ConfigError, match="make_matcher"):
        Auction(device="cuda").match(*Z[:2])

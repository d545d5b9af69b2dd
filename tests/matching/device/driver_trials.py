"""Trials of a GPU's faults with the driver of `driver_on_cpu`: `python -m ... FOLDER NAME...`.

Each has a process of its own, forked from one that has loaded the package.
"""

import functools
import hashlib
import importlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

os.environ["CUDA_VISIBLE_DEVICES"] = "0,1"

import numpy as np
from cuda.bindings import driver

import semrsm_dist as srs
from semrsm_dist.errors import UnusableGpuError, WorkerLostError, WorkError
from semrsm_dist.machine import set_own_gpu
from semrsm_dist.matching.device import cuda
from tests.matching.device import driver_on_cpu

OUT_OF_MEMORY, ILLEGAL_ADDRESS, UNCORRECTABLE = 2, 700, 214


def features(n=14, n_tokens=9):
    return np.random.default_rng(0).normal(size=(n, n_tokens, 5)).astype(np.float32).cumsum(axis=1)


def run(folder, name, matching=MappingProxyType({"device": "cuda"}), output=MappingProxyType({})):
    """Run on the GPUs; return the hashes of all tiles."""
    np.save(folder / "z.npy", features())
    document = {
        "run": str(folder / name),
        "data": {"source": "features", "layers": {"last": str(folder / "z.npy")}},
        "matching": {"tile": 4, **matching},
        "output": dict(output),
    }
    srs.run(document)
    tiles = sorted(path for path in (folder / name / "tiles.zarr").rglob("c/*/*/*") if path.is_file())
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in tiles]


def neighbours(folder):
    """Neighbours are the CPU's to the last bit, also where a GPU fails meanwhile."""
    driver_on_cpu.set_up(devices=2)
    driver_on_cpu.fail("cuEventSynchronize", after=20, status=UNCORRECTABLE, device=1)
    found = []
    for device in ("cpu", "cuda"):
        run(folder, device, {"device": device}, {"neighbours": 3})
        found.append(srs.open_run(folder / device).neighbours("last"))
    for name in found[0].data_vars:
        np.testing.assert_array_equal(found[1][name].values, found[0][name].values)


def memory(folder):
    """A GPU without enough memory matches in smaller blocks, or says so; nothing is kept when all is done."""
    z, gpu = features(), cuda.own_device()
    whole = srs.similarity_matrix(z, device="cuda", workers=1)
    for after in range(0, 12, 3):
        gpu.release_unused()
        driver_on_cpu.fail("cuMemAlloc", after=after, status=OUT_OF_MEMORY)
        np.testing.assert_array_equal(srs.similarity_matrix(z, device="cuda", workers=1), whole)
    driver_on_cpu.set_up(n_bytes=2**17)
    gpu.release_unused()
    np.testing.assert_array_equal(srs.similarity_matrix(z, device="cuda", workers=1), whole)
    driver_on_cpu.set_up(n_bytes=2**12)
    try:
        srs.match(z[0], z[1], device="cuda")
    except WorkError as error:
        assert "GPU 0 (CPU in place of a GPU) has too little free memory" in str(error)
    else:
        raise AssertionError("there is no room for a pair")


def beside_torch(folder):
    """PyTorch finds the GPU that it had chosen, and gives back what it only keeps; a missing compiler is named."""
    driver_on_cpu.set_up(devices=2)
    set_own_gpu(1)
    cuda.own_device().free_bytes()
    _, chosen = driver.cuCtxGetCurrent()
    set_own_gpu(0)
    z, gpu = features(), cuda.own_device()
    expected = srs.match(z[0], z[1], device="cuda").value
    assert int(driver.cuCtxGetCurrent()[1]) == int(chosen)

    gpu.release_unused()
    driver_on_cpu.set_up(devices=2, n_bytes=0)
    with ThreadPoolExecutor(1) as pool:  # for another worker there is no GPU
        assert (
            "GPU 0 (CPU in place of a GPU) has too little free memory"
            in pool.submit(cuda.why_no_gpu).result()
        )
    give_back = functools.partial(driver_on_cpu.set_up, devices=2)
    sys.modules["torch"] = SimpleNamespace(cuda=SimpleNamespace(is_initialized=bool, empty_cache=give_back))
    try:
        srs.match(z[0], z[1], device="cuda")
    except WorkError as error:
        assert "too little free memory" in str(error)
    else:
        raise AssertionError("PyTorch has not used the GPU, and there is no memory")
    sys.modules["torch"].cuda.is_initialized = lambda: True
    assert srs.match(z[0], z[1], device="cuda").value == expected

    def fail(*_):
        raise RuntimeError("Failure finding libnvrtc.so")

    cuda.compiler_version = fail
    try:
        cuda.CudaDevice(1)
    except UnusableGpuError as error:
        assert "cannot be compiled for GPU 1 (CPU in place of a GPU) (Failure finding libnvrtc.so)" in str(
            error
        )
    else:
        raise AssertionError("there is no compiler")


def one_of_two(folder):
    """When one GPU fails, the other does what is left, with the same bytes, and no tile is given up."""
    driver_on_cpu.set_up(devices=2)
    whole = run(folder, "whole")
    driver_on_cpu.fail("cuEventSynchronize", after=2, status=UNCORRECTABLE, device=1)
    assert run(folder, "run") == whole


def the_only_one(folder):
    """When the last GPU fails, the run ends and says so; the same command goes on from there on a GPU that works."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "0"
    whole = run(folder, "whole")
    driver_on_cpu.fail("cuLaunchKernel", after=9, status=ILLEGAL_ADDRESS)
    try:
        run(folder, "run")
    except WorkError as error:
        assert "no GPU is left, and what is done is kept: GPU 0" in str(error)
        assert "CUDA_ERROR_ILLEGAL_ADDRESS" in str(error)
        assert not isinstance(error, WorkerLostError)
    else:
        raise AssertionError("its GPU had failed")
    done = list((folder / "run" / "tiles.zarr").rglob("c/*/*/*"))
    assert 0 < len(done) < len(whole)
    driver_on_cpu.fail("cuLaunchKernel", after=10**6, status=ILLEGAL_ADDRESS)
    assert run(folder, "run") == whole


if __name__ == "__main__":
    for part in ("matching.matchers.auction", "pipeline.driver", "results.run"):
        importlib.import_module(f"semrsm_dist.{part}")
    for name in sys.argv[2:]:
        place = Path(sys.argv[1]) / name
        place.mkdir()
        child = os.fork()
        if not child:
            globals()[name](place)
            sys.exit()
        if os.waitpid(child, 0)[1] != 0:
            (place / "failed").touch()

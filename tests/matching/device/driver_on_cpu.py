"""NVIDIA's driver without a GPU: `cuda.bindings` calls it, and kernels run thread by thread on the CPU.

`environment` builds the driver; a process that is started with it and calls `install` (as a plugin of pytest, `-p
tests.matching.device.driver_on_cpu`, does by itself) has a GPU as far as the package can see.
"""

import ctypes
import os
import subprocess
from pathlib import Path

FOLDER = "SEMRSM_DRIVER_ON_CPU"
HERE = Path(__file__).parent


def environment(folder):
    """Build the driver and return the environment of a process that is to have it."""
    command = ("g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
    subprocess.run([*command, "-o", folder / "libcuda.so.1", HERE / "driver_on_cpu.cpp", "-ldl"], check=True)
    for number in range(2):
        (folder / f"nvidia{number}").touch()
    root = str(HERE.parents[2])
    changes = {FOLDER: str(folder), "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": root}
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "0", **changes}


def install():
    """Let the package find the GPU, and kernels that it can run."""
    from semrsm_dist import machine
    from semrsm_dist.matching.device import compiling, cuda
    from tests.matching.device.conftest import EmulatedDevice

    folder = Path(os.environ[FOLDER])
    emulated = EmulatedDevice(folder)
    machine.DEVICES = folder

    def kernels(form, arch):
        assert arch == "sm_90"
        emulated.program(form)
        return f"{emulated.library(form)}\0".encode()

    cuda.cached_kernels = kernels
    compiling.compile_kernels = kernels  # NVRTC looks for more in a driver than there is here


def set_up(*, devices=1, n_bytes=2**30):
    """Let the driver have so many GPUs, all with one memory."""
    ctypes.CDLL("libcuda.so.1").driver_on_cpu_set_up(ctypes.c_int(devices), ctypes.c_size_t(n_bytes))


def fail(function, *, after=0, status, device=0):
    """Let calls of a driver's function fail on a device: one for lack of memory (2), all with any other status."""
    ctypes.CDLL("libcuda.so.1").driver_on_cpu_fail(function.encode(), after, status, device)


if FOLDER in os.environ:
    install()

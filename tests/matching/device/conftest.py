"""A device that runs the kernels on the CPU, thread by thread, for tests where there is no GPU."""

import ctypes
import functools
import subprocess
from pathlib import Path

import numpy as np
import pytest

from semrsm_dist.matching.device import cuda
from semrsm_dist.matching.device.source import kernel_source

HERE = Path(__file__).parent
COMPILER = (
    "g++",
    "-std=c++17",
    "-O2",
    "-frounding-math",
    "-ffp-contract=off",
    "-U_FORTIFY_SOURCE",
    "-shared",
    "-fPIC",
)


class EmulatedDevice:
    """A `Device` whose memory is arrays and whose kernels are compiled as C++ for this CPU."""

    def __init__(self, folder):
        self.folder = folder
        self.auctions = 3
        self.free = 2**30
        self.program = functools.cache(self._compile)

    def _compile(self, capacity):
        source, program = self.folder / f"{capacity}.cpp", self.folder / f"{capacity}.so"
        parts = (
            (HERE / "cuda_on_cpu.h").read_text(),
            kernel_source(),
            (HERE / "cuda_on_cpu.cpp").read_text(),
        )
        source.write_text("\n".join(parts))
        subprocess.run([*COMPILER, f"-DCAPACITY={capacity}", "-o", program, source], check=True)
        return ctypes.CDLL(str(program))

    def free_bytes(self):
        return self.free

    def send(self, array):
        assert array.flags.c_contiguous
        return self._aligned(array.view(np.uint8).ravel() if array.ndim else array)

    def reserve(self, n_bytes):
        return self._aligned(np.zeros(n_bytes, np.uint8))

    def fetch(self, memory, shape, dtype):
        return memory.view(dtype).reshape(shape).copy()

    def launch(self, kernel, capacity, launch, *arguments):
        assert launch.shared_bytes <= 48 * 1024
        values = [
            argument.ctypes.data_as(ctypes.c_void_p) if isinstance(argument, np.ndarray) else argument
            for argument in arguments
        ]
        held = [value if isinstance(value, ctypes.c_void_p) else np.array(value) for value in values]
        addresses = (ctypes.c_void_p * len(held))(
            *(ctypes.addressof(one) if isinstance(one, ctypes.c_void_p) else one.ctypes.data for one in held)
        )
        failed = self.program(capacity).run_kernel(kernel.encode(), *launch.blocks, launch.threads, addresses)
        if failed:
            raise RuntimeError(f"{kernel}: threads wait at different places, or for one that has ended")

    @staticmethod
    def _aligned(content):
        """Return a copy that starts where a GPU's memory would, at a multiple of 256."""
        buffer = np.empty(content.size + 256, np.uint8)
        start = -buffer.ctypes.data % 256
        buffer[start : start + content.size] = content
        return buffer[start : start + content.size]


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """A device that needs no GPU."""
    return EmulatedDevice(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module", params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, emulated):
    """Either device, where `DeviceAuction` finds it."""
    if request.param == "cuda":
        reason = cuda.why_no_gpu()
        if reason:
            pytest.skip(reason)
        yield cuda.own_device()
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "own_device", lambda: emulated)
        yield emulated

"""A device that runs the kernels on the CPU, thread by thread, for tests where there is no GPU."""

import ctypes
import functools
import shutil
import subprocess
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

from semrsm_dist.matching.device import cuda
from semrsm_dist.matching.device.source import MOST_SHARED_BYTES, kernel_source

HERE = Path(__file__).parent
COMPILER = (
    *("g++", "-std=c++17", "-O2", "-shared", "-fPIC", "-U_FORTIFY_SOURCE"),
    *("-frounding-math", "-ffp-contract=off"),
)
ALIGNMENT = 256  # of a GPU's memory
GARBAGE = 0xA5
SHARED_MEMORY_EXCEEDED = 3


class Memory:
    """Bytes of a device, with a fence behind them."""

    def __init__(self, content):
        whole = np.full(content.size + 2 * ALIGNMENT, GARBAGE, np.uint8)
        start = -whole.ctypes.data % ALIGNMENT
        self.content = whole[start : start + content.size]
        self.fence = whole[start + content.size :]
        self.content[:] = content

    def part(self, offset):
        part = object.__new__(Memory)
        part.content, part.fence = self.content[offset:], self.fence
        return part

    def is_fenced(self):
        return (self.fence == GARBAGE).all()


class EmulatedDevice:
    """A `Device` whose kernels are compiled as C++ for this CPU; they may not write beyond their memory."""

    def __init__(self, folder):
        if shutil.which("g++") is None:
            pytest.skip("there is no g++ to compile kernels for the CPU")
        self.folder = folder
        self.panels = weakref.WeakKeyDictionary()
        self.busy = threading.RLock()  # a program runs one kernel at a time
        self.compiled = functools.cache(self._compile)

    def program(self, form=None):
        with self.busy:
            return self.compiled(form)

    def library(self, form):
        """Return where the program is as a library."""
        return self.folder / f"{'-'.join(map(str, form or ['products']))}.so"

    def _compile(self, form):
        program = self.library(form)
        source = program.with_suffix(".cpp")
        before, after = ((HERE / f"cuda_on_cpu.{kind}").read_text() for kind in ("h", "cpp"))
        if not program.exists():  # or another process has compiled it
            source.write_text(f"{before}\n{kernel_source(form)}\n{after}")
            subprocess.run([*COMPILER, "-o", program, source], check=True)
        return ctypes.CDLL(str(program))

    def auctions(self, form, width):
        return 3

    def free_bytes(self):
        return 2**30

    def send(self, array):
        assert array.flags.c_contiguous
        return Memory(np.frombuffer(array.tobytes(), np.uint8))

    def reserve(self, n_bytes):
        return Memory(np.full(n_bytes, GARBAGE, np.uint8))

    def part(self, memory, offset):
        return memory.part(offset)

    def release_unused(self):
        pass

    def fetch(self, memory, shape, dtype):
        return memory.content.view(dtype).reshape(shape).copy()

    def launch(self, kernel, form, launch, *arguments):
        assert launch.shared_bytes <= MOST_SHARED_BYTES
        memory = [one for one in arguments if isinstance(one, Memory)]
        values = [np.array(one.content.ctypes.data if isinstance(one, Memory) else one) for one in arguments]
        addresses = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        with self.busy:
            run = self.program(form).run_kernel
            failed = run(kernel.encode(), *launch.blocks, launch.threads, launch.shared_bytes, addresses)
        assert failed != SHARED_MEMORY_EXCEEDED, f"{kernel} wrote beyond its shared memory"
        assert not failed, f"{kernel}: threads wait at different places, or for one that has ended"
        assert all(one.is_fenced() for one in memory), f"{kernel} wrote beyond the memory that it was given"


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """A device that needs no GPU."""
    return EmulatedDevice(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module", params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Either device, where the matcher finds it."""
    if request.param == "cuda":
        reason = cuda.why_no_gpu()
        if reason:
            pytest.skip(reason)
        yield cuda.own_device()
        return
    emulated = request.getfixturevalue("emulated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "why_no_package", lambda: "")
        patch.setattr(cuda, "own_device", lambda: emulated)
        yield emulated

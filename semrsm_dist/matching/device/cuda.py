"""A GPU, through the driver's own interface (`cuda.bindings`): the only module that talks to a driver."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import sys
import threading
import weakref
from collections import defaultdict
from collections.abc import Iterator, MutableMapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from semrsm_dist.errors import ConfigError, UnusableGpuError, WorkerLostError, first_line
from semrsm_dist.machine import available_gpus, own_gpu
from semrsm_dist.matching.device.compiling import cached_kernels, choose_architecture, compiler_version
from semrsm_dist.matching.device.forms import Form
from semrsm_dist.matching.device.selfcheck import require_sound
from semrsm_dist.matching.device.solver import DeviceMemoryError, Launch, Sent
from semrsm_dist.matching.device.source import MOST_SHARED_BYTES, auction_bytes
from semrsm_dist.matching.panel import PackedPanel

logger = logging.getLogger(__name__)

LEAST_CAPABILITY = (8, 0)
"""Of a GPU: earlier ones cannot find a warp's maximum in one instruction."""

_held = threading.local()
_idle: dict[int, list[CudaDevice]] = defaultdict(list)
"""Devices of threads that have ended, by the index of the GPU."""


def why_no_package() -> str:
    """Return why CUDA cannot be used whatever the machine, or an empty text."""
    try:
        found = importlib.util.find_spec("cuda.bindings")
    except ModuleNotFoundError:
        found = None
    if found is None:
        return "the package cuda-bindings is not installed (pip install 'semrsm-dist[cuda]' installs it)"
    return ""


def why_no_gpu() -> str:
    """Return why CUDA cannot be used on this machine, or an empty text."""
    if why_no_package():
        return why_no_package()
    if available_gpus() == 0:
        return "this machine has no NVIDIA GPU that this process may use"
    try:
        own_device()
    except (ConfigError, WorkerLostError) as error:
        return str(error)
    return ""


def own_device() -> CudaDevice:
    """Return the GPU of the calling worker, as this thread sees it.

    Raises
    ------
    ConfigError
        If the package is not installed.
    UnusableGpuError
        If there is none that the kernels can run on.
    WorkerLostError
        If it does not answer, has no memory left, or computes otherwise than certificates need.
    """
    leases: dict[int, _Lease] = _held.__dict__.setdefault("leases", {})
    index = own_gpu()
    if index not in leases or leases[index].device.is_lost:
        reason = why_no_package()
        if reason:
            raise ConfigError(
                f"device: cuda: {reason}; install it on every machine that matches, or use device: cpu"
            )
        leases[index] = _Lease(index)
    return leases[index].device


class _Lease:
    """A device that belongs to one thread, until that ends."""

    def __init__(self, index: int) -> None:
        self._index = index
        try:
            self.device = _idle[index].pop()
        except IndexError:
            self.device = _open(index)

    def __del__(self) -> None:
        device = self.__dict__.get("device")  # not if it could not be made
        if device is not None and not device.is_lost and not sys.is_finalizing():
            with contextlib.suppress(WorkerLostError):
                device.panels.clear()
                device.release_unused()
                _idle[self._index].append(device)


def _open(index: int) -> CudaDevice:
    """Return a GPU that has been tried; raise WorkerLostError also where others have taken all its memory."""
    try:
        device = CudaDevice(index)
        require_sound(device, device.name)
    except DeviceMemoryError as error:
        raise WorkerLostError(str(error)) from error
    return device


class CudaDevice:
    """A GPU as one thread uses it: a stream of its own, on which all follows in order, and memory that is used again.

    Several threads, each with a device of its own, keep one GPU busy. They share its context, which is also PyTorch's.

    Parameters
    ----------
    index
        Among the GPUs that this process sees.

    Attributes
    ----------
    name
        For messages.
    arch
        The architecture that its kernels are compiled for.
    panels
        As in `semrsm_dist.matching.device.solver.Device`.
    is_lost
        Whether it has failed, and this process can use it no more.

    Raises
    ------
    UnusableGpuError
        If driver or compiler cannot be used, or the GPU is too old.
    ConfigError
        If the GPU is too new.
    WorkerLostError
        If the GPU does not answer.
    """

    def __init__(self, index: int) -> None:
        self.name = f"GPU {index}"
        self.is_lost = False
        self._context: Any = None
        try:
            self._driver("cuInit", 0)
            (self._device,) = self._driver("cuDeviceGet", index)
        except (RuntimeError, WorkerLostError) as error:  # the former if there is no library of a driver
            raise UnusableGpuError(
                f"device: cuda: GPU {index} cannot be used ({error}): check nvidia-smi and that the driver is as new "
                "as the installed CUDA libraries, or use device: cpu"
            ) from error
        self.name += f" ({self._read_name()})"
        self.arch = self._choose_arch()
        (self._context,) = self._driver("cuDevicePrimaryCtxRetain", self._device)
        (self._stream,) = self._driver("cuStreamCreate", 1)  # which does not wait for the default stream
        (self._done,) = self._driver("cuEventCreate", 1 | 2)  # waits for it sleep (1); it takes no time (2)
        self._multiprocessors = self._attribute("MULTIPROCESSOR_COUNT")
        self.panels: MutableMapping[PackedPanel, Sent] = weakref.WeakKeyDictionary()
        self._unused: dict[int, list[int]] = defaultdict(list)  # memory by its size
        self._sending: list[NDArray[Any]] = []  # arrays that may still be read
        self._module = functools.cache(self._load)
        self._kernel = functools.cache(self._find_kernel)

    def auctions(self, form: Form, width: int) -> int:
        """Return how many blocks of auctions run at once, for images of `width` tokens."""
        n_bytes = auction_bytes(form, width)
        (at_once,) = self._driver(
            "cuOccupancyMaxActiveBlocksPerMultiprocessor",
            self._kernel("match_pairs", form),
            form.threads,
            n_bytes,
        )
        return self._multiprocessors * max(1, int(at_once))

    def free_bytes(self) -> int:
        """Return the memory that is free now, which others on the GPU may take."""
        unused = sum(size * len(blocks) for size, blocks in self._unused.items())
        return int(self._driver("cuMemGetInfo")[0]) + unused

    def send(self, array: NDArray[Any]) -> Memory:
        """Return memory with a copy of a contiguous array, which must not change before something is fetched."""
        memory = self.reserve(array.nbytes)
        self._driver("cuMemcpyHtoDAsync", memory.address, array.ctypes.data, array.nbytes, self._stream)
        self._sending.append(array)
        return memory

    def reserve(self, n_bytes: int) -> Memory:
        """Return memory, with anything in it.

        Raises
        ------
        DeviceMemoryError
            If there is not so much.
        """
        size = _rounded(n_bytes)
        address = self._unused[size].pop() if self._unused[size] else self._allocate(size)
        return _OwnMemory(address, self._unused[size])

    def part(self, memory: Memory, offset: int) -> Memory:
        """Return what lies in memory from an offset in bytes on."""
        return Memory(memory.address + offset, memory)

    def release_unused(self) -> None:
        """Give memory back that is not in use, so that other processes and other sizes can have it."""
        self._sync()
        for addresses in self._unused.values():
            while addresses:
                self._driver("cuMemFree", addresses.pop())

    def fetch(self, memory: Memory, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return what memory holds, once all that was launched has ended."""
        array = np.empty(shape, dtype)
        self._sync()  # as the copy would wait in a loop
        self._driver("cuMemcpyDtoHAsync", array.ctypes.data, memory.address, array.nbytes, self._stream)
        self._driver("cuStreamSynchronize", self._stream)
        return array

    def launch(self, kernel: str, form: Form | None, launch: Launch, *arguments: Any) -> None:
        """Start a kernel of a program, after all that was started before."""
        values = [
            np.array(one.address, np.uint64) if isinstance(one, Memory) else np.array(one)
            for one in arguments
        ]
        addresses = np.array([value.ctypes.data for value in values], np.uint64)
        self._driver(
            "cuLaunchKernel",
            self._kernel(kernel, form),
            *(*launch.blocks, 1),
            *(launch.threads, 1, 1),
            launch.shared_bytes,
            self._stream,
            addresses.ctypes.data,
            0,
        )

    def _allocate(self, size: int) -> int:
        try:
            return int(self._driver("cuMemAlloc", size)[0])
        except DeviceMemoryError:
            self.release_unused()
            _release_torch_cache()
        return int(self._driver("cuMemAlloc", size)[0])

    def _load(self, form: Form | None) -> Any:
        with self._needing_compiler():
            code = cached_kernels(form, self.arch)
        return self._driver("cuModuleLoadData", code)[0]

    @contextlib.contextmanager
    def _needing_compiler(self) -> Iterator[None]:
        """Raise UnusableGpuError if the compiler fails within the block, or is not there."""
        try:
            yield
        except RuntimeError as error:
            raise UnusableGpuError(
                f"device: cuda: the kernels cannot be compiled for {self.name} ({first_line(error)}): the compiler "
                "NVRTC comes with pip install 'cuda-bindings[all]'; or use device: cpu"
            ) from error

    def _find_kernel(self, kernel: str, form: Form | None) -> Any:
        """Return a kernel that may use as much shared memory as every GPU has."""
        from cuda.bindings import driver  # noqa: PLC0415 - not installed everywhere

        (function,) = self._driver("cuModuleGetFunction", self._module(form), kernel.encode())
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._driver("cuFuncSetAttribute", function, attribute, MOST_SHARED_BYTES)
        return function

    def _read_name(self) -> str:
        (name,) = self._driver("cuDeviceGetName", 256, self._device)
        return str(bytes(name).split(b"\0")[0], errors="replace")

    def _attribute(self, name: str) -> int:
        from cuda.bindings import driver  # noqa: PLC0415 - as above

        attribute = getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self._driver("cuDeviceGetAttribute", attribute, self._device)[0])

    def _choose_arch(self) -> str:
        """Return the architecture to compile for, if driver, compiler and GPU go together."""
        capability = (
            self._attribute("COMPUTE_CAPABILITY_MAJOR"),
            self._attribute("COMPUTE_CAPABILITY_MINOR"),
        )
        if capability < LEAST_CAPABILITY:
            raise UnusableGpuError(
                f"device: cuda: {self.name} has compute capability {'.'.join(map(str, capability))}, but the kernels "
                f"need {'.'.join(map(str, LEAST_CAPABILITY))}: use device: cpu, or a later GPU"
            )
        with self._needing_compiler():
            compiler = compiler_version()[0]
        version = int(self._driver("cuDriverGetVersion")[0]) // 1000
        if version < compiler:
            raise UnusableGpuError(
                f"device: cuda: the driver of {self.name} is for CUDA {version}, but the installed compiler (NVRTC) is "
                f"of CUDA {compiler}: pip install 'cuda-bindings[all]=={version}.*', update the driver, or use "
                "device: cpu"
            )
        return choose_architecture(self.name, capability)

    def _sync(self) -> None:
        self._driver("cuEventRecord", self._done, self._stream)
        self._driver("cuEventSynchronize", self._done)
        self._sending.clear()

    def _driver(self, function: str, *arguments: Any) -> tuple[Any, ...]:
        """Call a function of the driver; return what it returns beside its status."""
        from cuda.bindings import driver  # noqa: PLC0415 - as above

        call = getattr(driver, function)
        with contextlib.nullcontext() if self._context is None else _current(self._context):
            status, *results = call(*arguments)
        if status == driver.CUresult.CUDA_SUCCESS:
            return tuple(results)
        if status == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise DeviceMemoryError(
                f"{self.name} has too little free memory for matching; nothing of these pairs was kept, and a run "
                "tries them again: end other processes that use the GPU (nvidia-smi lists them), or use device: cpu"
            )
        self.is_lost = True
        raise WorkerLostError(
            f"{self.name} failed in {function} ({status.name}); nothing of these pairs was kept, and a run tries them "
            "elsewhere, if there is another GPU. Look for Xid in the machine's log (dmesg); if it fails again, use "
            "device: cpu"
        )


@contextlib.contextmanager
def _current(context: Any) -> Iterator[None]:
    """Within the block, make a context the thread's own; afterwards PyTorch finds the one that it had chosen."""
    from cuda.bindings import driver  # noqa: PLC0415 - as above

    _, before = driver.cuCtxGetCurrent()
    if int(before) == int(context):
        yield
        return
    driver.cuCtxSetCurrent(context)
    try:
        yield
    finally:
        if int(before):
            driver.cuCtxSetCurrent(before)


def _release_torch_cache() -> None:
    """Let PyTorch give back the memory that it keeps for later, if this process uses it on a GPU."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class Memory:
    """Memory of a GPU: a part of another, which it keeps."""

    def __init__(self, address: int, whole: Memory | None = None) -> None:
        self.address = address
        self._whole = whole


class _OwnMemory(Memory):
    """Memory that joins the addresses which are unused when the last reference to it is gone.

    Those are used again on the same stream, so what was launched before is done with it by then.
    """

    def __init__(self, address: int, unused: list[int]) -> None:
        super().__init__(address)
        self._unused = unused

    def __del__(self) -> None:
        self._unused.append(self.address)


def _rounded(n_bytes: int) -> int:
    """Return a size of memory that holds so many bytes: one of few sizes, so that memory can be used again.

    >>> [_rounded(n) for n in (0, 1, 512, 1025, 9000)]
    [512, 512, 512, 1536, 10240]
    """
    step = max(512, 1 << (max(n_bytes - 1, 0).bit_length() - 3)) if n_bytes > 4096 else 512
    return max(1, -(-n_bytes // step)) * step

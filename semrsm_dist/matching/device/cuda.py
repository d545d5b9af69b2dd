"""A GPU, through `cuda.core`: the only module that talks to a driver."""

from __future__ import annotations

import functools
import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from semrsm_dist.errors import ConfigError, WorkError
from semrsm_dist.machine import available_gpus, own_gpu
from semrsm_dist.matching.device.compiling import cached_kernels
from semrsm_dist.matching.device.solver import Launch
from semrsm_dist.matching.device.source import LANES, auction_bytes

LEAST_CAPABILITY = (8, 0)
"""Of a GPU: earlier ones cannot find a warp's maximum in one instruction."""

_held = threading.local()


def why_no_package() -> str:
    """Return why CUDA cannot be used whatever the machine, or an empty text."""
    try:
        found = importlib.util.find_spec("cuda.core")
    except ModuleNotFoundError:
        found = None
    if found is None:
        return "the package cuda-core is not installed (pip install 'semrsm-dist[cuda]' installs it)"
    return ""


def why_no_gpu() -> str:
    """Return why CUDA cannot be used on this machine, or an empty text."""
    if why_no_package():
        return why_no_package()
    if available_gpus() == 0:
        return "this machine has no NVIDIA GPU that this process may use"
    try:
        own_device()
    except (ConfigError, WorkError) as error:
        return str(error)
    return ""


def own_device() -> CudaDevice:
    """Return the GPU of the calling worker, as this thread sees it.

    Raises
    ------
    ConfigError
        If there is none that the kernels can run on.
    """
    devices: dict[int, CudaDevice] = _held.__dict__.setdefault("devices", {})
    index = own_gpu()
    if index not in devices:
        reason = why_no_package()
        if reason:
            raise ConfigError(
                f"device: cuda: {reason}; install it on every machine that matches, or use device: cpu"
            )
        devices[index] = CudaDevice(index)
    return devices[index]


class CudaDevice:
    """A GPU: one stream, on which all follows in order.

    Parameters
    ----------
    index
        Among the GPUs that this process sees.

    Raises
    ------
    ConfigError
        If the driver cannot be used, or the GPU is too old.
    """

    def __init__(self, index: int) -> None:
        from cuda.core import Device  # noqa: PLC0415 - not installed everywhere

        try:
            self._device = Device(index)
            self._device.set_current()
            self._stream = self._device.create_stream()
            name, capability = self._device.name, tuple(self._device.compute_capability)
        except Exception as error:  # the driver's, or that of a library which finds no driver
            raise ConfigError(
                f"device: cuda: GPU {index} cannot be used ({type(error).__name__}: {error}): check nvidia-smi and "
                "that the driver is as new as the installed CUDA libraries, or use device: cpu"
            ) from error
        if capability < LEAST_CAPABILITY:
            raise ConfigError(
                f"device: cuda: GPU {index} ({name}) has compute capability {'.'.join(map(str, capability))}, but the "
                f"kernels need {'.'.join(map(str, LEAST_CAPABILITY))}: use device: cpu, or a later GPU"
            )
        self.name = f"GPU {index} ({name})"
        self.arch = f"sm_{self._device.arch}"
        self._kernel = functools.cache(self._load)

    def auctions(self, capacity: int) -> int:
        """Return how many blocks of auctions run at once."""
        with self._explained("loading match_pairs"):
            occupancy = self._kernel("match_pairs", capacity).occupancy
            at_once = occupancy.max_active_blocks_per_multiprocessor(LANES, auction_bytes(capacity))
            return int(self._device.properties.multiprocessor_count) * int(at_once)

    def free_bytes(self) -> int:
        """Return the memory that is free now, which others on the GPU may take."""
        return int(self._driver("cuMemGetInfo")[0])

    def send(self, array: NDArray[Any]) -> Any:
        """Return memory with a copy of a contiguous array."""
        memory = self.reserve(array.nbytes)
        self._driver("cuMemcpyHtoDAsync", memory.handle, array.ctypes.data, array.nbytes, self._stream.handle)
        self._sync()  # the array may go once this returns
        return memory

    def reserve(self, n_bytes: int) -> Any:
        """Return memory, with anything in it."""
        with self._explained(f"reserving {n_bytes / 2**20:.0f} MiB"):
            return self._device.allocate(n_bytes, stream=self._stream)

    def fetch(self, memory: Any, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return what memory holds, once all that was launched has ended."""
        array = np.empty(shape, dtype)
        self._driver("cuMemcpyDtoHAsync", array.ctypes.data, memory.handle, array.nbytes, self._stream.handle)
        self._sync()
        return array

    def launch(self, kernel: str, capacity: int, launch: Launch, *arguments: Any) -> None:
        """Start a kernel of the program for `capacity`, after all that was started before."""
        from cuda.core import LaunchConfig  # noqa: PLC0415 - as above
        from cuda.core import launch as start  # noqa: PLC0415

        with self._explained(f"starting {kernel}"):
            config = LaunchConfig(grid=launch.blocks, block=launch.threads, shmem_size=launch.shared_bytes)
            start(self._stream, config, self._kernel(kernel, capacity), *arguments)

    def _load(self, kernel: str, capacity: int) -> Any:
        from cuda.core import ObjectCode  # noqa: PLC0415 - as above

        code = cached_kernels(capacity, self.arch)
        return ObjectCode.from_cubin(code).get_kernel(kernel)

    def _sync(self) -> None:
        with self._explained("computing"):
            self._stream.sync()

    def _driver(self, function: str, *arguments: Any) -> tuple[Any, ...]:
        """Call a function of the driver; return what it returns beside its status."""
        from cuda.bindings import driver  # noqa: PLC0415 - as above

        self._device.set_current()
        status, *results = getattr(driver, function)(*arguments)
        if status != driver.CUresult.CUDA_SUCCESS:
            raise self._error(function, status.name)
        return tuple(results)

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Name the GPU, and what to do, in errors of CUDA."""
        try:
            self._device.set_current()
            yield
        except (ConfigError, WorkError):
            raise
        except Exception as error:  # of cuda.core, which has no common base
            raise self._error(doing, f"{type(error).__name__}: {error}") from error

    def _error(self, doing: str, problem: str) -> WorkError:
        return WorkError(
            f"{self.name} failed while {doing} ({problem}); nothing of these pairs was kept, and a run tries them "
            "again. If it is out of memory, end other processes that use it (nvidia-smi lists them); if it fails "
            "again, use device: cpu"
        )

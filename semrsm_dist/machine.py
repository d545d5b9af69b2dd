"""The resources of this machine, or of the container around this process."""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
from threadpoolctl import threadpool_limits

from semrsm_dist.errors import StorageError

DEVICES = Path("/dev")
CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_OF_PROCESS = Path("/proc/self/cgroup")

LEAST_READERS = 4
"""Readers of images beside a model: decoding a photograph takes as long as a small network."""

_place = threading.local()


def user_cache_folder() -> Path:
    """Return where this package may keep what it can make again: in the user's cache folder.

    Raises RuntimeError if the user has none.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "semrsm-dist"


def require_temporary_folder() -> None:
    """Refuse a machine without a folder for temporary files: Python and PyTorch need one to load.

    Raises StorageError.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        named = "".join(
            f"{name} is {os.environ[name]}; " for name in ("TMPDIR", "TEMP", "TMP") if name in os.environ
        )
        raise StorageError(
            f"no folder for temporary files can be written ({named}/tmp, /var/tmp, /usr/tmp and the working directory "
            "were tried), and nothing can be computed without one; what was finished is kept: let TMPDIR name a "
            "folder of yours on a disk with room, then start the same command"
        ) from error


def available_cpus() -> int:
    """Return the CPUs this process may use: its affinity, cut to the container's quota, at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroup_folders("cpu"):
        quota = _cpu_quota(folder)
        if quota is not None:
            count = min(count, max(1, int(quota)))
    return max(1, count)


def available_memory() -> int:
    """Return the bytes of memory this process may use: the machine's total, cut to the container's limit."""
    limit = int(psutil.virtual_memory().total)
    for folder in _cgroup_folders("memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            text = _read(folder / name)
            if text.isdigit():  # "max" and a missing file both mean no limit here
                limit = min(limit, int(text))
    return limit


def available_gpus() -> int:
    """Return the NVIDIA GPUs this process may use, without loading a GPU library."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return _count_gpus()
    names = [name.strip() for name in visible.split(",")]
    usable = itertools.takewhile(lambda name: name not in ("", "-1"), names)  # CUDA reads no further either
    return min(_count_gpus(), sum(1 for _ in usable))


def _count_gpus() -> int:
    """Return the NVIDIA GPUs of this machine, whether or not this process may use them."""
    return sum(1 for path in DEVICES.glob("nvidia*") if path.name[len("nvidia") :].isdigit())


def count_readers(*, on_gpu: bool) -> int:
    """Return how many images are read at once beside a model: on a GPU, as many as it has of the machine's cores."""
    return max(LEAST_READERS, available_cpus() // max(1, _count_gpus())) if on_gpu else LEAST_READERS


def set_own_gpu(index: int) -> None:
    """Tell the workers of the calling thread which GPU is theirs: for engines whose workers see more than one."""
    _place.gpu = index


def own_gpu() -> int:
    """Return the index of the GPU that the engine gave to the calling worker, among those that its process sees."""
    return int(getattr(_place, "gpu", 0))


def limit_threads(cpus: float) -> threadpool_limits:
    """Cap the threads of BLAS and OpenMP at `cpus` (at least 1) and return the handle that restores them.

    OpenMP keeps its limit per thread, so this is called in each worker's own thread; libraries loaded later are
    not covered, so it is called again after a model has been loaded.
    """
    return threadpool_limits(limits=max(1, int(cpus)))


def _cgroup_folders(controller: str) -> Iterator[Path]:
    """Yield the folders whose limits apply to this process, its own and all above it (cgroup v2, then v1)."""
    for line in _read(CGROUP_OF_PROCESS).splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            root = CGROUP_ROOT
        elif controller in controllers.split(","):
            root = CGROUP_ROOT / controller
        else:
            continue
        folder = root / path.lstrip("/")
        yield folder
        # Inside a container the path is often the host's and absent here: the limits are then at the root.
        yield from (parent for parent in folder.parents if parent.is_relative_to(root))


def _cpu_quota(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    if quota.isdigit() and period.isdigit() and int(period) > 0:  # "max" and -1 mean no quota
        return int(quota) / int(period)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""

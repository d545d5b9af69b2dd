"""Compiling kernels with NVRTC, once for a machine: what is compiled is kept on disk."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from semrsm_dist.errors import ConfigError
from semrsm_dist.machine import user_cache_folder
from semrsm_dist.matching.device.forms import Form
from semrsm_dist.matching.device.source import kernel_source

logger = logging.getLogger(__name__)

OPTIONS: Final = (b"--std=c++17", b"--ftz=false", b"--fmad=true")
_DIGEST_BYTES: Final = hashlib.sha256().digest_size


def compiler_version() -> tuple[int, int]:
    """Return the version of NVRTC: that of the CUDA toolkit to which it belongs."""
    major, minor = _nvrtc("nvrtcVersion")
    return int(major), int(minor)


def choose_architecture(name: str, capability: tuple[int, int]) -> str:
    """Return the newest architecture that NVRTC knows and that a GPU of this compute capability runs.

    Machine code runs on GPUs of the same major number, and of the same or a higher minor one.

    Raises
    ------
    ConfigError
        If there is none; `name` is that of the GPU.
    """
    (known,) = _nvrtc("nvrtcGetSupportedArchs")
    fitting = [arch for arch in known if arch // 10 == capability[0] and arch % 10 <= capability[1]]
    if not fitting:
        raise ConfigError(
            f"device: cuda: the installed compiler (NVRTC {'.'.join(map(str, compiler_version()))}) cannot compile for "
            f"{name} of compute capability {'.'.join(map(str, capability))}: install a newer cuda-bindings[all], or "
            "use device: cpu"
        )
    return f"sm_{max(fitting)}"


def compile_kernels(form: Form | None, arch: str) -> bytes:
    """Return a program (see `kernel_source`) as machine code of an architecture, such as `sm_90`.

    That needs no GPU. IEEE arithmetic, on which the certificate rests, is NVRTC's default: no fast math, no flushing of
    subnormal numbers.
    """
    options = [f"--gpu-architecture={arch}".encode(), *OPTIONS]
    (program,) = _nvrtc("nvrtcCreateProgram", kernel_source(form).encode(), b"semrsm.cu", 0, [], [])
    try:
        try:
            _nvrtc("nvrtcCompileProgram", program, len(options), options)
        except RuntimeError as error:
            (size,) = _nvrtc("nvrtcGetProgramLogSize", program)
            log = bytes(size)
            _nvrtc("nvrtcGetProgramLog", program, log)
            raise RuntimeError(f"{error}: {log.decode(errors='replace')}") from error
        (size,) = _nvrtc("nvrtcGetCUBINSize", program)
        code = bytes(size)
        _nvrtc("nvrtcGetCUBIN", program, code)  # which writes into it
        return code
    finally:
        _nvrtc("nvrtcDestroyProgram", program)


def _nvrtc(function: str, *arguments: Any) -> tuple[Any, ...]:
    """Call a function of NVRTC; return what it returns beside its status."""
    from cuda.bindings import nvrtc  # noqa: PLC0415 - not installed everywhere

    status, *results = getattr(nvrtc, function)(*arguments)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"NVRTC failed in {function} ({status.name})")
    return tuple(results)


def cached_kernels(form: Form | None, arch: str, folder: Path | None = None) -> bytes:
    """Return what `compile_kernels` does, from the cache if it is there.

    Machine code depends on the source, the options, the architecture and NVRTC's version, which make its key. It does
    not depend on the driver, which loads it or refuses to. Where the user has no folder for caches, nothing is kept.
    """
    key = repr((kernel_source(form), OPTIONS, arch, compiler_version()))
    try:
        folder = folder or cache_folder()
    except RuntimeError as error:
        logger.warning("compiled kernels cannot be kept (%s): set XDG_CACHE_HOME to a folder", error)
        return compile_kernels(form, arch)
    return fetch_or_make(key, lambda: compile_kernels(form, arch), folder)


def cache_folder() -> Path:
    """Return where compiled kernels are kept."""
    return user_cache_folder() / "kernels"


def fetch_or_make(key: str, make: Callable[[], bytes], folder: Path) -> bytes:
    """Return the bytes kept under a key, or make them and keep them.

    A file holds the digest of its bytes before them: one that is damaged, or cut off, is made again. Files appear
    whole, so processes that make the same one at the same time do no harm. Where nothing can be kept, it is made each
    time.
    """
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()}.cubin"
    try:
        kept = path.read_bytes()
    except OSError:
        kept = b""
    digest, content = kept[:_DIGEST_BYTES], kept[_DIGEST_BYTES:]
    if content and hashlib.sha256(content).digest() == digest:
        return content
    logger.info("compiling the kernels of matching for this GPU, once for this machine")
    content = make()
    try:
        _write(path, hashlib.sha256(content).digest() + content)
    except OSError as error:
        logger.warning(
            "%s: compiled kernels cannot be kept (%s), and are compiled again", folder, error.strerror
        )
    return content


def _write(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

"""Settings of torch with which it gives the same numbers every time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_Setting = tuple[Any, str, object]  # whose it is, its name and value


@contextmanager
def reproducible() -> Iterator[None]:
    """Within the block, let torch give the same numbers every time; afterwards its settings are as before.

    One CPU thread, the same algorithm of cuDNN for the same shapes, and no TF32 for what is computed in float32.
    Threads that are started within the block inherit the number of threads. The other settings are the whole
    process's: several threads may be in such blocks, and the last one to leave restores them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _SHARED:
            yield
    finally:
        torch.set_num_threads(threads)


class _SharedSettings:
    """Settings of the process: made by the first block, undone by the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._before: list[_Setting] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._blocks == 0:
                self._before = list(_present(_settings()))
                _apply(_settings())
            self._blocks += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._blocks -= 1
            if self._blocks == 0:
                _apply(self._before)


_SHARED = _SharedSettings()


class _Products:
    """What torch has as two functions, as an attribute."""

    @property
    def precision(self) -> str:
        """Of products of float32 matrices: `highest`, `high` or `medium`."""
        return torch.get_float32_matmul_precision()

    @precision.setter
    def precision(self, value: str) -> None:
        torch.set_float32_matmul_precision(value)


def _settings() -> list[_Setting]:
    """Return the settings in which numbers repeat."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    settings: list[_Setting] = [
        (cudnn, "benchmark", False),
        (cudnn, "deterministic", True),
        (cudnn, "allow_tf32", False),
        (_Products(), "precision", "highest"),
    ]
    # Since torch 2.9, without which the switches above leave it to a more general one.
    if hasattr(cudnn, "conv"):
        settings += [(part, "fp32_precision", "ieee") for part in (cudnn.conv, cudnn.rnn, matmul)]
    return settings


def _present(settings: list[_Setting]) -> Iterator[_Setting]:
    """Yield the present values of settings."""
    for owner, name, _ in settings:
        try:
            yield owner, name, getattr(owner, name)
        except RuntimeError:
            continue  # torch reads no old switch once a new one differs from it; the new ones are restored


def _apply(settings: list[_Setting]) -> None:
    for owner, name, value in settings:
        setattr(owner, name, value)

"""Networks compiled by `torch.compile`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from semrsm_dist.errors import ConfigError, first_line

Reader = Callable[[Tensor], dict[str, Tensor]]
"""Returns layer -> (B, S, C) for a batch of images (B, 3, H, W)."""


def compile_network(read: Reader, device: torch.device) -> Reader:
    """Return what reads the layers of a network, to be compiled at its first batch.

    Code is generated for one shape of the batch. What the compiler would choose by how long it takes is left at what it
    takes for best, so that another session has the same code. On a CPU it works in one thread, as the network does.
    Raises ConfigError if this version of torch would choose by time.
    """
    import torch._inductor.config as inductor  # noqa: PLC0415 - slow to load, and few runs need it

    if not hasattr(inductor, "deterministic"):
        raise ConfigError(
            f"model.compile: true: torch {torch.__version__} chooses code by how fast it was when it was tried, so "
            "features would differ from session to session; nothing was extracted: use a later torch (one that has "
            "torch._inductor.config.deterministic), or model.compile: false in a new run directory"
        )
    options: dict[str, Any] = {"deterministic": True}
    if device.type == "cpu":
        options["compile_threads"] = 1
    compiled: Reader = torch.compile(read, dynamic=False, options=options)
    return compiled


def explain_failure(error: Exception, name: str) -> ConfigError:
    """Return the error of a network that could not be compiled."""
    cause = getattr(error, "inner_exception", error)  # torch wraps what its backends raise
    return ConfigError(
        f"model.compile: true: {name!r} could not be compiled ({type(cause).__name__}: {first_line(cause)}); nothing "
        "was extracted: torch.compile needs a C++ compiler on a CPU and Triton on a GPU, and cannot compile every "
        "network; use model.compile: false in a new run directory"
    )

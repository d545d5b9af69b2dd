"""Tells what torch raises for a GPU that has failed from what it raises for too little memory or wrong input."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from semrsm_dist.errors import WorkerLostError, first_line


@contextmanager
def noticing_faults(device: torch.device) -> Iterator[None]:
    """Raise WorkerLostError where a GPU fails within the block: its errors stay, so this process cannot use it again.

    Torch raises AcceleratorError, and in earlier versions RuntimeError, for what CUDA reports; libraries above CUDA
    have messages of their own. Whatever was raised, a GPU that has failed answers nothing any more.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error) or not (_is_fault(error) or _is_broken(device)):
            raise
        raise WorkerLostError(
            f"the GPU ({device}) on {socket.gethostname()} failed ({first_line(error)}); no features of these images "
            "were kept, and a run extracts them elsewhere, if there is another GPU. Look for Xid in the machine's log "
            "(dmesg); if it fails again, leave it out (CUDA_VISIBLE_DEVICES)"
        ) from error


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether there was too little memory of a GPU, which does it no harm."""
    text = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError)
        or text.startswith("CUDA error: out of memory")
        or "_STATUS_ALLOC_FAILED" in text
    )


def _is_fault(error: RuntimeError) -> bool:
    """Return whether torch calls an error one of the GPU."""
    is_named = isinstance(error, getattr(torch, "AcceleratorError", ()))
    return is_named or str(error).startswith(("CUDA error: ", "CUDA driver error: "))


def _is_broken(device: torch.device) -> bool:
    """Return whether a GPU no longer answers."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False

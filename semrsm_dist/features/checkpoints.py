"""Weights into a model: downloaded, shipped or from a local file, complete or not at all.

A model that is only partly loaded still runs and gives plausible numbers. So every tensor of the model
must come from the file; what does not fit is an error that names the tensors. The only exception is the
classifier, which no representation depends on: a file may lack it or have another number of classes.
Nothing here executes code from a weight file.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import timm
import torch
from torch import nn

from semrsm_dist.errors import InputError
from semrsm_dist.features import registry

_logger = logging.getLogger(__name__)

# What timm's converters raise when a file is not what they expect.
_CONVERSION_ERRORS = (
    RuntimeError,
    KeyError,
    AttributeError,
    ValueError,
    TypeError,
    IndexError,
    AssertionError,
)
_READ_ERRORS = (*_CONVERSION_ERRORS, OSError, EOFError, pickle.UnpicklingError, safetensors.SafetensorError)


def hash_state(module: nn.Module) -> str:
    """Return the SHA-256 of a model's weights: names, types, shapes and bytes of the state dict.

    It depends on the numbers alone, not on the file or format they came from.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_file(model: nn.Module, path: Path) -> None:
    """Fill a model with the weights of a local file, every tensor of it.

    Parameters
    ----------
    model
        A timm model; its classifier is replaced if the file has another number of classes, and removed
        (with a warning) if the file has none.
    path
        ``.safetensors``, or a state dict saved by torch, or timm's ``.npz`` where the model reads it.

    Raises
    ------
    InputError
        The file cannot be read without executing code, or is not of this architecture.
    """
    if path.suffix == ".npz":
        _load_npz(model, path)
    else:
        load_state(model, _read_state(path), source=str(path))


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = timm.models.load_state_dict(str(path), device="cpu", weights_only=True)
        tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    except _READ_ERRORS as error:
        raise InputError(
            f"{path}: cannot be read as weights ({_first_line(error)}); wanted are .safetensors, or a state "
            "dict saved with torch.save(model.state_dict(), ...); other pickled objects are not executed"
        ) from error
    if not tensors:
        raise InputError(f"{path}: holds no tensors, so no weights")
    return tensors


def load_state(model: nn.Module, state: dict[str, torch.Tensor], *, source: str) -> None:
    """Fill a model with a state dict, converted by timm's own rules where it is not in timm's form.

    Raises
    ------
    InputError
        Tensors are missing, left over or of another shape; they are named, `source` too.
    """
    state = _converted(model, state)
    classifiers = _classifiers(model)
    if classifiers:
        weight = state.get(f"{classifiers[0]}.weight")
        _fit_classifier(model, 0 if weight is None else int(weight.shape[0]), source)
    problems = _differences(model, state)
    if problems:
        raise InputError(
            f"{source}: these are not weights of {_architecture(model)}: {'; '.join(problems)}. "
            "Nothing was loaded: check the model's name against the file"
        )
    model.load_state_dict(state, strict=True)


def _converted(model: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Bring other projects' names and other input sizes into the model's form, if timm knows how."""
    if not _differences(model, state):
        return state
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return dict(convert(dict(state), model))
    except _CONVERSION_ERRORS as error:
        _logger.debug("timm's converter does not know this file: %s", error)
        return state  # the comparison with the model says what is wrong with it


def _differences(model: nn.Module, state: dict[str, torch.Tensor]) -> list[str]:
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    reshaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    found = (("missing", missing), ("unexpected", unexpected), ("other shape", reshaped))
    return [f"{len(names)} {what} ({_some(names)})" for what, names in found if names]


def _some(names: list[str], n: int = 4) -> str:
    return ", ".join(names[:n]) + (", ..." if len(names) > n else "")


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _fit_classifier(model: nn.Module, n_classes: int, source: str) -> None:
    if n_classes == model.num_classes:
        return
    if n_classes == 0:
        _logger.warning("%s has no classifier: the model gives features but no class probabilities", source)
    reset: Any = model.reset_classifier
    reset(n_classes)


def _load_npz(model: nn.Module, path: Path) -> None:
    """Load the original JAX archives (BiT, ViT), which timm reads tensor by tensor and without a check."""
    read: Any = getattr(model, "load_pretrained", None)
    if read is None:
        raise InputError(
            f"{path}: timm reads no .npz for {_architecture(model)}; give a .safetensors or .pth file"
        )
    with torch.no_grad():  # whatever the archive does not set stays NaN and is found below
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
    try:
        read(str(path))
    except _READ_ERRORS as error:
        raise InputError(
            f"{path}: not an archive of {_architecture(model)} ({_first_line(error)}); check the model's name"
        ) from error
    unset = [name for name, t in model.state_dict().items() if t.is_floating_point() and t.isnan().any()]
    heads = tuple(f"{name}." for name in _classifiers(model))
    if unset and all(name.startswith(heads) for name in unset):
        _fit_classifier(model, 0, str(path))
    elif unset:
        raise InputError(
            f"{path}: leaves {len(unset)} tensors of {_architecture(model)} unset ({_some(unset)})"
        )


def check_download(name: str, files: Sequence[str] = ()) -> None:
    """Refuse at once, instead of after a minute of retries, when the weights are neither here nor reachable.

    Parameters
    ----------
    name
        The model.
    files
        Any one of these files of its repository will do; timm's choice if there are none.

    Raises
    ------
    InputError
        The file is not in the cache and its host has no address from here.
    """
    cfg = registry.pretrained_cfg(name)
    hub_id = cfg.get("hf_hub_id")
    if not hub_id or _in_cache(hub_id, files or _hub_files(cfg)) or urllib.request.getproxies():
        return  # other hosts do not retry
    from huggingface_hub import constants  # noqa: PLC0415 (only where a download is wanted)

    host = urllib.parse.urlparse(constants.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        raise download_error(name, error, files) from error


def _hub_files(cfg: Mapping[str, Any]) -> Sequence[str]:
    filename = cfg.get("hf_hub_filename")
    return (filename,) if filename else ("model.safetensors", "pytorch_model.bin")


def _in_cache(hub_id: str, files: Sequence[str]) -> bool:
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415

    repo, _, revision = hub_id.partition("@")
    return any(isinstance(try_to_load_from_cache(repo, n, revision=revision or None), str) for n in files)


def download_error(name: str, error: Exception, files: Sequence[str] = ()) -> InputError:
    """Say which file to fetch elsewhere, and how to point to it."""
    cfg = registry.pretrained_cfg(name)
    hub_id, url = cfg.get("hf_hub_id"), cfg.get("url")
    if hub_id:
        url = f"https://huggingface.co/{hub_id}/resolve/main/{(files or _hub_files(cfg))[0]}"
    return InputError(
        f"the weights of {name!r} cannot be downloaded ({_first_line(error)}). Get {url} where there is a network "
        "and give the path of that file as weights (--set model.weights=PATH), or ask for weights: random to run "
        "without"
    )


def _architecture(model: nn.Module) -> str:
    return str(getattr(model, "pretrained_cfg", {}).get("architecture", type(model).__name__))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]

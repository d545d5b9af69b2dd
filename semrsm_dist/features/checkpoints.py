"""Weights from a local file into a model, complete or not at all.

A model that is only partly loaded still runs and gives plausible numbers. So every tensor of the model
must come from the file; what does not fit is an error that names the tensors. The only exception is the
classifier, which no representation depends on: a file may lack it or have another number of classes.
The same holds for position embeddings: they are resampled from the grid they were trained on to that of the input
size, and refused if that grid cannot be known. Nothing here executes code from a weight file.
"""

from __future__ import annotations

import hashlib
import logging
import math
import sys
from pathlib import Path
from typing import Any, TypeAlias

import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import nn

from semrsm_dist.errors import InputError, first_line, shorten
from semrsm_dist.features.arrays import READ_ERRORS
from semrsm_dist.features.renaming import rename_efficientnet

_logger = logging.getLogger(__name__)

State: TypeAlias = dict[str, torch.Tensor]
Size: TypeAlias = tuple[int, int]

_POSITIONS = (
    "pos_embed",
    "patch_pos",
    "visual.positional_embedding",
    "position_embeddings",
    "position_embedding.weight",
)
"""How the names of position embeddings of images end, in timm and elsewhere."""

_ERRORS = (*READ_ERRORS, AssertionError)
"""Errors that unexpected files raise when they are read or converted."""


def hash_state(module: nn.Module) -> str:
    """Return the SHA-256 of a model's weights: names, types, shapes and bytes of the state dict.

    It depends on the numbers alone, not on the file or format they came from.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_file(
    model: nn.Module,
    path: Path,
    own: Size | None = None,
    size: Size | None = None,
    *,
    is_stated: bool = False,
) -> None:
    """Fill every tensor of a model with the weights of a local file.

    Raises InputError if the file cannot be read without executing code, is not of this architecture, or does not say on
    which grid its position embeddings lie.

    Parameters
    ----------
    model
        A timm model; its classifier is replaced if the file has another number of classes, and removed
        (with a warning) if the file has none.
    path
        ``.safetensors``, or a state dict saved by torch, or timm's ``.npz`` where the model reads it.
    own, size, is_stated
        See `move_positions`; needed for a network with position embeddings on a grid.
    """
    if path.suffix == ".npz":
        _load_npz(model, path)
        return
    state = _read_state(path)
    if own and size:
        state = move_positions(model, state, own, size, str(path), is_stated=is_stated)
    load_state(model, state, source=str(path))


def move_positions(
    model: nn.Module, state: State, own: Size, size: Size, source: str, *, is_stated: bool
) -> State:
    """Resample position embeddings whose grid the file states; refuse those whose grid cannot be known.

    `own` is the height and width in pixels that the architecture, or if `is_stated` the network in the file, is made
    for; `size` is that of the model. What is left to timm's converter are embeddings whose number alone determines
    their grid.
    """
    name = next((name for name in ("pos_embed", "patch_pos") if _is_flat(model, name)), None)
    in_file = next((key for key in state if key.endswith(_POSITIONS) and state[key].ndim in (2, 3)), None)
    if name is None or in_file is None:
        return state
    n_model, n_file = getattr(model, name).shape[1], state[in_file].shape[-2]
    n_prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)
    stride = math.isqrt(math.prod(size) // max(1, n_model - n_prefix))
    target, origin = ((pixels[0] // stride, pixels[1] // stride) for pixels in (size, own))
    n_prefix = n_model - math.prod(target)
    if is_stated:
        if origin == target or n_file - n_prefix != math.prod(origin):
            return state
        moved = resample_abs_pos_embed(
            state[in_file], new_size=list(target), old_size=list(origin), num_prefix_tokens=n_prefix
        )
        return {**state, in_file: moved}
    # A class token in other projects.
    n_file -= n_prefix if in_file == name and "mask_token" not in state else 1
    root = math.isqrt(n_file)
    possible = {grid for grid in (origin, target, (root, root)) if math.prod(grid) == n_file}
    if len(possible) != 1:
        grids = " or ".join(f"{height} x {width}" for height, width in sorted(possible)) or "not a square one"
        raise InputError(
            f"{source}: the file does not say on which grid its {n_file} position embeddings lie ({grids}); nothing "
            "was loaded, as they might be scrambled: set an input_size that leaves no doubt, or save the weights as "
            ".safetensors with the metadata architecture, num_classes and input_size"
        )
    return state


def _is_flat(model: nn.Module, name: str) -> bool:
    tensor = getattr(model, name, None)
    return isinstance(tensor, torch.Tensor) and tensor.ndim == 3


def _read_state(path: Path) -> State:
    try:
        state = timm.models.load_state_dict(str(path), device="cpu", weights_only=True)
        tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    except _ERRORS as error:
        raise InputError(
            f"{path}: cannot be read as weights ({first_line(error)}); give a .safetensors file, or a state dict "
            "saved with torch.save(model.state_dict(), ...); other pickled objects would execute code"
        ) from error
    if not tensors:
        raise InputError(f"{path}: contains no tensors, so no weights; check the path")
    return tensors


def load_state(model: nn.Module, state: State, *, source: str) -> None:
    """Fill a model with a state dict, converted by timm's own rules where it is not in timm's form.

    Raises InputError if tensors are missing, left over or of another shape; they are named, `source` too.
    """
    state = _converted(model, rename_efficientnet(model, state, source))
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


def _converted(model: nn.Module, state: State) -> State:
    """Bring other projects' names and other input sizes into the model's form, if timm knows how."""
    if not _differences(model, state):
        return state
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return dict(convert(dict(state), model))
    except _ERRORS as error:
        _logger.debug("timm's converter does not know this file: %s", error)
        return state  # the comparison with the model says what is wrong with it


def _differences(model: nn.Module, state: State) -> list[str]:
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    reshaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    found = (("missing", missing), ("unexpected", unexpected), ("other shape", reshaped))
    return [f"{len(names)} {what} ({shorten(names, 4)})" for what, names in found if names]


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
    except _ERRORS as error:
        raise InputError(
            f"{path}: not an archive of {_architecture(model)} ({first_line(error)}); check the model's name"
        ) from error
    unset = [name for name, t in model.state_dict().items() if t.is_floating_point() and t.isnan().any()]
    heads = tuple(f"{name}." for name in _classifiers(model))
    if unset and all(name.startswith(heads) for name in unset):
        _fit_classifier(model, 0, str(path))
    elif unset:
        raise InputError(
            f"{path}: leaves {len(unset)} tensors of {_architecture(model)} unset ({shorten(unset, 4)})"
        )


def _architecture(model: nn.Module) -> str:
    return str(getattr(model, "pretrained_cfg", {}).get("architecture", type(model).__name__))

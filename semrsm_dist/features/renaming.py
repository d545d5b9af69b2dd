"""Names of tensors in other projects' weight files that timm's own converters do not know."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.efficientnet import EfficientNet
from torch import nn

from semrsm_dist.errors import InputError

_TOP = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}


def rename_efficientnet(
    model: nn.Module, state: dict[str, torch.Tensor], source: str
) -> dict[str, torch.Tensor]:
    """Bring the names of EfficientNet-PyTorch (`_blocks.3._expand_conv.weight`) into timm's form.

    That project counts blocks through, and calls a block's layers by what they do; timm counts stages and blocks within
    them. What it does not know keeps its name, so that the comparison with the model reports it. Raises InputError if
    the model is one of those that timm does not call `tf_`: their padding and their normalisation differ from those
    that these weights were trained with.
    """
    if not isinstance(model, EfficientNet) or "_conv_stem.weight" not in state:
        return state
    cfg: Any = model.pretrained_cfg
    arch = str(cfg.get("architecture", ""))
    if not arch.startswith("tf_"):
        raise InputError(
            f"{source}: weights of EfficientNet-PyTorch pad and normalise as TensorFlow does, and {arch!r} does not; "
            f"nothing was loaded, as its features would be slightly wrong: use tf_{arch}"
        )
    stages: Any = model.blocks
    places = [
        f"blocks.{stage}.{block}" for stage, blocks in enumerate(stages) for block in range(len(blocks))
    ]
    return {_rename(name, places, state): tensor for name, tensor in state.items()}


def _rename(name: str, places: list[str], state: dict[str, torch.Tensor]) -> str:
    """Return timm's name of a tensor, or the name itself where there is none."""
    head, _, rest = name.partition(".")
    if head in _TOP:
        return f"{_TOP[head]}.{rest}"
    number, _, inner = rest.partition(".")
    layer, _, tensor = inner.partition(".")
    if head != "_blocks" or not number.isdecimal() or int(number) >= len(places):
        return name
    expands = f"_blocks.{number}._expand_conv.weight" in state
    known = (_INVERTED if expands else _SEPARABLE) | _SQUEEZE
    return f"{places[int(number)]}.{known[layer]}.{tensor}" if layer in known else name

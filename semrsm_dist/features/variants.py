"""Weights derived from those of a network, pruned by magnitude or fine-tuned; each file records how it was made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from PIL.Image import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from semrsm_dist.errors import StorageError, reason_of
from semrsm_dist.features import registry
from semrsm_dist.features.models import LoadedModel
from semrsm_dist.features.reproducible import reproducible

MADE_FROM = "made_from"
"""Key in the head of a weight file of what it was made from and how, as JSON."""

SOURCE_ONLY = ("held_out", "recipe", "steps", "seed")
"""Facts in the header of the source's file about its training, which no longer apply."""

Batch = tuple[Sequence[Image], NDArray[Any]]
"""Images, and for each of them which labels it has, (B, L) of 0 and 1."""


def prune(model: LoadedModel, share: float) -> None:
    """Set the smallest weights of each convolution and linear layer to zero, in place; biases and norms stay."""
    for module in model.module.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            prune_smallest(module.weight.data, share)


def prune_smallest(weights: Tensor, share: float) -> None:
    """Set the share of smallest magnitude to zero, in place; among equals the first."""
    flat = weights.view(-1)
    order = torch.argsort(flat.abs(), stable=True)
    flat[order[: int(share * flat.numel())]] = 0.0


def train_further(model: LoadedModel, batches: Iterable[Batch], *, steps: int, learning_rate: float) -> None:
    """Train in place by AdamW, whose learning rate falls to zero in a straight line over the steps, one a batch.

    In one thread, so that rounding does not depend on the machine's number of cores.
    """
    network: Any = model.module.train().requires_grad_(True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=steps)
    criterion = nn.BCEWithLogitsLoss()
    with reproducible():
        for images, labels in batches:
            inputs = torch.stack([model.transform(image) for image in images])
            optimiser.zero_grad()
            criterion(network(inputs), torch.tensor(labels, dtype=torch.float32)).backward()
            optimiser.step()
            schedule.step()
    network.eval().requires_grad_(False)


def is_made(path: Path, recipe: Mapping[str, Any]) -> bool:
    """Return whether a file holds weights that were made by this recipe."""
    return registry.read_head(path).get(MADE_FROM) == json.dumps(recipe)


def save_variant(model: LoadedModel, path: Path, recipe: Mapping[str, Any]) -> None:
    """Write the weights with how they were made, and with the description of the network, if its source has one.

    Raises StorageError if the file cannot be written.
    """
    source = replace(model.spec, name=model.architecture).weights_file()
    described = registry.read_head(source) if source else {}
    head = {key: value for key, value in described.items() if key not in SOURCE_ONLY}
    state = {name: tensor.contiguous() for name, tensor in model.module.state_dict().items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(state, partial, {**head, MADE_FROM: json.dumps(recipe)})
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{path}: the weights cannot be written ({reason_of(error)}); make room or make the folder writable, then "
            "repeat"
        ) from error

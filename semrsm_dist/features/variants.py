"""Networks made from a network: pruned by magnitude, or trained on for a while with smaller digits.

Each is a file of weights that says what it was made from and how; made again, it is the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from semrsm_dist.data.digits import DigitScenes
from semrsm_dist.data.handwriting import N_CLASSES
from semrsm_dist.errors import ConfigError, StorageError
from semrsm_dist.features import registry
from semrsm_dist.features.models import LoadedModel, ModelSpec, load_model

MADE_FROM = "made_from"
"""Key in the head of a weight file of what it was made from and how, as JSON."""

SOURCE_ONLY = ("held_out", "recipe", "steps", "seed")
"""What the head of the source's file says of its training and is no longer true."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """A short further training on a task that has shifted: the digits are half as large as those of the first.

    Attributes
    ----------
    steps, batch
        How long.
    learning_rate
        Of AdamW at the beginning; it falls to zero in a straight line.
    scale
        Smallest and largest enlargement of the digits.
    digits
        Smallest and largest number of digits in a scene.
    seed
        Of the scenes.
    """

    steps: int = 120
    batch: int = 32
    learning_rate: float = 1e-3
    scale: tuple[float, float] = (1.25, 2.0)
    digits: tuple[int, int] = (1, 4)
    seed: int = 0


def save_pruned(spec: ModelSpec, share: float, path: Path) -> None:
    """Write the weights of a model with the smallest of them set to zero, unless they are there.

    Parameters
    ----------
    spec
        The model.
    share
        Of the weights of each convolution and linear layer: those of smallest magnitude, among equals the first. Biases
        and normalisations stay.
    path
        Where to.

    Raises
    ------
    ConfigError
        `share` is not between 0 and 1.
    StorageError
        The file cannot be written.
    """
    if not 0.0 <= share < 1.0:
        raise ConfigError(f"the share of weights to prune must lie between 0 and 1, found {share}")
    model = load_model(spec)
    recipe = {"weights_sha256": model.weights_sha256, "pruned": share}
    if _is_made(path, recipe):
        return
    for module in model.module.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            prune_smallest(module.weight.data, share)
    _save(model, path, recipe)


def prune_smallest(weights: Tensor, share: float) -> None:
    """Set the share of smallest magnitude to zero, in place; among equals the first."""
    flat = weights.view(-1)
    order = torch.argsort(flat.abs(), stable=True)
    flat[order[: int(share * flat.numel())]] = 0.0


def save_tuned(spec: ModelSpec, path: Path, tuning: Tuning | None = None) -> None:
    """Train a network of the digits on with smaller digits and write its weights, unless they are there.

    Parameters
    ----------
    spec
        The model; it must say yes or no to each of the ten digits.
    path
        Where to.
    tuning
        How it is trained.

    Raises
    ------
    ConfigError
        The model's outputs are not the ten digits.
    StorageError
        The file cannot be written.
    """
    model, tuning = load_model(spec), tuning or Tuning()
    if model.outputs != "labels" or model.classes != tuple(map(str, range(N_CLASSES))):
        raise ConfigError(
            f"model {spec.name!r} cannot be fine-tuned here, as only networks that were trained on scenes of digits "
            "(weights: digits) know the labels of more such scenes; fine-tune it yourself and give a run with its file "
            "to compare with"
        )
    recipe = {"weights_sha256": model.weights_sha256, "tuned": asdict(tuning)}
    if _is_made(path, recipe):
        return
    _train(model, tuning)
    _save(model, path, recipe)


def _train(model: LoadedModel, tuning: Tuning) -> None:
    """Train in place, in one thread, so that rounding does not depend on the machine's number of cores."""
    height, _ = model.input_size
    scenes = DigitScenes(
        tuning.steps * tuning.batch, tuning.digits, height, tuning.scale, split="training", seed=tuning.seed
    )
    records = scenes.entries()
    network: Any = model.module.train().requires_grad_(True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=tuning.learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=tuning.steps)
    criterion, threads = nn.BCEWithLogitsLoss(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for step in range(tuning.steps):
            chosen = records[step * tuning.batch : (step + 1) * tuning.batch]
            images = torch.stack([model.transform(scenes.read(record)) for record in chosen])
            targets = torch.tensor(
                [[float(str(k) in record.labels) for k in range(N_CLASSES)] for record in chosen]
            )
            optimiser.zero_grad()
            criterion(network(images), targets).backward()
            optimiser.step()
            schedule.step()
    finally:
        torch.set_num_threads(threads)
        network.eval().requires_grad_(False)


def _is_made(path: Path, recipe: Mapping[str, Any]) -> bool:
    return registry.read_head(path).get(MADE_FROM) == json.dumps(recipe)


def _save(model: LoadedModel, path: Path, recipe: Mapping[str, Any]) -> None:
    """Write the weights with the description of the network, if its source has one."""
    arch, weights = model.architecture, model.spec.weights
    source = registry.find_shipped(arch) if weights == "digits" else Path(weights)
    head = {key: value for key, value in registry.read_head(source).items() if key not in SOURCE_ONLY}
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
            f"{path}: the weights cannot be written ({error}); make room or make the folder writable, then repeat"
        ) from error

"""Train the last stage of an EfficientNet further on half of a set of photographs, for `jobs/real/held-out-tuned.yaml`.

    python jobs/tune_photos.py jobs/real/voc.yaml --out runs/real/tuned

Which half a photograph is in depends on a hash of its group or name. Of the training half, a quarter by another hash
chooses the number of epochs, by mean average precision of the labels; the held-out half is not looked at before the
precision reported at the end. All but the last stage and the head stay as they are, batch statistics included. Writes
`weights.safetensors`, `held-out.csv` (the table of the held-out photographs) and `precision.json`. About three minutes.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from semrsm_dist.config.schema import load_config
from semrsm_dist.data.entries import ImageEntry, format_labels
from semrsm_dist.data.source import ImageSource, list_entries
from semrsm_dist.features.models import LoadedModel, load_model
from semrsm_dist.pipeline.inputs import model_spec

BATCH, LEARNING_RATE, WEIGHT_DECAY = 32, 3e-4, 1e-2
Network = Any  # an EfficientNet of timm, which does not declare its attributes


@dataclass(frozen=True)
class Photographs:
    """What the stages that stay make of photographs, perhaps also of their mirror images; labels as 0 and 1."""

    inputs: Tensor  # (1 or 2, N, C, H, W)
    labels: Tensor  # (N, L)


def share_of(entry: ImageEntry, salt: str) -> float:
    """Return a number from 0 to 1 that depends on an image's group, or on its name if it has none."""
    digest = hashlib.sha256(f"{salt} {entry.group or entry.image_id}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def prepare(
    model: LoadedModel,
    source: ImageSource,
    entries: Sequence[ImageEntry],
    names: Sequence[str],
    *,
    mirrored: bool,
) -> Photographs:
    """Run the stages that stay."""
    network: Network = model.module
    found: list[list[Tensor]] = [[] for _ in range(1 + mirrored)]
    with torch.inference_mode():
        for start in range(0, len(entries), BATCH):
            images = [source.read(entry) for entry in entries[start : start + BATCH]]
            batch = torch.stack([model.transform(image) for image in images])
            for side, pixels in zip(found, (batch, batch.flip(3)), strict=False):
                side.append(network.blocks[:-1](network.bn1(network.conv_stem(pixels))))
    labels = torch.tensor([[float(name in entry.labels) for name in names] for entry in entries])
    return Photographs(torch.stack([torch.cat(side) for side in found]), labels)


def predict(network: Network, inputs: Tensor) -> Tensor:
    """Return the outputs of the stages that are trained."""
    outputs: Tensor = network.forward_head(network.bn2(network.conv_head(network.blocks[-1](inputs))))
    return outputs


def mean_precision(network: Network, photographs: Photographs) -> float:
    """Return the mean over labels of the average precision; labels that no photograph has do not count."""
    with torch.inference_mode():
        scores = torch.cat([predict(network, part) for part in photographs.inputs[0].split(BATCH)]).numpy()
    labels = photographs.labels.numpy()
    present = labels.any(axis=0)
    return float(average_precision_score(labels[:, present], scores[:, present], average="macro"))


def train(network: Network, photographs: Photographs, epochs: int, check: Photographs | None) -> list[float]:
    """Train in place by AdamW with a learning rate that falls to zero; return the precision of each epoch on `check`.

    Dropout and batch statistics are those of evaluation.
    """
    trained = [
        p
        for part in (network.blocks[-1], network.conv_head, network.bn2, network.classifier)
        for p in part.parameters()
    ]
    for parameter in trained:
        parameter.requires_grad_(True)
    n = len(photographs.labels)
    steps = epochs * -(-n // BATCH)
    optimiser = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=steps)
    generator = torch.Generator().manual_seed(0)
    precisions = []
    for _ in range(epochs):
        for chosen in torch.randperm(n, generator=generator).split(BATCH):
            mirrored = torch.randint(2, (len(chosen),), generator=generator)
            optimiser.zero_grad()
            outputs = predict(network, photographs.inputs[mirrored, chosen])
            nn.functional.binary_cross_entropy_with_logits(outputs, photographs.labels[chosen]).backward()
            optimiser.step()
            schedule.step()
        if check is not None:
            precisions.append(mean_precision(network, check))
    for parameter in trained:
        parameter.requires_grad_(False)
    return precisions


def new_head(network: Network, n_labels: int) -> None:
    """Replace the classifier by one of these labels."""
    torch.manual_seed(0)
    network.classifier = nn.Linear(network.classifier.in_features, n_labels)


def save(model: LoadedModel, names: Sequence[str], path: Path, epochs: int) -> None:
    """Write the weights with a description of the network and of what was done."""
    _, height, width = model.data_config["input_size"]
    head = {
        "architecture": model.architecture,
        "input_size": json.dumps([height, width]),
        "num_classes": json.dumps(len(names)),
        "classes": json.dumps(list(names)),
        "outputs": "labels",
        "mean": json.dumps(list(model.data_config["mean"])),
        "std": json.dumps(list(model.data_config["std"])),
        "interpolation": model.data_config["interpolation"],
        "made_from": json.dumps({"weights_sha256": model.weights_sha256, "epochs": epochs}),
    }
    save_file({name: tensor.contiguous() for name, tensor in model.module.state_dict().items()}, path, head)


def main() -> None:
    """Train, and write what the runs need."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="the run whose photographs and network are taken")
    parser.add_argument("--out", type=Path, required=True, help="the folder that is written to")
    parser.add_argument("--epochs", type=int, default=20, help="at most")
    options = parser.parse_args()
    config = load_config(options.config)
    source, spec = config.data, model_spec(config.model)
    entries = [entry for entry in list_entries(source) if entry.labels]
    names = sorted({label for entry in entries for label in entry.labels})
    held_out = [entry for entry in entries if share_of(entry, "held out") < 0.5]
    learning = [entry for entry in entries if share_of(entry, "held out") >= 0.5]
    is_check = np.array([share_of(entry, "check") < 0.25 for entry in learning])

    model = load_model(spec)
    seen = prepare(model, source, learning, names, mirrored=True)
    unseen = prepare(model, source, held_out, names, mirrored=False)
    parts = [Photographs(seen.inputs[:, keep], seen.labels[keep]) for keep in (~is_check, is_check)]
    new_head(model.module, len(names))
    precisions = train(model.module, *parts[:1], options.epochs, parts[1])
    epochs = 1 + int(np.argmax(precisions))

    model = load_model(spec)
    new_head(model.module, len(names))
    train(model.module, seen, epochs, None)
    options.out.mkdir(parents=True, exist_ok=True)
    save(model, names, options.out / "weights.safetensors", epochs)
    with (options.out / "held-out.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image_id", "uri", "labels", "group"])
        table.writerows([e.image_id, e.uri, format_labels(e.labels), e.group or ""] for e in held_out)
    facts = {
        "learning": len(learning),
        "held_out": len(held_out),
        "epochs": epochs,
        "precision_of_check": precisions,
        "precision_of_held_out": mean_precision(model.module, unseen),
    }
    (options.out / "precision.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()

"""Networks made from a run's network, and runs of them: the `after` of a before and after.

Their weights say what they were made from and how; made again, they are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.config.schema import RunConfig
from semrsm_dist.data.handwriting import N_CLASSES
from semrsm_dist.data.sources.digits import DigitScenes
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.errors import ConfigError
from semrsm_dist.experiments.layers import PRUNED, TUNED
from semrsm_dist.experiments.runs import evaluation_folder
from semrsm_dist.pipeline.inputs import model_spec

if TYPE_CHECKING:
    from PIL.Image import Image

    from semrsm_dist.features.models import ModelSpec

ORIGINAL = "original"
DEFAULT = ("pruned-0.5", "pruned-0.9", TUNED)


@dataclass(frozen=True, slots=True)
class Tuning:
    """A short further training on a task that has shifted: the digits are half as large as those of the first.

    The learning rate is AdamW's at the beginning; it falls to zero in a straight line.
    """

    steps: int = 120
    batch: int = 32
    learning_rate: float = 1e-3
    scale: tuple[float, float] = (1.25, 2.0)
    digits: tuple[int, int] = (1, 4)
    seed: int = 0

    def batches(self, canvas: int) -> Iterator[tuple[list[Image], NDArray[np.float32]]]:
        """Yield scenes of this size in pixels, and which digits are in them, (batch, 10) of 0 and 1."""
        scenes = DigitScenes(
            n_images=self.steps * self.batch,
            digits=self.digits,
            canvas=canvas,
            scale=self.scale,
            split="training",
            seed=self.seed,
        )
        entries = scenes.entries()
        for start in range(0, len(entries), self.batch):
            chosen = entries[start : start + self.batch]
            labels = [[str(digit) in entry.labels for digit in range(N_CLASSES)] for entry in chosen]
            yield [scenes.read(entry) for entry in chosen], np.array(labels, dtype=np.float32)


def default_variants(config: RunConfig) -> tuple[str, ...]:
    """Return the variants that are cheap to make of a run's network: those of the shipped ones, else none."""
    return DEFAULT if config.model is not None and config.model.weights == "digits" else ()


def require_network(config: RunConfig, variants: tuple[str, ...]) -> None:
    """Raise ConfigError unless the run has a network to make the variants of."""
    if variants and (config.model is None or isinstance(config.data, FeaturesData)):
        raise ConfigError(
            "ready-made features come without a network to prune or fine-tune; give the run of other features of the "
            "same images: --with other=CONFIG.yaml"
        )


def derive_config(config: RunConfig, name: str, images: int) -> RunConfig:
    """Return the run of a variant, or of the original, on the images of a run; the variant's weights are made here.

    Of scenes of digits, at most this many images are taken; of other images, all.
    """
    if config.model is None:
        raise ConfigError("a variant needs a network; give a run with the section model")
    folder, data, model = evaluation_folder(config) / "layers", config.data, config.model
    run = folder / name
    if isinstance(data, DigitScenes):
        data = data.model_copy(update={"n_images": min(data.n_images, images)})
        run = folder / f"{data.n_images}-images" / name  # fewer scenes are another run
    if name != ORIGINAL:
        weights = (folder / "weights" / f"{model.name}.{name}.safetensors").absolute()
        if pruned := PRUNED.fullmatch(name):
            save_pruned(model_spec(model), float(pruned[1]), weights)
        else:
            save_tuned(model_spec(model), weights)
        model = model.model_copy(update={"weights": str(weights)})
    return config.model_copy(update={"run": run, "data": data, "model": model})


def save_pruned(spec: ModelSpec, share: float, path: Path) -> None:
    """Write a model's weights with this share of each layer's, the smallest, set to zero, unless they are there.

    Layers are convolutions and linear ones; among weights of equal magnitude, the first are set to zero.
    """
    from semrsm_dist.features.models import load_model  # noqa: PLC0415 - torch only where it is needed
    from semrsm_dist.features.variants import is_made, prune, save_variant  # noqa: PLC0415

    model = load_model(spec)
    recipe = {"weights_sha256": model.weights_sha256, "pruned": share}
    if not is_made(path, recipe):
        prune(model, share)
        save_variant(model, path, recipe)


def save_tuned(spec: ModelSpec, path: Path, tuning: Tuning | None = None) -> None:
    """Train a network of the ten digits further with smaller ones and write its weights, unless they are there."""
    from semrsm_dist.features.models import load_model  # noqa: PLC0415 - torch only where it is needed
    from semrsm_dist.features.variants import is_made, save_variant, train_further  # noqa: PLC0415

    model, tuning = load_model(spec), tuning or Tuning()
    if model.outputs != "labels" or model.classes != tuple(map(str, range(N_CLASSES))):
        raise ConfigError(
            f"model {spec.name!r} cannot be fine-tuned here, as only networks that were trained on scenes of digits "
            "(weights: digits) know the labels of more such scenes; fine-tune it yourself and give a run with its file "
            "to compare with"
        )
    recipe = {"weights_sha256": model.weights_sha256, "tuned": asdict(tuning)}
    if not is_made(path, recipe):
        batches = tuning.batches(model.input_size[0])
        train_further(model, batches, steps=tuning.steps, learning_rate=tuning.learning_rate)
        save_variant(model, path, recipe)
